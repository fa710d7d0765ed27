"""Multi-label head: dense layers over the feature vector, a sigmoid for each class by itself.

Takes feature vectors and lists of labels. Gives binary cross-entropy, mAP, F1. Next: `finetune.training.trainer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from finetune.data.source import Example
from finetune.metrics.labels import DEFAULT_THRESHOLD, best_thresholds, label_metrics
from finetune.models.heads.dense_layer import DenseLayer
from finetune.models.heads.head import LossTerms, Shown
from finetune.models.heads.multilabel import truth_rows

if TYPE_CHECKING:
    from finetune.models.heads.multilabel import MultilabelArguments


class MultilabelLayer(DenseLayer):
    """`[B, D]` → logits `[B, C]`. Tensor names: `hidden_<i>/{kernel,bias}`, `logits/{kernel,bias}`.

    Attributes:
        thresholds: of each class; a probability at or above it says yes.
    """

    def __init__(
        self, *, arguments: MultilabelArguments, classes: tuple[str, ...], feature_dim: int, seed: int
    ) -> None:
        super().__init__(
            name="multilabel",
            arguments=arguments,
            outputs=len(classes),
            output_name="logits",
            seed=seed,
            feature_dim=feature_dim,
        )
        self.classes = classes
        self.thresholds = arguments.thresholds or (DEFAULT_THRESHOLD,) * len(classes)
        self._tuned = arguments.tune_thresholds == "f1" and arguments.thresholds is None
        self.build((None, feature_dim))

    def probabilities(self, feature_BD: Any) -> tf.Tensor:
        """`[B, C]`, each 0 to 1 by itself."""
        return tf.sigmoid(self.logits(feature_BD))

    def loss(self, features: Mapping[str, Any], targets: Mapping[str, Any], *, training: bool) -> LossTerms:
        """Binary cross-entropy in nats, the mean over classes. `targets`: labels [B, C] of 0 and 1, weight [B];
        `positive_weight` [B, C], for training only. See `HeadLayer`."""
        logits_BC = self.logits(features["feature_vector"], training=training)
        truth_BC = tf.cast(targets["labels"], tf.float32)
        weight_B = tf.cast(targets["weight"], tf.float32)
        if training and "positive_weight" in targets:
            weight_BC = tf.cast(targets["positive_weight"], tf.float32)
            loss_BC = tf.nn.weighted_cross_entropy_with_logits(truth_BC, logits_BC, weight_BC)
        else:
            with tf.name_scope("loss"):
                loss_BC = tf.nn.sigmoid_cross_entropy_with_logits(truth_BC, logits_BC)
        right_BC = tf.cast(tf.equal(logits_BC >= 0, truth_BC >= 0.5), tf.float32)
        weight_sum = tf.reduce_sum(weight_B)
        return LossTerms(
            loss_sum=tf.reduce_sum(tf.reduce_mean(loss_BC, axis=-1) * weight_B),
            weight_sum=weight_sum,
            metrics={"binary_accuracy": (tf.reduce_sum(tf.reduce_mean(right_BC, axis=-1) * weight_B), weight_sum)},
        )

    def fit_after(self, features: np.ndarray, examples: Sequence[Example]) -> dict[str, Any]:
        """See `FittedHead`: the thresholds of the greatest F1."""
        if not self._tuned or not len(examples):
            return {}
        found = best_thresholds(self._scores(features), truth_rows(examples, self.classes))
        self.thresholds = tuple(float(f"{threshold:.6g}") for threshold in found)
        return {"thresholds": list(self.thresholds)}

    def evaluate(self, features: np.ndarray, examples: Sequence[Example]) -> dict[str, Any]:
        """map, macro_f1, micro_f1, exact, per_class (`finetune.metrics.labels`) of features float32 `[N, D]`, at the
        head's thresholds. Raises InvalidLabels."""
        truth_NC, score_NC = truth_rows(examples, self.classes), self._scores(features)
        metrics = label_metrics(score_NC, truth_NC, self.classes, self.thresholds)
        said_NC = score_NC >= np.asarray(self.thresholds)
        if len(np.unique(said_NC, axis=0)) == 1 and len(np.unique(truth_NC, axis=0)) > 1:
            said = ", ".join(self.classes[place] for place in np.flatnonzero(said_NC[0])) or "nothing"
            metrics["warnings"] = [
                f"every image is said to show {said:.200}, whatever it shows: lower train.optimizer.learning_rate, set "
                "head.arguments.positive_weights=balanced, or see with --overfit-batch whether it can learn at all"
            ]
        return metrics

    def shown(self, features: np.ndarray, examples: Sequence[Example]) -> list[Shown]:
        """See `ShowsPredictions`."""
        score_NC, truth_NC = self._scores(features), truth_rows(examples, self.classes)
        own_NC = np.where(truth_NC == 1, score_NC, 1 - score_NC)
        goodness_N = np.log(np.maximum(own_NC, 1e-12)).mean(axis=1)
        return [
            Shown(
                said=", ".join(f"{self.classes[c]} {row[c]:.2f}" for c in self.said(row)) or "none",
                truth=", ".join(self.classes[c] for c in np.flatnonzero(truth)) or "none",
                goodness=float(goodness),
            )
            for row, truth, goodness in zip(score_NC, truth_NC, goodness_N, strict=True)
        ]

    def class_scores(
        self, features: np.ndarray, examples: Sequence[Example]
    ) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
        """For curves: names, truth bool [N, C], probability [N, C]."""
        return self.classes, truth_rows(examples, self.classes) == 1, self._scores(features)

    def said(self, score_C: np.ndarray) -> list[int]:
        """The classes at or above their threshold, the most probable first."""
        yes = np.flatnonzero(score_C >= np.asarray(self.thresholds))
        return [int(place) for place in yes[np.argsort(-score_C[yes], kind="stable")]]

    def _scores(self, features: np.ndarray) -> np.ndarray:
        return self.outputs_of(features, self.probabilities)
