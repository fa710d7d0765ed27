"""Learning-rate schedules, decoupled weight decay and the moving average's decay, by value."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.spec import OptimizerConfig
from finetune.training.optimizers import OPTIMIZERS, ema_decay, learning_rate, make_optimizer


def rate(step: int, *, steps: int = 100, **config: object) -> float:
    spec = OptimizerConfig.model_validate({"learning_rate": 0.1, **config})
    return float(learning_rate(spec, steps=steps, step=tf.constant(step, tf.int64)))


def test_constant() -> None:
    assert [rate(0), rate(99)] == pytest.approx([0.1, 0.1])


def test_cosine_goes_to_zero_at_all_steps_or_at_decay_steps() -> None:
    assert [rate(s, schedule="cosine") for s in (0, 50, 100)] == pytest.approx([0.1, 0.05, 0.0], abs=1e-8)
    assert rate(25, schedule="cosine", decay_steps=50) == pytest.approx(0.05)
    assert rate(80, schedule="cosine", decay_steps=50) == pytest.approx(0.0, abs=1e-8)


def test_warm_up_reaches_the_full_rate_with_its_last_update() -> None:
    rates = [rate(s, warmup_steps=4) for s in range(6)]
    assert rates == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])


def test_cosine_begins_where_the_warm_up_ends() -> None:
    assert rate(20, schedule="cosine", warmup_steps=20) == pytest.approx(0.1)
    assert rate(60, schedule="cosine", warmup_steps=20) == pytest.approx(0.05)


def test_exponential_and_step() -> None:
    assert rate(10, schedule="exponential", decay_steps=20, decay_rate=0.25) == pytest.approx(0.05)
    assert [rate(s, schedule="step", decay_steps=20, decay_rate=0.5) for s in (19, 20, 40)] == pytest.approx(
        [0.1, 0.05, 0.025]
    )


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_weight_decay_is_decoupled_and_spares_biases(name: str) -> None:
    """With zero gradients only the decay acts: variable × (1 − rate × decay), whatever the optimizer."""
    kernel, bias = keras.Variable(np.full((2, 2), 3.0, "float32")), keras.Variable(np.full(2, 3.0, "float32"))
    config = OptimizerConfig(name=name, weight_decay=0.5)  # type: ignore[arg-type]
    optimizer = make_optimizer(config, [kernel, bias])
    optimizer.learning_rate.assign(0.1)
    optimizer.apply([tf.zeros((2, 2)), tf.zeros(2)], [kernel, bias])
    np.testing.assert_allclose(kernel.numpy(), np.full((2, 2), 3.0 * (1 - 0.1 * 0.5)), rtol=1e-6)
    np.testing.assert_array_equal(bias.numpy(), np.full(2, 3.0, "float32"))


@pytest.mark.parametrize("name", sorted(OPTIMIZERS))
def test_every_optimizer_goes_downhill(name: str) -> None:
    variable = keras.Variable(np.array([1.0, -2.0], "float32"))
    optimizer = make_optimizer(OptimizerConfig(name=name), [variable])  # type: ignore[arg-type]
    optimizer.learning_rate.assign(0.01)
    for _ in range(5):
        optimizer.apply([2.0 * variable.value], [variable])
    assert np.linalg.norm(variable.numpy()) < math.sqrt(5.0)


def test_the_average_begins_fast_and_ends_at_the_decay() -> None:
    assert float(ema_decay(0.999, tf.constant(0, tf.int64))) == pytest.approx(2 / 11)
    assert float(ema_decay(0.999, tf.constant(10**6, tf.int64))) == pytest.approx(0.999)
