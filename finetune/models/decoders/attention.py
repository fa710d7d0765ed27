"""Soft attention over the places of a feature map: Show, Attend and Tell (Xu et al. 2015, arXiv:1502.03044).

Takes a feature map and a decoder's state. Gives what the state looks at, and where. Next:
`finetune.models.decoders.decoder`.

Each place of the map is embedded once an image; a place's weight is a softmax over score · tanh(key + query) (Bahdanau
et al. 2014, arXiv:1409.0473). As in the paper's "doubly stochastic" attention a gate from the state, 0 to 1, says how
much is taken of what was gathered; the other half, the regulariser, is `unevenness`.

Shapes: B images, N rows (K of each image, an image's rows together), R places, C channels, E embedding, A attention.
"""

from __future__ import annotations

from collections.abc import Callable

import keras
import tensorflow as tf

Memory = tuple[tf.Tensor, ...]


class SoftAttention:
    """Its variables are in `layers`. Seeds `seed` to `seed + 4` decide their fresh values."""

    def __init__(self, *, embedding: int, attention: int, units: int, seed: int) -> None:
        """`units`: size of the states that ask."""
        self._sizes = (embedding, attention, units)

        def dense(size: int, offset: int, name: str, *, bias: bool = True) -> keras.layers.Dense:
            initializer = keras.initializers.GlorotUniform(seed=seed + offset)
            return keras.layers.Dense(size, kernel_initializer=initializer, use_bias=bias, name=name)

        self._places = dense(embedding, 0, "place_embedding")
        self._keys = dense(attention, 1, "attention_key")
        self._query = dense(attention, 2, "attention_query", bias=False)
        self._score = dense(1, 3, "attention_score", bias=False)
        self._gate = dense(1, 4, "attention_gate")
        self.layers: list[keras.layers.Layer] = [self._places, self._keys, self._query, self._score, self._gate]

    def build(self, channels: int) -> None:
        embedding, attention, units = self._sizes
        self._places.build((None, None, channels))
        self._keys.build((None, None, embedding))
        self._query.build((None, units))
        self._score.build((None, None, attention))
        self._gate.build((None, units))

    def look(self, place_BRC: tf.Tensor, drop: Callable[[tf.Tensor], tf.Tensor]) -> Memory:
        """What is computed once an image. `drop` is the dropout of embeddings, the identity outside training."""
        place_BRE = drop(self._places(place_BRC))
        return place_BRE, self._keys(place_BRE)

    def attend(self, query_NU: tf.Tensor, memory: Memory) -> tf.Tensor:
        """What the states look at: (gathered [N, E], weights [N, R], which add up to 1)."""
        place_BRE, key_BRA = memory[:2]
        images, places, size = tf.shape(place_BRE)[0], key_BRA.shape[1], key_BRA.shape[2]
        query_BKA = tf.reshape(self._query(query_NU), [images, -1, size])
        mixed_BKRA = tf.tanh(key_BRA[:, tf.newaxis] + query_BKA[:, :, tf.newaxis])
        # One product, not the Dense layer: a matrix of one column is slow on more than two axes.
        score_X1 = tf.matmul(tf.reshape(mixed_BKRA, [-1, size]), tf.convert_to_tensor(self._score.kernel))
        weight_BKR = tf.nn.softmax(tf.reshape(score_X1, [images, -1, places]))
        gathered_NE = tf.reshape(tf.matmul(weight_BKR, place_BRE), [-1, place_BRE.shape[2]])
        return tf.sigmoid(self._gate(query_NU)) * gathered_NE, tf.reshape(weight_BKR, [-1, places])


def unevenness(weight_BTR: tf.Tensor, real_BT: tf.Tensor) -> tf.Tensor:
    """[B]: the doubly stochastic regulariser, the places' mean of (1 − Σ_t weight)²: a caption shall in the end have
    looked everywhere. `real_BT` leaves out what lies behind the caption's end."""
    looked_BR = tf.reduce_sum(weight_BTR * tf.cast(real_BT, tf.float32)[..., tf.newaxis], axis=1)
    return tf.reduce_mean(tf.square(1.0 - looked_BR), axis=-1)
