"""Classifier: dense layers over the feature vector, softmax over exclusive classes.

Takes feature vectors and labels. Gives cross-entropy, accuracy and calibration. Next: `finetune.training.trainer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from finetune.data.source import Example
from finetune.metrics.calibration import abstention, calibration_error, fit_temperature
from finetune.metrics.classes import classification_metrics
from finetune.metrics.confusion import confusion
from finetune.models.heads.dense_arguments import NoClassNames, label_rows
from finetune.models.heads.dense_layer import DenseLayer
from finetune.models.heads.head import LossTerms, Shown

if TYPE_CHECKING:
    from finetune.models.heads.classifier import ClassifierArguments


class ClassifierLayer(DenseLayer):
    """`[B, D]` → logits `[B, C]`. Tensor names: `hidden_<i>/{kernel,bias}`, `logits/{kernel,bias}`.

    Attributes:
        temperature: what logits are divided by before the softmax where people see it; the loss doesn't know it.
        abstain_below: a confidence below it is not to be relied on; None where nobody decided.
    """

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
        super().__init__(
            name="classifier",
            arguments=arguments,
            outputs=num_classes,
            output_name="logits",
            seed=seed,
            feature_dim=feature_dim,
        )
        self.num_classes = num_classes
        self.classes = classes
        self.class_offset = class_offset
        self.label_smoothing = arguments.label_smoothing
        self.focal_gamma = arguments.focal_gamma
        self.temperature = arguments.temperature or 1.0
        self.abstain_below = arguments.abstain_below
        self._arguments = arguments
        self._unreached = False  # no confidence is as precise as was asked
        self.build((None, feature_dim))

    def probabilities(self, feature_BD: Any) -> tf.Tensor:
        """`[B, C]`, each row sums to 1; column `class_offset + i` belongs to `classes[i]`."""
        return self._softmax(self.logits(feature_BD))

    def loss(self, features: Mapping[str, Any], targets: Mapping[str, Any], *, training: bool) -> LossTerms:
        """Cross-entropy in nats. `targets`: label int32 `[B]`, weight float32 `[B]`; for training only `class_weight`
        float32 `[B]`. See `HeadLayer`.

        With class weights the mean is over their sum, so that a rare class doesn't raise the rate.
        """
        logits_BC = self.logits(features["feature_vector"], training=training)
        label_B, weight_B = targets["label"], tf.cast(targets["weight"], tf.float32)
        if self.class_offset:
            label_B = label_B + self.class_offset
        # Smoothing is for learning only: the evaluated loss is that of the plain labels, comparable between runs.
        smoothing = self.label_smoothing if training else 0.0
        truth_BC = tf.one_hot(label_B, self.num_classes) * (1.0 - smoothing) + smoothing / self.num_classes
        if training and self.focal_gamma:
            loss_B = _focal_loss(truth_BC, logits_BC, self.focal_gamma)
        else:
            with tf.name_scope("loss"):
                loss_B = tf.nn.softmax_cross_entropy_with_logits(labels=truth_BC, logits=logits_BC)
        right_B = tf.cast(tf.equal(tf.argmax(logits_BC, axis=-1, output_type=tf.int32), label_B), tf.float32)
        accuracy = (tf.reduce_sum(right_B * weight_B), tf.reduce_sum(weight_B))
        if training and "class_weight" in targets:
            weight_B = weight_B * tf.cast(targets["class_weight"], tf.float32)
        return LossTerms(
            loss_sum=tf.reduce_sum(loss_B * weight_B),
            weight_sum=tf.reduce_sum(weight_B),
            metrics={"accuracy": accuracy},
        )

    def fit_after(self, features: np.ndarray, examples: Sequence[Example]) -> dict[str, Any]:
        """See `FittedHead`: `temperature`, and `abstain_below` where some confidence reaches the precision."""
        arguments = self._arguments
        if not arguments.calibrate or not len(examples):
            return {}
        logit_NC, label_N = self._logits_and_labels(features, examples)
        found: dict[str, Any] = {}
        if arguments.temperature is None:
            self.temperature = found["temperature"] = fit_temperature(logit_NC, label_N)
        if arguments.abstain_below is None:
            served_NC = np.asarray(self._softmax(logit_NC))
            right_N = logit_NC.argmax(axis=1) == label_N
            self.abstain_below = abstention(served_NC.max(axis=1), right_N, arguments.abstain_precision).threshold
            self._unreached = self.abstain_below is None
            if self.abstain_below is not None:
                found["abstain_below"] = self.abstain_below
        return found

    def evaluate(self, features: np.ndarray, examples: Sequence[Example]) -> dict[str, Any]:
        """accuracy, top_5, macro_f1, per_class (`finetune.metrics.classes`) of features float32 `[N, D]`; ece, of the
        scores as they are served, and ece_uncalibrated, of the plain softmax; confusion (`finetune.metrics.confusion`);
        with an abstain threshold coverage, the share of examples it lets through, and the accuracy of those.

        Raises NoClassNames, InvalidLabels.
        """
        logit_NC, label_N = self._logits_and_labels(features, examples)
        # Outputs before the first class (a background class) compete like the others, but no example has them.
        names = tuple(f"<{place}>" for place in range(self.class_offset)) + (self.classes or ())
        metrics = classification_metrics(tf.nn.softmax(logit_NC).numpy(), label_N, names)
        served_N = np.asarray(self._softmax(logit_NC)).max(axis=1)
        right_N = logit_NC.argmax(axis=1) == label_N
        metrics["ece_uncalibrated"] = metrics["ece"]
        metrics["ece"] = calibration_error(served_N, right_N) if len(examples) else 0.0
        metrics["confusion"] = confusion(logit_NC.argmax(axis=1), label_N, names)
        if self.abstain_below is not None and len(examples):
            sure_N = served_N >= self.abstain_below
            metrics["coverage"] = float(sure_N.mean())
            metrics["covered_accuracy"] = float(right_N[sure_N].mean()) if sure_N.any() else None
        if warnings := self._warnings(logit_NC.argmax(axis=1), label_N, names):
            metrics["warnings"] = warnings
        return metrics

    def _warnings(self, said_N: np.ndarray, label_N: np.ndarray, names: Sequence[str]) -> list[str]:
        found = []
        if len(np.unique(said_N)) == 1 and len(np.unique(label_N)) > 1:
            found.append(
                f"every image is said to be {names[int(said_N[0])]!r:.80}, whatever it shows: lower "
                "train.optimizer.learning_rate, look at the class sizes, or see with --overfit-batch whether it can "
                "learn at all"
            )
        if self._unreached:
            share = self._arguments.abstain_precision
            found.append(f"no confidence is right {share:.0%} of the time: no abstain threshold is stored")
        return found

    def shown(self, features: np.ndarray, examples: Sequence[Example]) -> list[Shown]:
        """See `ShowsPredictions`: by the probability of the true class."""
        logit_NC, label_N = self._logits_and_labels(features, examples)
        served_NC = np.asarray(self._softmax(logit_NC))
        names = tuple(f"<{place}>" for place in range(self.class_offset)) + (self.classes or ())
        return [
            Shown(
                said=f"{names[int(row.argmax())]} {row.max():.2f}",
                truth=f"{names[label]} {row[label]:.2f}",
                goodness=float(row[label]),
            )
            for row, label in zip(served_NC, label_N.tolist(), strict=True)
        ]

    def class_scores(
        self, features: np.ndarray, examples: Sequence[Example]
    ) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
        """Each class against all others, for curves: names, truth bool [N, C], probability [N, C]."""
        logit_NC, label_N = self._logits_and_labels(features, examples)
        truth_NC = label_N[:, np.newaxis] == np.arange(logit_NC.shape[1])
        first = self.class_offset
        return self.classes or (), truth_NC[:, first:], np.asarray(self._softmax(logit_NC))[:, first:]

    def _softmax(self, logits_BC: Any) -> tf.Tensor:
        return tf.nn.softmax(logits_BC if self.temperature == 1.0 else logits_BC / self.temperature)

    def _logits_and_labels(self, features: np.ndarray, examples: Sequence[Example]) -> tuple[np.ndarray, np.ndarray]:
        """float32 [N, C] and the places of the true classes among the outputs."""
        if self.classes is None:
            raise NoClassNames(
                "this classifier's version has no class names, so labels cannot be compared with its outputs",
                hint="import it with --classes FILE",
            )
        label_N = label_rows(examples, self.classes) + self.class_offset
        return self.outputs_of(features, self.logits), label_N


def _focal_loss(truth_BC: tf.Tensor, logits_BC: tf.Tensor, gamma: float) -> tf.Tensor:
    """Σ_c truth · (1 − p)^γ · −ln p (Lin et al. 2017), with soft truths too."""
    log_p_BC = tf.nn.log_softmax(logits_BC)
    # The gradient of x^γ at 0 is not finite for γ < 1, and float32 gets to p = 1.
    rest_BC = tf.maximum(1.0 - tf.exp(log_p_BC), 1e-7)
    return -tf.reduce_sum(truth_BC * rest_BC**gamma * log_p_BC, axis=-1)
