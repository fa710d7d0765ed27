"""The words of a decoder: their embeddings going in, and the logits coming out, which may share one matrix.

Takes word numbers, or outputs of a decoder. Gives embeddings, or logits. Next:
`finetune.models.heads.captioner_layer`.
"""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf


class TiedOutput(keras.layers.Layer):
    """Logits by the words' own embeddings (Press and Wolf 2016, arXiv:1608.05859): a projection from the decoder's size
    to the embeddings', then their product with every word's, then a bias a word."""

    def __init__(self, *, words: int, embedding: int, kernel_initializer: Any, name: str) -> None:
        super().__init__(name=name)
        self._shape = (words, embedding)
        self._initializer = kernel_initializer

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        words, embedding = self._shape
        self.kernel = self.add_weight(
            shape=(input_shape[-1], embedding), initializer=self._initializer, name="projection"
        )
        self.bias = self.add_weight(shape=(words,), initializer="zeros", name="bias")
        self.built = True

    def logits(self, output_NU: tf.Tensor, embedding_VE: tf.Tensor) -> tf.Tensor:
        """[N, V]."""
        projected_NE = tf.matmul(output_NU, tf.convert_to_tensor(self.kernel))
        return tf.matmul(projected_NE, embedding_VE, transpose_b=True) + tf.convert_to_tensor(self.bias)


@tf.custom_gradient
def rows(table_VE: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """`tf.gather` with a dense gradient.

    A sparse one (IndexedSlices) would make every optimizer, clip and all-reduce a case of its own: Adam's moments of
    words that a batch doesn't hold would not decay.
    """
    size = tf.shape(table_VE)[0]

    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None]:
        flat_NE = tf.reshape(upstream, [-1, table_VE.shape[-1]])
        return tf.math.unsorted_segment_sum(flat_NE, tf.reshape(indices, [-1]), size), None

    return tf.gather(table_VE, indices), gradient
