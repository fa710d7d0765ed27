"""Embedding head: dense layers over the feature vector, the result brought to length 1.

Takes feature vectors and class labels. Gives the supervised contrastive or the ArcFace loss, recall@k and kNN accuracy.
Next: `finetune.training.trainer`, `finetune.predictor`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
import tensorflow as tf

from finetune.data.source import Example
from finetune.metrics.retrieval import retrieval_metrics
from finetune.models.heads.dense_arguments import require_labels
from finetune.models.heads.dense_layer import DenseLayer
from finetune.models.heads.head import LossTerms

if TYPE_CHECKING:
    from finetune.models.heads.embedding import EmbeddingArguments

_COLLAPSED = 0.999  # length of the vectors' mean


class EmbeddingLayer(DenseLayer):
    """`[B, D]` → `[B, dim]`. Tensor names: `hidden_<i>/{kernel,bias}`, `embedding/{kernel,bias}`; with the ArcFace loss
    `centres` [C, dim]."""

    def __init__(self, *, arguments: EmbeddingArguments, num_classes: int, feature_dim: int, seed: int) -> None:
        super().__init__(
            name="embedding_head",
            arguments=arguments,
            outputs=arguments.dim,
            output_name="embedding",
            seed=seed,
            feature_dim=feature_dim,
        )
        self.dim = arguments.dim
        self.num_classes = num_classes
        self._arguments = arguments
        self.centres: Any = None
        if arguments.loss == "arcface":
            self.centres = self.add_weight(
                name="centres",
                shape=(num_classes, arguments.dim),
                initializer=keras.initializers.GlorotUniform(seed=seed + 1000),
            )
        self.build((None, feature_dim))

    def call(self, feature_BD: Any, training: bool = False) -> Any:
        return self.embeddings(feature_BD, training=training)

    def embeddings(self, feature_BD: Any, *, training: bool = False) -> tf.Tensor:
        """`[B, dim]`, each row of length 1."""
        return tf.math.l2_normalize(self.logits(feature_BD, training=training), axis=-1)

    def loss(self, features: Mapping[str, Any], targets: Mapping[str, Any], *, training: bool) -> LossTerms:
        """`targets`: label int32 [B], weight [B]. See `HeadLayer`.

        The contrastive loss depends on who shares the batch (with several replicas: the replica's part of it); metrics
        don't, and `with_partner` is the share of images that had another of their class in it. Images without one, and
        for ArcFace those of classes that training hasn't seen, have no loss.
        """
        unit_BD = self.embeddings(features["feature_vector"], training=training)
        label_B, weight_B = targets["label"], tf.cast(targets["weight"], tf.float32)
        if self._arguments.loss == "arcface":
            known_B = tf.cast(label_B < self.num_classes, tf.float32) * weight_B
            loss_B = self._arcface(unit_BD, tf.minimum(label_B, self.num_classes - 1), training)
            return LossTerms(loss_sum=tf.reduce_sum(loss_B * known_B), weight_sum=tf.reduce_sum(known_B), metrics={})
        loss_B, partnered_B = contrastive_loss(unit_BD, label_B, weight_B, self._arguments.contrastive_temperature)
        asked_B = partnered_B * weight_B
        return LossTerms(
            loss_sum=tf.reduce_sum(loss_B * asked_B),
            weight_sum=tf.reduce_sum(asked_B),
            metrics={"with_partner": (tf.reduce_sum(asked_B), tf.reduce_sum(weight_B))},
        )

    def _arcface(self, unit_BD: tf.Tensor, label_B: tf.Tensor, training: bool) -> tf.Tensor:
        """Cross-entropy of scale · cos θ, in training with θ + margin for the true class."""
        cosine_BC = tf.matmul(unit_BD, tf.math.l2_normalize(self.centres.value, axis=-1), transpose_b=True)
        if training and self._arguments.margin:
            own_B1 = tf.gather(cosine_BC, label_B[:, tf.newaxis], batch_dims=1)
            change_B1 = with_margin(own_B1, self._arguments.margin) - own_B1
            cosine_BC += tf.one_hot(label_B, self.num_classes) * change_B1
        return tf.nn.sparse_softmax_cross_entropy_with_logits(label_B, self._arguments.scale * cosine_BC)

    def evaluate(self, features: np.ndarray, examples: Sequence[Example]) -> dict[str, Any]:
        """recall_at_1, recall_at_5, recall_at_10, knn_accuracy (`finetune.metrics.retrieval`) among the split's own
        images, of whatever classes. Raises InvalidLabels."""
        require_labels(examples)
        unit_ND = self.outputs_of(features, self.embeddings)
        metrics = retrieval_metrics(unit_ND, [str(example.label) for example in examples])
        # The length of the mean of unit vectors: 1 where they all point the same way.
        if len(examples) > 1 and float(np.linalg.norm(unit_ND.mean(axis=0))) > _COLLAPSED:
            metrics["warnings"] = [
                "every image has nearly the same vector, whatever it shows: lower train.optimizer.learning_rate, raise "
                "train.batch_size or head.arguments.contrastive_temperature"
            ]
        return metrics


def contrastive_loss(
    unit_BD: tf.Tensor, label_B: tf.Tensor, weight_B: tf.Tensor, temperature: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Khosla et al. 2020, equation 2: for each anchor the mean over its positives of −ln of the positive's share among
    all others. Rows of weight 0 are nobody's others.

    Returns: loss [B], 0 for anchors without a positive; 1 for those that have one [B], else 0.
    """
    here_B = tf.cast(weight_B > 0, tf.float32)
    other_BB = here_B[tf.newaxis, :] * (1.0 - tf.eye(tf.shape(unit_BD)[0]))
    positive_BB = other_BB * tf.cast(tf.equal(label_B[:, tf.newaxis], label_B[tf.newaxis, :]), tf.float32)
    likeness_BB = tf.matmul(unit_BD, unit_BD, transpose_b=True) / temperature
    # Masked by a large number rather than infinity, whose gradient is NaN where a row has no others at all.
    total_B = tf.reduce_logsumexp(tf.where(other_BB > 0, likeness_BB, -1e9), axis=1)
    count_B = tf.reduce_sum(positive_BB, axis=1)
    mean_B = tf.reduce_sum(positive_BB * likeness_BB, axis=1) / tf.maximum(count_B, 1.0)
    partnered_B = here_B * tf.cast(count_B > 0, tf.float32)
    return tf.where(partnered_B > 0, total_B - mean_B, 0.0), partnered_B


def with_margin(cosine: tf.Tensor, margin: float) -> tf.Tensor:
    """cos(θ + margin), and beyond θ = π − margin, where that would rise again, a line that goes on falling (as the
    authors' code has it)."""
    sine = tf.sqrt(tf.maximum(1.0 - tf.square(cosine), 1e-7))
    beyond = cosine - math.sin(math.pi - margin) * margin
    turned = cosine * math.cos(margin) - sine * math.sin(margin)
    return tf.where(cosine > math.cos(math.pi - margin), turned, beyond)
