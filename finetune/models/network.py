"""Network: what training changes. Implemented by a head alone, and by a head with the end of its backbone.

Takes a batch's inputs. Gives losses. Next: `finetune.training.trainer`.

A head alone is fed feature vectors, which were computed once. With a thawed backbone (`model.train_from`) the network
is fed images: what lies before the cut runs without a gradient, what lies behind it is trained. BatchNorm infers with
its stored statistics there too, unless asked (`model.batch_norm`): a small data set's own would be worse, and the
features of a frozen and of a thawed backbone are then equal to the bit before the first step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import keras
import tensorflow as tf

from finetune.models.backbone import build_backbone
from finetune.models.cuts import cut_before
from finetune.models.heads.head import HeadLayer, LossTerms
from finetune.models.precision import as_float32, computing_in
from finetune.models.restore import named_variables, restore
from zoo.architectures import architecture_facts
from zoo.errors import InvalidArgument
from zoo.input_spec import InputSpec
from zoo.manifest import Architecture
from zoo.restore_report import RestoreReport


class UncuttableEndpoint(InvalidArgument):
    """An endpoint that doesn't part the network in two."""


class NoBatchNorm(InvalidArgument):
    """model.batch_norm=train where no BatchNorm is trained."""


class Network(Protocol):
    """`groups`: component → tensor name → variable, of the components that training changes."""

    @property
    def head(self) -> HeadLayer: ...

    @property
    def groups(self) -> Mapping[str, Mapping[str, Any]]: ...

    @property
    def trainable_variables(self) -> Sequence[Any]: ...

    @property
    def statistics(self) -> Sequence[Any]:
        """Variables that a loss in training changes without a gradient: moving averages of BatchNorm."""

    @property
    def momentum(self) -> float | None:
        """How much of these a step leaves; None where there are none."""

    @property
    def layers(self) -> Mapping[str, keras.Layer]:
        """`component/name` → layer, of all that a loss may pass through; endpoint → the layer that gives it."""

    def loss(self, inputs: Mapping[str, Any], targets: Mapping[str, Any], *, training: bool) -> LossTerms: ...


class HeadNetwork:
    """The backbone is frozen: inputs are {"feature_vector": [B, D]}."""

    statistics: Sequence[Any] = ()
    momentum: float | None = None

    def __init__(self, head: HeadLayer) -> None:
        self.head = head
        self.groups = {"head": _sorted(named_variables(_layer(head)))}

    @property
    def trainable_variables(self) -> Sequence[Any]:
        return list(self.head.trainable_variables)

    @property
    def layers(self) -> Mapping[str, keras.Layer]:
        return _layers("head", _layer(self.head))

    def loss(self, inputs: Mapping[str, Any], targets: Mapping[str, Any], *, training: bool) -> LossTerms:
        with tf.name_scope("head"):
            return self.head.loss(inputs, targets, training=training)


class ThawedNetwork:
    """Inputs are {"image": float32 [B, height, width, 3]}, preprocessed; where pictures are mixed also "partner", int32
    [B], the row that each is mixed with, and "share", float32 [B], how much of it is its own. In micro-batches, where
    that row may be in another one, its targets come along instead, as "partner/NAME".

    `groups["backbone"]` holds the variables behind the cut alone; those before it keep their stored values.
    """

    def __init__(
        self,
        *,
        head: HeadLayer,
        architecture: Architecture,
        input_spec: InputSpec,
        train_from: str,
        batch_norm: str = "frozen",
        precision: str = "float32",
        assets: Mapping[str, bytes] | None = None,
    ) -> None:
        """`train_from`: see `finetune.models.cuts.first_endpoint`, not `none`. `batch_norm`: `train` makes BatchNorm
        behind the cut use each batch's statistics in training and keep moving averages of them (rows of weight 0 count
        there too). Raises UnknownEndpoint, InvalidTrainFrom, UncuttableEndpoint, NoBatchNorm, what `build_backbone`
        raises. `precision`: see `finetune.models.precision`."""
        self.head = head
        facts = architecture_facts(architecture.name)
        cut = cut_before(facts, train_from)
        names = [each.name for each in facts.endpoints]
        with computing_in(precision):
            self._whole = build_backbone(architecture, input_spec, endpoints=names, assets=assets)
        self._endpoints = {name: self._whole.output[name]._keras_history.operation for name in names}
        self._trunk, self._tail = _parted(self._whole, cut, train_from)
        self._whole.trainable = True
        if self._trunk is not None:
            self._trunk.trainable = False
        self.groups = {
            "head": _sorted(named_variables(_layer(head))),
            "backbone": _sorted(named_variables(self._tail)),
        }
        self._norms: list[keras.layers.BatchNormalization] = []
        if batch_norm == "train":
            self._norms = norms_alone_train(self._tail)

    @property
    def trainable_variables(self) -> Sequence[Any]:
        return [*self.head.trainable_variables, *self._tail.trainable_variables]

    @property
    def layers(self) -> Mapping[str, keras.Layer]:
        return {**_layers("backbone", self._whole), **self._endpoints, **_layers("head", _layer(self.head))}

    @property
    def statistics(self) -> Sequence[Any]:
        return [each for norm in self._norms for each in (norm.moving_mean, norm.moving_variance)]

    @property
    def momentum(self) -> float | None:
        """How much of BatchNorm's moving averages a step leaves, the least of all layers; None where it infers."""
        return min((float(norm.momentum) for norm in self._norms), default=None)

    def places(self) -> tuple[dict[str, int], int]:
        """Tensor of the trained part → the place of the endpoint that its layer leads to (the number of endpoints for
        what lies behind the last), and how many places there are."""
        place_of: dict[str, int] = {}
        names = list(self._endpoints)
        for place, name in enumerate(names):
            led = keras.Model(self._whole.input, self._whole.output[name])
            for tensor in named_variables(led):
                place_of.setdefault(tensor, place)
        trained = self.groups["backbone"]
        found = {name: place_of.get(name, len(names)) for name in trained}
        behind = any(name not in place_of for name in named_variables(self._whole))
        return found, len(names) + behind

    def restore_backbone(self, tensors: Mapping[str, Any]) -> RestoreReport:
        """Puts a whole backbone component in; the report is complete or nothing was assigned."""
        return restore(named_variables(self._whole), tensors)

    def backbone_arrays(self) -> dict[str, Any]:
        """Every tensor of the backbone, before the cut and behind it, as it is now."""
        return {name: variable.numpy() for name, variable in _sorted(named_variables(self._whole)).items()}

    def features(self, image_BHWC: Any, *, training: bool = False) -> dict[str, Any]:
        """{"feature_vector": [B, D], "feature_map": [B, H, W, C]}; `training` matters to BatchNorm that is trained."""
        with tf.name_scope("backbone"):
            if self._trunk is not None:
                image_BHWC = tf.stop_gradient(self._trunk(image_BHWC, training=False))
            return as_float32(self._tail(image_BHWC, training=training and bool(self._norms)))

    def loss(self, inputs: Mapping[str, Any], targets: Mapping[str, Any], *, training: bool) -> LossTerms:
        features = self.features(inputs["image"], training=training)
        with tf.name_scope("head"):
            if "share" not in inputs:
                return self.head.loss(features, targets, training=training)
            # Mixed pictures show two examples: the loss of each, by its share (arXiv:1710.09412, arXiv:1905.04899).
            share_B = tf.cast(inputs["share"], tf.float32)
            others = {
                name: inputs[f"partner/{name}"] if "partner" not in inputs else tf.gather(value, inputs["partner"])
                for name, value in targets.items()
            }
            weights = targets["weight"] * share_B, targets["weight"] * (1.0 - share_B)
            own = self.head.loss(features, {**targets, "weight": weights[0]}, training=training)
            return own + self.head.loss(features, {**others, "weight": weights[1]}, training=training)


def _parted(whole: keras.Model, cut: str | None, train_from: str) -> tuple[keras.Model | None, keras.Model]:
    outputs = {name: whole.output[name] for name in ("feature_vector", "feature_map")}
    if cut is None:
        return None, keras.Model(whole.input, outputs, name="tail")
    between = whole.output[cut]
    try:
        tail = keras.Model(between, outputs, name="tail")
    except ValueError as error:
        raise UncuttableEndpoint(
            f"model.train_from={train_from!r}: {whole.name} can't be cut at {cut!r}, since what follows also uses "
            f"what came before ({str(error).partition('.')[0]})"
        ) from None
    return keras.Model(whole.input, between, name="trunk"), tail


def norms_alone_train(tail: keras.Model) -> list[keras.layers.BatchNormalization]:
    """The BatchNorms of the model, which from now on is the only kind of layer there that training=True changes: the
    dropout of some architectures draws from generators that no Checkpoint knows. Raises NoBatchNorm."""
    flat = tail._flatten_layers(include_self=False, recursive=True)
    norms: list[keras.layers.BatchNormalization] = []
    for layer in flat:
        if isinstance(layer, keras.layers.BatchNormalization):
            norms.append(layer)
        elif isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    if not norms:
        raise NoBatchNorm(
            f"model.batch_norm=train: what is trained of {tail.name} has no BatchNorm", hint="leave it out"
        )
    return norms


def _layers(component: str, whole: keras.Layer) -> dict[str, keras.Layer]:
    """Layers by the names that their tensors have (see `finetune.models.restore`), `component/` before them; those that
    are made of others are left out, as are a model's inputs."""
    found: dict[str, keras.Layer] = {}
    for layer in whole._flatten_layers(include_self=False, recursive=True):
        if not isinstance(layer, keras.Model | keras.layers.InputLayer):
            found.setdefault(f"{component}/{layer.name.replace('.', '/')}", layer)
    return found


def _layer(head: HeadLayer) -> Any:
    """Every head layer is a `keras.Layer` (see the seam); the protocol can't say so."""
    return head


def _sorted(variables: Mapping[str, Any]) -> dict[str, Any]:
    return dict(sorted(variables.items()))
