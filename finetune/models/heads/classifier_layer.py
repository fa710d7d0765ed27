"""Classifier: dense layers over the feature vector, softmax over exclusive classes.

Takes feature vectors and labels. Gives cross-entropy, accuracy and calibration. Next: `finetune.training.trainer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from finetune.data.source import Example
from finetune.metrics.classes import classification_metrics
from finetune.models.heads.classifier import NoClassNames, label_rows
from finetune.models.heads.head import LossTerms

if TYPE_CHECKING:
    from finetune.models.heads.classifier import ClassifierArguments


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
                activation=arguments.hidden_activation,
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
