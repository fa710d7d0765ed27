"""Configure: what a process sets in TensorFlow before it makes anything.

Takes a TrainConfig. Gives nothing. Next: `finetune.training.group`, `finetune.training.prepare`.
"""

from __future__ import annotations

import keras
import tensorflow as tf

from finetune.spec import TrainConfig


def configure(train: TrainConfig) -> None:
    """Seeds always; with train.deterministic the same spec on the same machine gives the same bits."""
    keras.utils.set_random_seed(train.seed)
    if train.deterministic:
        tf.config.experimental.enable_op_determinism()
