"""A head small enough to do by hand, and quick to trace: y = w·x with a squared error."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.data.queue import training_batches
from finetune.data.source import Example
from finetune.models.heads.head import LossTerms, TargetTable
from finetune.models.network import HeadNetwork
from finetune.spec import TrainConfig
from finetune.training.split_data import SplitData
from finetune.training.trainer import Trainer


class Line(keras.layers.Layer):
    """`wild`: the share of noise that training adds to the inputs, from a generator of its own (like dropout)."""

    def __init__(self, *, wild: float = 0.0, seed: int = 1) -> None:
        super().__init__(name="line")
        self.w = self.add_weight(name="w", shape=(2,), initializer="ones")
        self.wild = wild
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    def loss(self, features: Any, targets: Any, *, training: bool) -> LossTerms:
        x_BD = features["feature_vector"]
        if training and self.wild:
            x_BD += self.wild * keras.random.normal(tf.shape(x_BD), seed=self.seed_generator)
        error_B = tf.linalg.matvec(x_BD, self.w.value) - targets["y"]
        weight_B = targets["weight"]
        return LossTerms(loss_sum=tf.reduce_sum(weight_B * error_B**2), weight_sum=tf.reduce_sum(weight_B), metrics={})

    def evaluate(self, features: np.ndarray, examples: Any) -> dict[str, Any]:
        return {"mean": float(np.mean(features @ self.w.numpy())), "warnings": ["all lines are straight"]}


class LineTask:
    """Twenty points near the line 2·x₀ − x₁."""

    def __init__(self, *, wild: float = 0.1) -> None:
        self._wild = wild
        random = np.random.default_rng(0)
        x_ND = random.standard_normal((20, 2)).astype(np.float32)
        y_N = (x_ND @ [2.0, -1.0] + 0.1 * random.standard_normal(20)).astype(np.float32)
        self.data = SplitData.join(
            name="validation",
            examples=tuple(Example(id=str(n)) for n in range(20)),
            source_index=range(20),
            features_NVD=x_ND[:, np.newaxis, :],
            row_of=np.arange(20),
            table=TargetTable(image_index=np.arange(20, dtype=np.int32), arrays={"y": y_N}),
        )

    def head(self, seed: int = 1) -> Line:
        return Line(wild=self._wild, seed=seed)

    def trainer(self, config: TrainConfig, seed: int = 1) -> Trainer:
        return Trainer(network=HeadNetwork(self.head(seed)), config=config, strategy=tf.distribute.get_strategy())

    def batches(self, start_step: int = 0) -> Any:
        return iter(
            training_batches(
                table=self.data.table, features=self.data.features_NVD, batch_size=8, seed=1, start_step=start_step
            )
        )
