"""The training step: by value against a plain computation, and what it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from finetune.models.network import HeadNetwork
from finetune.spec import OptimizerConfig, TrainConfig
from finetune.training.trainer import NonFiniteLoss, NothingToTrain, Trainer
from tests.finetune.training.line import Line

X = np.array([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5], [9.0, 9.0]], np.float32)
Y = np.array([1.0, 2.0, 3.0, 4.0], np.float32)
WEIGHT = np.array([1.0, 1.0, 2.0, 0.0], np.float32)


def batches(x: np.ndarray = X) -> Any:
    data = ({"feature_vector": x}, {"y": Y, "weight": WEIGHT})
    return iter(tf.data.Dataset.from_tensors(data).repeat())


def trainer(head: Any = None, *, steps: int = 100, **optimizer: Any) -> Trainer:
    config = TrainConfig(steps=steps, optimizer=OptimizerConfig.model_validate({"name": "sgd", **optimizer}))
    return Trainer(network=HeadNetwork(head or Line()), config=config, strategy=tf.distribute.get_strategy())


def gradient(w: np.ndarray) -> np.ndarray:
    """Of sum(weight × error²) / sum(weight)."""
    return 2 * (WEIGHT * (X @ w - Y)) @ X / WEIGHT.sum()


def test_a_step_follows_the_gradient_of_the_weighted_mean() -> None:
    head = Line()
    stretch = trainer(head, learning_rate=0.1, clip_norm=None).run(batches(), 1)
    w = np.ones(2)
    assert stretch.loss == pytest.approx(float((WEIGHT * (X @ w - Y) ** 2).sum() / WEIGHT.sum()))
    assert stretch.gradient_norm == pytest.approx(float(np.linalg.norm(gradient(w))), rel=1e-5)
    assert stretch.examples == 3  # rows of weight 0 are padding
    np.testing.assert_allclose(head.w.numpy(), w - 0.1 * gradient(w), rtol=1e-5)


def test_clipping_keeps_the_direction_and_reports_the_norm_before() -> None:
    head = Line()
    stretch = trainer(head, learning_rate=1.0, clip_norm=0.5).run(batches(), 1)
    g = gradient(np.ones(2))
    assert stretch.gradient_norm > 0.5
    np.testing.assert_allclose(head.w.numpy(), 1 - 0.5 * g / np.linalg.norm(g), rtol=1e-5)


def test_how_steps_are_grouped_into_calls_changes_nothing() -> None:
    one, many = Line(), Line()
    single, grouped = trainer(one, name="adam", ema_decay=0.9), trainer(many, name="adam", ema_decay=0.9)
    iterator = batches()
    losses = [single.run(iterator, 1).loss_sum for _ in range(7)]
    stretch = grouped.run(batches(), 7)
    assert stretch.steps == 7
    assert stretch.loss_sum == pytest.approx(sum(losses), rel=1e-6)
    np.testing.assert_array_equal(one.w.numpy(), many.w.numpy())
    np.testing.assert_array_equal(single.variables["ema"]["w"].numpy(), grouped.variables["ema"]["w"].numpy())


def test_the_average_follows_by_the_corrected_decay() -> None:
    head = Line()
    t = trainer(head, learning_rate=0.01, ema_decay=0.99)
    average = np.ones(2)
    for step in range(3):
        t.run(batches(), 1)
        decay = min(0.99, (2 + step) / (11 + step))
        average = decay * average + (1 - decay) * head.w.numpy()
    np.testing.assert_allclose(t.variables["ema"]["w"].numpy(), average, rtol=1e-6)


def test_the_learning_rate_follows_the_global_step_without_another_trace() -> None:
    t = trainer(schedule="cosine", learning_rate=0.1, steps=10)
    iterator = batches()
    rates = [t.run(iterator, n).learning_rate for n in (1, 4, 5)]
    assert rates == pytest.approx(
        [0.1, 0.1 * 0.5 * (1 + np.cos(0.4 * np.pi)), 0.05 * (1 + np.cos(0.9 * np.pi))], rel=1e-5
    )
    assert t._run.experimental_get_tracing_count() == 1


def test_a_loss_that_is_not_finite_is_named_by_its_step() -> None:
    def data(i: tf.Tensor) -> Any:
        bad = tf.where(i == 4, float("nan"), 1.0)  # the fifth step
        return {"feature_vector": X * bad}, {"y": Y, "weight": WEIGHT}

    iterator = iter(tf.data.Dataset.range(100).map(data))
    t = trainer()
    t.run(iterator, 2)
    with pytest.raises(NonFiniteLoss, match=r"at step 5 of 100") as caught:
        t.run(iterator, 8)
    assert caught.value.details == {"step": "5"}


def test_a_head_without_trainable_variables_is_refused() -> None:
    head = Line()
    head.trainable = False
    with pytest.raises(NothingToTrain):
        trainer(head)


def test_a_captioner_is_not_rewarded_for_copying_its_input(captioner_task: Any) -> None:
    """The target is shifted by one: a model that says at each step the word it was just given must lose."""
    task = captioner_task()
    tokens_NT = task.data.table.arrays["tokens"]
    head = task.head()
    size = len(head.vocabulary)
    head.logits = lambda output_NU: 50.0 * output_NU  # what the recurrence gives out becomes the logits
    head._loss._unroll = lambda gates_SBG, state, memory: (gates_SBG, None)
    head.decoder.inputs = lambda inputs: inputs  # … and that is the step's input itself, one-hot
    head.embed_words = lambda words: tf.one_hot(words, size)
    head.embed_image = lambda feature_BD, training=False: tf.zeros([tf.shape(feature_BD)[0], size])
    features = {"feature_vector": tf.constant(task.data.first_view())}
    targets = {"tokens": tf.constant(tokens_NT), "weight": tf.ones(len(tokens_NT))}
    terms = head.loss(features, targets, training=False)
    assert float(terms.loss_sum / terms.weight_sum) > 10.0


def test_a_captioner_learns(captioner_task: Any) -> None:
    task = captioner_task()
    config = TrainConfig(steps=150, optimizer=OptimizerConfig(learning_rate=0.02))
    t = task.trainer(config)
    iterator = task.batches()
    first = t.run(iterator, 1)
    t.run(iterator, 149)
    last = t.run(iterator, 20)
    assert last.loss < 0.5 * first.loss
    right, words = last.metrics["word_accuracy"]
    assert right / words > 0.98
