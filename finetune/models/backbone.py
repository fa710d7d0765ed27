"""Backbone: a published network without its output layers, frozen.

Takes a ModelVersion. Gives feature vectors and feature maps. Next: `finetune.data.features`, `finetune.predictor`,
`finetune.models.task_model`. The head's bytes are never read, nor even fetched.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf
from pydantic import JsonValue

from finetune.models import (
    efficientnet_lite,
    hub_module,
    inception_resnet_v2,
    inception_v1,
    inception_v2,
    inception_v3,
    inception_v4,
    keras_applications,
    xception,
)
from finetune.models.body import Body
from finetune.models.restore import named_variables, restore
from zoo.architectures import architecture_facts
from zoo.errors import FailedPrecondition, InvalidArgument
from zoo.input_spec import InputSpec
from zoo.manifest import Architecture, Asset, canonical_json
from zoo.restore_report import RestoreReport
from zoo.tensors import read_safetensors

if TYPE_CHECKING:
    from zoo.catalog import Catalog, ModelVersion


class NoBackbone(FailedPrecondition):
    """A version without a backbone component."""


class InputTooSmall(InvalidArgument):
    """An input size that leaves nothing of the feature map."""


def _inception_v1(spec: InputSpec, arguments: dict[str, JsonValue]) -> Body:
    padding = bool(arguments["torch_padding"])
    return inception_v1.build(height=spec.height, width=spec.width, torch_padding=padding)


def _inception_v2(spec: InputSpec, arguments: dict[str, JsonValue]) -> Body:
    return inception_v2.build(height=spec.height, width=spec.width)


def _inception_v3(spec: InputSpec, arguments: dict[str, JsonValue]) -> Body:
    counts = bool(arguments["pool_counts_padding"])
    return inception_v3.build(height=spec.height, width=spec.width, pool_counts_padding=counts)


def _inception_resnet_v2(spec: InputSpec, arguments: dict[str, JsonValue]) -> Body:
    return inception_resnet_v2.build(height=spec.height, width=spec.width)


def _inception_v4(spec: InputSpec, arguments: dict[str, JsonValue]) -> Body:
    return inception_v4.build(height=spec.height, width=spec.width)


def _xception(spec: InputSpec, arguments: dict[str, JsonValue]) -> Body:
    return xception.build(
        height=spec.height,
        width=spec.width,
        batch_norm_epsilon=float(str(arguments["batch_norm_epsilon"])),
        pool_pads_both_sides=bool(arguments["pool_pads_both_sides"]),
    )


# Architecture name → (InputSpec, resolved arguments) → the network without its output layers.
BUILDERS: dict[str, Callable[[InputSpec, dict[str, JsonValue]], Body]] = {
    **efficientnet_lite.BUILDERS,
    **keras_applications.BUILDERS,
    "inception_resnet_v2": _inception_resnet_v2,
    "inception_v1": _inception_v1,
    "inception_v2": _inception_v2,
    "inception_v3": _inception_v3,
    "inception_v4": _inception_v4,
    "xception": _xception,
}


# The same, for networks that are built from files of the version: their bytes, by asset name, come third.
STORED: dict[str, Callable[[InputSpec, dict[str, JsonValue], Mapping[str, bytes]], Body]] = {
    "hub_module": hub_module.build,
}


def build_backbone(
    architecture: Architecture,
    input_spec: InputSpec,
    *,
    endpoints: Sequence[str] = (),
    assets: Mapping[str, bytes] | None = None,
) -> keras.Model:
    """The network of a manifest, freshly initialised and frozen (BatchNorm always infers, even with training=True).

    Args:
        endpoints: names in the architecture's `FACTS.endpoints` whose activations are wanted too.
        assets: file name → bytes of the version's assets that `FACTS.assets` names.
    Returns:
        A functional model from float32 `[B, height, width, 3]` to {"feature_vector": [B, D], "feature_map":
        [B, H, W, C]} and `[B, h, w, c]` for each endpoint; the vector is the map's mean over H and W
        (ConvNeXt's, normalised: see `zoo.architectures.convnext`).
    Raises:
        UnknownArchitecture, InvalidArguments, InputTooSmall, UnknownEndpoint; what `hub_module.build` raises.
    """
    facts = architecture_facts(architecture.name)
    arguments = facts.resolved(architecture.arguments)
    wanted = [facts.endpoint(name).name for name in endpoints]
    if min(input_spec.height, input_spec.width) < facts.min_size:
        raise InputTooSmall(
            f"architecture {facts.name!r} needs images of at least {facts.min_size} × {facts.min_size} pixels, "
            f"got an input spec of {input_spec.height} × {input_spec.width}"
        )
    if facts.name in STORED:
        body = STORED[facts.name](input_spec, arguments, assets or {})
    else:
        body = BUILDERS[facts.name](input_spec, arguments)
    vector = body.feature_vector
    if vector is None:
        vector = keras.layers.GlobalAveragePooling2D(name="feature_vector")(body.feature_map)
    outputs = {"feature_vector": vector, "feature_map": body.feature_map}
    model = keras.Model(body.image, outputs | {name: body.endpoints[name] for name in wanted}, name=facts.name)
    model.trainable = False
    return model


class Backbone:
    """A restored, frozen network.

    Attributes:
        architecture, input_spec: as the manifest has them.
        digest: `sha256:<hex>` of what decides its features: weights, architecture, arguments and, where the network is
            built from files of the version, those. A cache key.
        component_digest: of the safetensors file alone.
        model: see `build_backbone`.
        feature_dim: D; feature_map_shape: (H, W, C).
        report: what became of every tensor.
    """

    def __init__(
        self,
        *,
        architecture: Architecture,
        input_spec: InputSpec,
        component_digest: str,
        model: keras.Model,
        report: RestoreReport,
        asset_digests: Mapping[str, str] | None = None,
    ) -> None:
        facts = architecture_facts(architecture.name)
        identity = {
            "weights": component_digest,
            "name": facts.name,
            "arguments": facts.resolved(architecture.arguments),
            **({"assets": dict(asset_digests)} if asset_digests else {}),
        }
        self.architecture = architecture
        self.input_spec = input_spec
        self.component_digest = component_digest
        self.digest = "sha256:" + hashlib.sha256(canonical_json(identity)).hexdigest()
        self.model = model
        self.report = report
        self.feature_dim = int(model.output["feature_vector"].shape[-1])
        height, width, depth = model.output["feature_map"].shape[1:]
        self.feature_map_shape = (int(height), int(width), int(depth))
        image_BHWC = tf.TensorSpec([None, input_spec.height, input_spec.width, 3], tf.float32, name="image_BHWC")
        self._vector = tf.function(lambda image: self._outputs(image)["feature_vector"], input_signature=[image_BHWC])
        self._map = tf.function(lambda image: self._outputs(image)["feature_map"], input_signature=[image_BHWC])

    @classmethod
    def from_version(cls, catalog: Catalog, version: str | ModelVersion) -> Backbone:
        """Builds and restores the backbone of a version (or a reference to one); reads its backbone component only.

        Raises:
            NotFound: an unknown reference. NoBackbone. IncompleteRestore: file and network don't fit entirely.
            DataLoss: a damaged file.
        """
        known = catalog.get(version) if isinstance(version, str) else version
        manifest = known.manifest
        component = manifest.component("backbone")
        if component is None:
            raise NoBackbone(f"{known.reference} has no backbone component", hint=f"zoo show {known.reference}")
        model = build_backbone(manifest.architecture, manifest.input_spec, assets=backbone_assets(catalog, known))
        report = restore(named_variables(model), read_safetensors(catalog.open_component(known, "backbone")))
        report.require_complete(f"backbone of {known.reference}")
        return cls(
            architecture=manifest.architecture,
            input_spec=manifest.input_spec,
            component_digest=component.digest,
            model=model,
            report=report,
            asset_digests={asset.name: asset.digest for asset in _assets(known)},
        )

    def feature_vector(self, image_BHWC: Any) -> tf.Tensor:
        """`[B, D]` float32 of preprocessed images, float32 `[B, height, width, 3]`."""
        return self._vector(tf.convert_to_tensor(image_BHWC, tf.float32))

    def feature_map(self, image_BHWC: Any) -> tf.Tensor:
        """`[B, H, W, C]` float32 of preprocessed images, float32 `[B, height, width, 3]`."""
        return self._map(tf.convert_to_tensor(image_BHWC, tf.float32))

    def _outputs(self, image_BHWC: tf.Tensor) -> dict[str, tf.Tensor]:
        return dict(self.model(image_BHWC, training=False))


def backbone_assets(catalog: Catalog, version: ModelVersion) -> dict[str, bytes]:
    """The files of a version that its backbone is built from, by name; none for most architectures."""
    return {asset.name: catalog.open_asset(version, asset.name).read_bytes() for asset in _assets(version)}


def _assets(version: ModelVersion) -> list[Asset]:
    names = architecture_facts(version.manifest.architecture.name).assets
    return [asset for asset in version.manifest.assets if asset.name in names]
