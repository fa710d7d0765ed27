"""Classifier: dense layers over the feature vector, softmax over exclusive classes.

Takes feature vectors and labels. Gives cross-entropy, accuracy and calibration. Next: `finetune.training.trainer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import keras
import numpy as np
import tensorflow as tf
from pydantic import BaseModel, ConfigDict, Field, model_validator

from finetune.data.source import Example
from finetune.metrics.classes import classification_metrics
from finetune.models.heads.head import Assets, HeadLayer, LossTerms, TargetTable
from zoo.errors import FailedPrecondition, InvalidArgument


class InvalidLabels(InvalidArgument):
    """Labels that a classifier cannot be trained on or scored with."""


class NoClassNames(FailedPrecondition):
    """A classifier whose version doesn't say what its outputs mean."""


class ClassifierArguments(BaseModel):
    """`hidden`: units of the relu layers between feature and logits; `dropout`: the share dropped after each of them.

    `num_classes` counts the logits; None means one for each class in the training split.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_classes: Annotated[int, Field(ge=2)] | None = None
    hidden: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = ()
    dropout: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = ()
    activation: Literal["softmax"] = "softmax"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _one_dropout_a_layer(self) -> ClassifierArguments:
        if self.dropout and len(self.dropout) != len(self.hidden):
            raise ValueError(f"{len(self.dropout)} dropout shares for {len(self.hidden)} hidden layers")
        return self


class ClassifierLayer(keras.Layer):
    """`[B, D]` → logits `[B, C]`. Tensor names: `hidden_<i>/{kernel,bias}`, `logits/{kernel,bias}`."""

    def __init__(
        self,
        *,
        arguments: ClassifierArguments,
        num_classes: int,
        feature_dim: int,
        classes: tuple[str, ...] | None,
        class_offset: int,
        seed: int,
    ) -> None:
        super().__init__(name="classifier")
        self.num_classes = num_classes
        self.classes = classes
        self.class_offset = class_offset
        self.label_smoothing = arguments.label_smoothing
        shares = arguments.dropout or (0.0,) * len(arguments.hidden)
        self.hidden = [
            keras.layers.Dense(
                units,
                activation="relu",
                kernel_initializer=keras.initializers.HeNormal(seed=seed + place),
                name=f"hidden_{place}",
            )
            for place, units in enumerate(arguments.hidden)
        ]
        self.dropouts = [
            keras.layers.Dropout(share, seed=seed + place, name=f"dropout_{place}")
            for place, share in enumerate(shares)
        ]
        self.output_layer = keras.layers.Dense(
            num_classes, kernel_initializer=keras.initializers.GlorotUniform(seed=seed), name="logits"
        )
        self.build((None, feature_dim))

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        shape = tuple(input_shape)
        for layer in self.hidden:
            layer.build(shape)
            shape = (None, layer.units)
        self.output_layer.build(shape)
        self.built = True

    def call(self, feature_BD: Any, training: bool = False) -> Any:
        return self.logits(feature_BD, training=training)

    def logits(self, feature_BD: Any, *, training: bool = False) -> tf.Tensor:
        """`[B, C]`, before the softmax."""
        x = feature_BD
        for layer, dropout in zip(self.hidden, self.dropouts, strict=True):
            x = dropout(layer(x), training=training)
        return self.output_layer(x)

    def probabilities(self, feature_BD: Any) -> tf.Tensor:
        """`[B, C]`, each row sums to 1; column `class_offset + i` belongs to `classes[i]`."""
        return tf.nn.softmax(self.logits(feature_BD))

    def loss(self, features: Mapping[str, Any], targets: Mapping[str, Any], *, training: bool) -> LossTerms:
        """Cross-entropy in nats. `targets`: label int32 `[B]`, weight float32 `[B]`. See `HeadLayer`."""
        logits_BC = self.logits(features["feature_vector"], training=training)
        label_B, weight_B = targets["label"], tf.cast(targets["weight"], tf.float32)
        # Smoothing is for learning only: the evaluated loss is that of the plain labels, comparable between runs.
        smoothing = self.label_smoothing if training else 0.0
        truth_BC = tf.one_hot(label_B, self.num_classes) * (1.0 - smoothing) + smoothing / self.num_classes
        loss_B = tf.nn.softmax_cross_entropy_with_logits(labels=truth_BC, logits=logits_BC)
        right_B = tf.cast(tf.equal(tf.argmax(logits_BC, axis=-1, output_type=tf.int32), label_B), tf.float32)
        weight_sum = tf.reduce_sum(weight_B)
        return LossTerms(
            loss_sum=tf.reduce_sum(loss_B * weight_B),
            weight_sum=weight_sum,
            metrics={"accuracy": (tf.reduce_sum(right_B * weight_B), weight_sum)},
        )

    def evaluate(self, features: np.ndarray, examples: Sequence[Example]) -> dict[str, Any]:
        """accuracy, top_5, macro_f1, ece, per_class (`finetune.metrics.classes`) of features float32 `[N, D]`.

        Raises NoClassNames, InvalidLabels.
        """
        if self.classes is None:
            raise NoClassNames(
                "this classifier's version has no class names, so labels cannot be compared with its outputs",
                hint="import it with --classes FILE",
            )
        label_N = label_rows(examples, self.classes)
        probability_NC = np.concatenate(
            [self.probabilities(features[start : start + 1024]).numpy() for start in range(0, len(features), 1024)]
            or [np.zeros((0, self.num_classes), np.float32)]
        )
        # Outputs before the first class (a background class) compete like the others, but no example has them.
        names = tuple(f"<{place}>" for place in range(self.class_offset)) + self.classes
        return classification_metrics(probability_NC, label_N + self.class_offset, names)


class ClassifierKind:
    """See `HeadKind`."""

    kind = "classifier"
    Arguments: type[BaseModel] = ClassifierArguments

    def learn_assets(self, examples: Sequence[Example], arguments: ClassifierArguments) -> Assets:
        """The classes: labels of the training split in lexicographic order (of code points). Raises InvalidLabels."""
        require_labels(examples)
        classes = tuple(sorted({str(example.label) for example in examples}))
        if len(classes) < 2:
            found = f"only {classes[0]!r}" if classes else "none, for there are no examples"
            raise InvalidLabels(f"a classifier needs two classes or more; the training split has {found}")
        if arguments.num_classes not in (None, len(classes)):
            raise InvalidLabels(
                f"num_classes is {arguments.num_classes}, but the training split has {len(classes)} classes: "
                f"{', '.join(classes[:10])}{', …' if len(classes) > 10 else ''}",
                hint="leave num_classes out to get one output a class",
            )
        return Assets(files={}, classes=classes)

    def targets(self, examples: Sequence[Example], arguments: ClassifierArguments, assets: Assets) -> TargetTable:
        """One row an image: label int32, a position in the classes. Raises InvalidLabels naming labels and files."""
        if assets.classes is None:
            raise NoClassNames("targets of a classifier need its class names")
        rows = np.arange(len(examples), dtype=np.int32)
        return TargetTable(image_index=rows, arrays={"label": label_rows(examples, assets.classes)})

    def build(
        self,
        *,
        arguments: ClassifierArguments,
        feature_dim: int,
        assets: Assets,
        seed: int,
    ) -> HeadLayer:
        """A fresh layer. An imported classifier may have more outputs than class names: they come first."""
        named = len(assets.classes) if assets.classes is not None else None
        outputs = arguments.num_classes or named
        if outputs is None:
            raise InvalidLabels("a classifier needs num_classes or class names; there are neither")
        offset = 0 if named is None else outputs - named
        if offset not in (0, 1):
            raise InvalidLabels(f"a classifier with {outputs} outputs cannot have {named} class names")
        return ClassifierLayer(
            arguments=arguments,
            num_classes=outputs,
            feature_dim=feature_dim,
            classes=assets.classes,
            class_offset=offset,
            seed=seed,
        )

    def resolved(self, arguments: ClassifierArguments, assets: Assets) -> dict[str, Any]:
        outputs = arguments.num_classes or len(assets.classes or ())
        shares = arguments.dropout or (0.0,) * len(arguments.hidden)
        return arguments.model_copy(update={"num_classes": outputs, "dropout": shares}).model_dump(mode="json")


CLASSIFIER = ClassifierKind()


def require_labels(examples: Sequence[Example]) -> None:
    """Raises InvalidLabels naming examples without a label."""
    bare = [example.id for example in examples if example.label is None]
    if bare:
        some = ", ".join(bare[:5]) + (", …" if len(bare) > 5 else "")
        raise InvalidLabels(
            f"{len(bare)} of {len(examples)} examples have no label: {some}",
            hint="a classifier learns from a folder per class: --data folder:DIR",
        )


def label_rows(examples: Sequence[Example], classes: tuple[str, ...]) -> np.ndarray:
    """int32 `[N]`: each label's position in `classes`, found by name. Raises InvalidLabels naming unknown labels."""
    require_labels(examples)
    position = {name: place for place, name in enumerate(classes)}
    strange = sorted({str(example.label) for example in examples} - set(position))
    if strange:
        where = next(example.id for example in examples if example.label == strange[0])
        raise InvalidLabels(
            f"{len(strange)} labels are no class of this classifier: {', '.join(map(repr, strange[:5]))} "
            f"(for example of {where}); its {len(classes)} classes are {', '.join(map(repr, classes[:10]))}"
            f"{', …' if len(classes) > 10 else ''}"
        )
    return np.array([position[str(example.label)] for example in examples], dtype=np.int32).reshape(len(examples))
