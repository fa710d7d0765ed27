"""The layer of heads that are dense layers over the feature vector. Subclassed by classifier, multi-label, embedding.

Takes feature vectors. Gives the last dense layer's outputs. Next: the subclass's loss.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.models.heads.dense_arguments import DenseArguments

_ROWS = 1024  # feature vectors a call


class DenseLayer(keras.Layer):
    """`[B, D]` → `[B, outputs]`. Tensor names: `hidden_<i>/{kernel,bias}`, `<output_name>/{kernel,bias}`."""

    def __init__(
        self, *, name: str, arguments: DenseArguments, outputs: int, output_name: str, seed: int, feature_dim: int
    ) -> None:
        super().__init__(name=name)
        self.feature_dim = feature_dim
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
            for place, share in enumerate(arguments.dropout_shares)
        ]
        share = arguments.feature_dropout  # no layer without one: its generator's state would be in every Checkpoint
        self.feature_dropout = keras.layers.Dropout(share, seed=seed + 2000, name="feature_dropout") if share else None
        self.output_layer = keras.layers.Dense(
            outputs, kernel_initializer=keras.initializers.GlorotUniform(seed=seed), name=output_name
        )

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
        """`[B, outputs]`, linear."""
        x = feature_BD
        if self.feature_dropout is not None:
            x = self.feature_dropout(x, training=training)
        for layer, dropout in zip(self.hidden, self.dropouts, strict=True):
            x = dropout(layer(x), training=training)
        return self.output_layer(x)

    def outputs_of(self, feature_ND: np.ndarray, function: Any) -> np.ndarray:
        """`function`'s rows for any number of feature vectors, a thousand at a time."""
        starts = range(0, max(len(feature_ND), 1), _ROWS)
        return np.concatenate([np.asarray(function(feature_ND[start : start + _ROWS])) for start in starts])
