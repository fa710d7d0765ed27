"""Optimizers, learning-rate schedules and the moving average of weights, all as functions of the global step.

Takes an OptimizerConfig. Gives a Keras optimizer and pure functions. Next: `finetune.training.trainer`.

Keras' own options for clipping, accumulation and moving averages are not used: they clip before gradients are summed
over replicas, or fail under some strategies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from finetune.spec import OptimizerConfig

OPTIMIZERS: dict[str, Callable[[OptimizerConfig], Any]] = {
    "sgd": lambda config: keras.optimizers.SGD(weight_decay=_decay(config), name="optimizer"),
    "momentum": lambda config: keras.optimizers.SGD(
        momentum=config.momentum, weight_decay=_decay(config), name="optimizer"
    ),
    "adam": lambda config: keras.optimizers.Adam(weight_decay=_decay(config), name="optimizer"),
    # With the same decoupled decay for all, Keras' AdamW is its Adam; the name is kept for those who look for it.
    "adamw": lambda config: keras.optimizers.AdamW(weight_decay=config.weight_decay, name="optimizer"),
    # As in TF-Slim's training script, RMSprop has momentum.
    "rmsprop": lambda config: keras.optimizers.RMSprop(
        momentum=config.momentum, weight_decay=_decay(config), name="optimizer"
    ),
}


def _decay(config: OptimizerConfig) -> float | None:
    return config.weight_decay or None


def make_optimizer(config: OptimizerConfig, variables: Sequence[Any]) -> Any:
    """A built Keras optimizer for `variables`; its learning rate is a variable that the step sets.

    Weight decay is decoupled (Loshchilov and Hutter 2019, arXiv:1711.05101): variable −= rate × decay × variable, for
    every optimizer alike. Biases and other variables of fewer than two dimensions are never decayed.
    """
    optimizer = OPTIMIZERS[config.name](config)
    if config.weight_decay:
        optimizer.exclude_from_weight_decay(var_list=[v for v in variables if len(v.shape) < 2])
    optimizer.build(list(variables))
    return optimizer


def learning_rate(config: OptimizerConfig, *, steps: int, step: tf.Tensor) -> tf.Tensor:
    """The rate of the update that takes the global step from `step` to `step` + 1, a float32 scalar.

    Warm-up is linear and reaches the full rate with update `warmup_steps`. The decays are functions of the step:

    - cosine (arXiv:1608.03983, no restarts): from the end of the warm-up to 0 at `decay_steps`;
    - exponential: rate × decay_rate ^ (step / decay_steps);
    - step: rate × decay_rate ^ floor(step / decay_steps).

    `decay_steps` left out means all `steps`.
    """
    position = tf.cast(step, tf.float32)
    whole = float(config.decay_steps or steps)
    factor = _FACTORS[config.schedule](config, position, whole)
    if config.warmup_steps:
        factor = factor * tf.minimum(1.0, (position + 1.0) / float(config.warmup_steps))
    return tf.constant(config.learning_rate, tf.float32) * factor


def _cosine(config: OptimizerConfig, position: tf.Tensor, whole: float) -> tf.Tensor:
    length = max(whole - config.warmup_steps, 1.0)
    share = tf.clip_by_value((position - float(config.warmup_steps)) / length, 0.0, 1.0)
    return 0.5 * (1.0 + tf.cos(math.pi * share))


_FACTORS: dict[str, Callable[[OptimizerConfig, tf.Tensor, float], tf.Tensor]] = {
    "constant": lambda config, position, whole: tf.ones_like(position),
    "cosine": _cosine,
    "exponential": lambda config, position, whole: tf.pow(config.decay_rate, position / whole),
    "step": lambda config, position, whole: tf.pow(config.decay_rate, tf.floor(position / whole)),
}


def ema_decay(decay: float, step: tf.Tensor) -> tf.Tensor:
    """How much of the moving average stays after the update that takes the global step from `step` to `step` + 1.

    min(decay, (1 + t) / (10 + t)), as tf.train.ExponentialMovingAverage does with `num_updates`: without it the random
    first weights would weigh in the average for 1 / (1 − decay) steps.
    """
    updates = tf.cast(step, tf.float32) + 1.0
    return tf.minimum(decay, (1.0 + updates) / (10.0 + updates))
