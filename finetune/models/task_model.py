"""TaskModel: a published backbone and its published head, ready to answer.

Takes a ModelVersion. Gives the head layer with its stored weights. Next: `finetune.training` (start from a version),
`finetune.predictor`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from finetune.models.backbone import Backbone
from finetune.models.feature_row import build_head, row_of
from finetune.models.heads import head_kind
from finetune.models.heads.head import Assets, HeadLayer
from finetune.models.restore import named_variables, restore
from zoo.architectures import architecture_facts
from zoo.errors import DataLoss, FailedPrecondition
from zoo.tensors import read_safetensors

if TYPE_CHECKING:
    from zoo.catalog import Catalog, ModelVersion


class NoHead(FailedPrecondition):
    """A version that is a backbone only."""


class HeadUnreadable(DataLoss):
    """A manifest whose head record the head's own model refuses."""


@dataclass(frozen=True, kw_only=True)
class TaskModel:
    version: ModelVersion
    backbone: Backbone
    head: HeadLayer


def load_task_model(catalog: Catalog, reference: str) -> TaskModel:
    """Backbone and head of a version. Raises what `Backbone.from_version` and `load_head` raise."""
    version = catalog.get(reference)
    if version.manifest.head is None:  # before minutes of building a backbone that cannot answer
        raise _no_head(version)
    backbone = Backbone.from_version(catalog, version)
    head = load_head(catalog, version, backbone.feature_dim, feature_map_shape=backbone.feature_map_shape)
    return TaskModel(version=version, backbone=backbone, head=head)


def load_head(
    catalog: Catalog,
    version: ModelVersion,
    feature_dim: int,
    *,
    feature_map_shape: tuple[int, int, int] | None = None,
) -> HeadLayer:
    """The head of a version with its stored weights.

    Args:
        feature_dim: D of the backbone's feature vectors.
        feature_map_shape: (H, W, C) of its feature maps, for a head that looks at places.
    Raises:
        NoFeatureMap: a head that looks at places, and no map. NoHead; UnknownHead; HeadUnreadable; DataLoss.
        IncompleteRestore: file and layer don't fit entirely.
    """
    manifest = version.manifest
    component = manifest.component("head")
    if manifest.head is None or component is None:
        raise _no_head(version)
    kind = head_kind(manifest.head.kind)
    try:
        arguments = kind.Arguments.model_validate(manifest.head.arguments)
    except ValidationError as error:
        raise HeadUnreadable(f"{version.reference}: the {kind.kind} head's arguments: {error}") from None
    row = row_of(kind, arguments, feature_dim=feature_dim, feature_map_shape=feature_map_shape)
    layer = build_head(kind, arguments=arguments, row=row, assets=stored_assets(catalog, version), seed=0)
    report = restore(named_variables(_keras(layer)), read_safetensors(catalog.open_component(version, "head")))
    report.require_complete(f"{kind.kind} head of {version.reference}")
    return layer


def stored_assets(catalog: Catalog, version: ModelVersion) -> Assets:
    """What the version's head learnt from its training split: asset files and classes, as `HeadKind.build` wants it.
    Files that the backbone is built from aren't among them."""
    manifest = version.manifest
    of_backbone = architecture_facts(manifest.architecture.name).assets
    names = [asset.name for asset in manifest.assets if asset.name not in of_backbone]
    files = {name: catalog.open_asset(version, name).read_bytes() for name in names}
    return Assets(
        files=files,
        classes=manifest.classes,
        class_offset=manifest.class_offset,
        vocabulary_size=manifest.vocabulary.size if manifest.vocabulary else None,
        tokenizer=manifest.vocabulary.tokenizer if manifest.vocabulary else None,
    )


def _keras(layer: HeadLayer) -> Any:
    """Every head layer is a `keras.Layer` (see the seam); the protocol can't say so."""
    return layer


def _no_head(version: ModelVersion) -> NoHead:
    return NoHead(
        f"{version.reference} is a backbone only, it has no head",
        hint=f"finetune run --backbone {version.reference} --head captioner --data DATA --name NAME",
    )
