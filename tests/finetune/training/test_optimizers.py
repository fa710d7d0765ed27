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


def test_polynomial_ends_at_its_rate() -> None:
    linear = {"schedule": "polynomial", "end_learning_rate": 0.02, "decay_steps": 50}
    assert [rate(s, **linear) for s in (0, 25, 50, 90)] == pytest.approx([0.1, 0.06, 0.02, 0.02])
    assert rate(25, schedule="polynomial", power=2.0, decay_steps=50) == pytest.approx(0.025)
    assert rate(50, schedule="cosine", end_learning_rate=0.02) == pytest.approx(0.06)


def test_piecewise_falls_at_each_boundary() -> None:
    rates = [rate(s, schedule="piecewise", boundaries=(30, 60), decay_rate=0.1) for s in (0, 29, 30, 59, 60, 99)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_rate": 0}, "greater than 0"),
        ({"learning_rate": float("nan")}, "finite number"),
        ({"learning_rate": float("inf")}, "finite number"),
        ({"learning_rate": -1e-3}, "greater than 0"),
        ({"epsilon": 1.0, "name": "momentum"}, "epsilon is an argument of adam, adamw, lamb, rmsprop, not of momentum"),
        ({"rho": 0.8}, "rho is an argument of rmsprop, not of adam"),
        ({"nesterov": True, "name": "sgd"}, "nesterov is an argument of momentum"),
        ({"end_learning_rate": 1e-5, "schedule": "step"}, "end_learning_rate is where cosine and polynomial end"),
        ({"end_learning_rate": 0.1, "schedule": "cosine"}, "above learning_rate"),
        ({"schedule": "piecewise"}, "piecewise needs boundaries"),
        ({"boundaries": (5,)}, "piecewise needs boundaries"),
        ({"schedule": "piecewise", "boundaries": (9, 5)}, "boundaries must rise"),
        ({"accumulate": 0}, "greater than or equal to 1"),
        ({"name": "lars"}, "'lamb'"),
    ],
)
def test_what_can_not_be_is_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OptimizerConfig.model_validate(settings)


def _after(config: OptimizerConfig, gradients: list[np.ndarray], start: np.ndarray) -> np.ndarray:
    variable = keras.Variable(start.astype("float32"))
    optimizer = make_optimizer(config, [variable])
    for step, gradient in enumerate(gradients):
        optimizer.learning_rate.assign(config.learning_rate)
        optimizer.iterations.assign(step)
        optimizer.apply([tf.constant(gradient, tf.float32)], [variable])
    return np.asarray(variable.numpy())


GRADIENTS = [np.array([0.5, -1.0, 2.0]), np.array([0.1, 0.3, -0.2]), np.array([-0.4, 0.0, 1.0])]
START = np.array([1.0, -2.0, 0.5])


def test_rmsprop_with_slims_arguments_by_hand() -> None:
    """TF-Slim's training script: decay 0.9, momentum 0.9, epsilon 1.0 below the root."""
    config = OptimizerConfig(name="rmsprop", learning_rate=0.1, rho=0.9, momentum=0.9, epsilon=1.0)
    w, square, step = START.copy(), np.zeros(3), np.zeros(3)
    for g in GRADIENTS:
        square = 0.9 * square + 0.1 * g**2
        step = 0.9 * step + 0.1 * g / np.sqrt(square + 1.0)
        w = w - step
    np.testing.assert_allclose(_after(config, GRADIENTS, START), w, rtol=1e-5)


def test_lamb_by_hand() -> None:
    """arXiv:1904.00962, algorithm 2, without the decay."""
    config = OptimizerConfig(name="lamb", learning_rate=0.1, beta_1=0.8, beta_2=0.95, epsilon=1e-6)
    w, m, v = START.copy(), np.zeros(3), np.zeros(3)
    for t, g in enumerate(GRADIENTS, start=1):
        m, v = 0.8 * m + 0.2 * g, 0.95 * v + 0.05 * g**2
        r = m / (1 - 0.8**t) / (np.sqrt(v / (1 - 0.95**t)) + 1e-6)
        w = w - 0.1 * np.linalg.norm(w) / np.linalg.norm(r) * r
    np.testing.assert_allclose(_after(config, GRADIENTS, START), w, rtol=1e-5)


def test_adam_takes_its_arguments() -> None:
    config = OptimizerConfig(name="adam", learning_rate=0.1, beta_1=0.5, beta_2=0.9, epsilon=0.1)
    w, m, v = START.copy(), np.zeros(3), np.zeros(3)
    for t, g in enumerate(GRADIENTS, start=1):
        m, v = 0.5 * m + 0.5 * g, 0.9 * v + 0.1 * g**2
        rate_t = 0.1 * np.sqrt(1 - 0.9**t) / (1 - 0.5**t)
        w = w - rate_t * m / (np.sqrt(v) + 0.1)
    np.testing.assert_allclose(_after(config, GRADIENTS, START), w, rtol=1e-5)
