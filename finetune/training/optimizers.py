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
        momentum=config.momentum, nesterov=config.nesterov, weight_decay=_decay(config), name="optimizer"
    ),
    "adam": lambda config: keras.optimizers.Adam(
        weight_decay=_decay(config), name="optimizer", **_given(config, "beta_1", "beta_2", "epsilon")
    ),
    # With the same decoupled decay for all, Keras' AdamW is its Adam; the name is kept for those who look for it.
    "adamw": lambda config: keras.optimizers.AdamW(
        weight_decay=config.weight_decay, name="optimizer", **_given(config, "beta_1", "beta_2", "epsilon")
    ),
    # As in TF-Slim's training script, RMSprop has momentum; the script's epsilon is 1.0, Keras' 1e-7. Both add it
    # below the root.
    "rmsprop": lambda config: keras.optimizers.RMSprop(
        momentum=config.momentum, weight_decay=_decay(config), name="optimizer", **_given(config, "rho", "epsilon")
    ),
    # You et al. 2019, arXiv:1904.00962; but the decay is decoupled as everywhere, not within the trust ratio.
    "lamb": lambda config: keras.optimizers.Lamb(
        weight_decay=_decay(config), name="optimizer", **_given(config, "beta_1", "beta_2", "epsilon")
    ),
}


def _given(config: OptimizerConfig, *names: str) -> dict[str, float]:
    """The arguments that the spec sets; Keras has defaults for the others."""
    return {name: getattr(config, name) for name in names if getattr(config, name) is not None}


def _decay(config: OptimizerConfig) -> float | None:
    return config.weight_decay or None


def make_optimizer(config: OptimizerConfig, variables: Sequence[Any]) -> Any:
    """A built Keras optimizer for `variables`; its learning rate is a variable that the step sets.

    Weight decay is decoupled (Loshchilov and Hutter 2019, arXiv:1711.05101): variable −= rate × decay × variable, for
    every optimizer alike. Biases and other variables of fewer than two dimensions are never decayed.

    Takes gradients that are summed over replicas already: Keras would sum them once more, which costs as much as the
    first time and, without clipping in between, is what its users want.
    """
    optimizer = OPTIMIZERS[config.name](config)
    optimizer._all_reduce_sum_gradients = list
    if config.weight_decay:
        optimizer.exclude_from_weight_decay(var_list=[v for v in variables if len(v.shape) < 2])
    optimizer.build(list(variables))
    return optimizer


def learning_rate(config: OptimizerConfig, *, steps: int, step: tf.Tensor) -> tf.Tensor:
    """The rate of the update that takes the global step from `step` to `step` + 1, a float32 scalar.

    Warm-up is linear and reaches the full rate with update `warmup_steps`. The decays are functions of the step:

    - cosine (arXiv:1608.03983, no restarts): from the end of the warm-up to `end_learning_rate` at `decay_steps`;
    - polynomial: the same way, the rest to go falling as (1 − share) ^ power;
    - exponential: rate × decay_rate ^ (step / decay_steps);
    - step: rate × decay_rate ^ floor(step / decay_steps);
    - piecewise: rate × decay_rate ^ (how many of `boundaries` the step has reached).

    `decay_steps` left out means all `steps`.
    """
    position = tf.cast(step, tf.float32)
    whole = float(config.decay_steps or steps)
    factor = _FACTORS[config.schedule](config, position, whole)
    if config.warmup_steps:
        factor = factor * tf.minimum(1.0, (position + 1.0) / float(config.warmup_steps))
    return tf.constant(config.learning_rate, tf.float32) * factor


def _share(config: OptimizerConfig, position: tf.Tensor, whole: float) -> tf.Tensor:
    """How much of the way from the end of the warm-up to `whole` lies behind, 0 to 1."""
    length = max(whole - config.warmup_steps, 1.0)
    return tf.clip_by_value((position - float(config.warmup_steps)) / length, 0.0, 1.0)


def _to_the_end(config: OptimizerConfig, factor: tf.Tensor) -> tf.Tensor:
    """Lets what falls from 1 to 0 end at `end_learning_rate`."""
    end = config.end_learning_rate / config.learning_rate
    return end + (1.0 - end) * factor if end else factor


def _cosine(config: OptimizerConfig, position: tf.Tensor, whole: float) -> tf.Tensor:
    return _to_the_end(config, 0.5 * (1.0 + tf.cos(math.pi * _share(config, position, whole))))


def _polynomial(config: OptimizerConfig, position: tf.Tensor, whole: float) -> tf.Tensor:
    return _to_the_end(config, tf.pow(1.0 - _share(config, position, whole), config.power))


def _piecewise(config: OptimizerConfig, position: tf.Tensor, whole: float) -> tf.Tensor:
    del whole
    reached = tf.reduce_sum(tf.cast(position >= tf.constant(config.boundaries, tf.float32), tf.float32))
    return tf.pow(config.decay_rate, reached)


_FACTORS: dict[str, Callable[[OptimizerConfig, tf.Tensor, float], tf.Tensor]] = {
    "constant": lambda config, position, whole: tf.ones_like(position),
    "cosine": _cosine,
    "exponential": lambda config, position, whole: tf.pow(config.decay_rate, position / whole),
    "step": lambda config, position, whole: tf.pow(config.decay_rate, tf.floor(position / whole)),
    "polynomial": _polynomial,
    "piecewise": _piecewise,
}


def ema_decay(decay: float, step: tf.Tensor) -> tf.Tensor:
    """How much of the moving average stays after the update that takes the global step from `step` to `step` + 1.

    min(decay, (1 + t) / (10 + t)), as tf.train.ExponentialMovingAverage does with `num_updates`: without it the random
    first weights would weigh in the average for 1 / (1 − decay) steps.
    """
    updates = tf.cast(step, tf.float32) + 1.0
    return tf.minimum(decay, (1.0 + updates) / (10.0 + updates))
