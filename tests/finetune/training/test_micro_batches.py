"""Micro-batches: an update in pieces is the update of the whole, whatever the rows weigh."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from finetune.data.augment_mix import mix_batch
from finetune.data.source import Example
from finetune.models.heads import head_kind
from finetune.models.network import HeadNetwork, ThawedNetwork
from finetune.spec import OptimizerConfig, TrainConfig
from finetune.training.micro_batches import summed
from finetune.training.probe import Probe
from finetune.training.trainer import NonFiniteLoss, Trainer
from tests.finetune.training.line import Line, LineTask
from tests.tiny import TINY, TINY_FEATURE_DIM, tiny_tensors
from zoo.input_spec import InputSpec

ROWS = 10


def batch(seed: int = 0) -> Any:
    """Ten rows, one of them padding: the pieces weigh unequally."""
    random = np.random.default_rng(seed)
    x_BD = random.standard_normal((ROWS, 2)).astype(np.float32)
    weight_B = np.array([1, 1, 0, 2, 1, 1, 1, 0.5, 1, 1], np.float32)
    return {"feature_vector": x_BD}, {"y": random.standard_normal(ROWS).astype(np.float32), "weight": weight_B}


def config(pieces: int, **optimizer: Any) -> TrainConfig:
    settings = {"name": "sgd", "learning_rate": 0.05, "accumulate": pieces, **optimizer}
    return TrainConfig(steps=50, batch_size=2, optimizer=OptimizerConfig.model_validate(settings))


def trained(pieces: int, *, steps: int = 5, **optimizer: Any) -> tuple[np.ndarray, Any]:
    head = Line()
    trainer = Trainer(
        network=HeadNetwork(head), config=config(pieces, **optimizer), strategy=tf.distribute.get_strategy()
    )
    data = iter(tf.data.Dataset.from_tensors(batch()).repeat())
    stretch = trainer.run(data, steps)
    assert int(trainer.global_step.numpy()) == steps  # updates are counted, not pieces
    return head.w.numpy(), stretch


@pytest.mark.parametrize("pieces", [2, 3, 5, 10])  # three of four rows: the last piece lacks two
def test_pieces_make_the_update_of_the_whole(pieces: int) -> None:
    whole, expected = trained(1, clip_norm=0.3)
    parts, stretch = trained(pieces, clip_norm=0.3)
    np.testing.assert_allclose(parts, whole, atol=1e-6)
    assert stretch.loss == pytest.approx(expected.loss, abs=1e-6)
    assert stretch.gradient_norm == pytest.approx(expected.gradient_norm, rel=1e-5)
    assert (stretch.examples, stretch.weight_sum) == (expected.examples, expected.weight_sum) == (45, 47.5)


def test_a_head_with_metrics_and_its_input_in_the_same_order(captioner_task: Any) -> None:
    """Batches of 4 rows in two pieces of 2 are the batches of 4: the input begins where it would."""
    task = captioner_task()
    ends = []
    for pieces in (1, 2):
        trainer = task.trainer(config(pieces))
        stretch = trainer.run(task.batches(3, batch_size=4), 6)
        ends.append((task, trainer, stretch))
    (_, one, whole), (_, two, parts) = ends
    for name, variable in one.variables["head"].items():
        np.testing.assert_allclose(two.variables["head"][name].numpy(), variable.numpy(), atol=1e-6, err_msg=name)
    assert parts.metrics["word_accuracy"] == pytest.approx(whole.metrics["word_accuracy"])


def network() -> ThawedNetwork:
    return ThawedNetwork(
        head=_classifier(), architecture=TINY, input_spec=InputSpec(height=32, width=32), train_from="block_15"
    )


def _classifier() -> Any:
    kind = head_kind("classifier")
    arguments = kind.Arguments.model_validate({})
    examples = [Example(id=f"{n}", label="ab"[n % 2]) for n in range(4)]
    assets = kind.learn_assets(examples, arguments)
    return kind.build(arguments=arguments, feature_dim=TINY_FEATURE_DIM, assets=assets, seed=1)


@pytest.mark.parametrize("mixed", [False, True])
def test_images_whose_partners_are_in_another_piece(mixed: bool) -> None:
    random = np.random.default_rng(3)
    image_BHWC = random.random((6, 32, 32, 3), np.float32)
    targets = {"label": np.array([0, 1, 1, 0, 1, 0], np.int32), "weight": np.ones(6, np.float32)}
    inputs: dict[str, Any] = {"image": image_BHWC}
    if mixed:
        mix = mix_batch(image_BHWC, mixup=0.8, cutmix=0.0, seed=1, position=0)
        inputs = {"image": mix.image, "partner": mix.partner.astype(np.int32), "share": mix.share}
    ends = []
    for pieces in (1, 2, 4):
        made = network()
        made.restore_backbone(tiny_tensors())
        trainer = Trainer(network=made, config=config(pieces), strategy=tf.distribute.get_strategy())
        trainer.run(iter([(inputs, targets)] * 2), 2)
        ends.append({f"{part}/{name}": v.numpy() for part, vs in made.groups.items() for name, v in vs.items()})
    for parts in ends[1:]:
        for name, value in ends[0].items():
            np.testing.assert_allclose(parts[name], value, atol=1e-6, err_msg=name)


def test_a_row_that_is_not_finite_in_any_piece_is_named_by_the_update() -> None:
    features, targets = batch()
    wild = {"feature_vector": features["feature_vector"].copy()}
    wild["feature_vector"][7] = np.inf
    trainer = Trainer(network=HeadNetwork(Line()), config=config(5), strategy=tf.distribute.get_strategy())
    with pytest.raises(NonFiniteLoss, match="at step 2 of 50"):
        trainer.run(iter([(features, targets), (wild, targets)]), 2)


def test_a_probe_sees_the_gradient_of_the_update() -> None:
    features, targets = batch()
    whole, parts = (Probe(HeadNetwork(Line()), pieces=pieces).gradients(features, targets) for pieces in (1, 5))
    np.testing.assert_allclose(parts[0], whole[0], rtol=1e-5)


def test_every_row_is_in_one_piece_and_what_is_filled_up_weighs_nothing() -> None:
    seen = summed(
        lambda features, targets: tf.tensor_scatter_nd_add(
            tf.zeros(ROWS), tf.reshape(features["row"], [-1, 1]), tf.cast(targets["weight"] > 0, tf.float32)
        ),
        {"row": tf.range(ROWS)},
        {"weight": tf.ones(ROWS)},
        4,
    )
    assert seen.numpy().tolist() == [1.0] * ROWS


def test_dropout_differs_between_pieces() -> None:
    """Each piece draws anew: the same noise in all would be less of it."""
    task = LineTask()
    head = task.head()
    before = [v.numpy() for v in head.variables if v is not head.w]
    trainer = Trainer(network=HeadNetwork(head), config=config(4), strategy=tf.distribute.get_strategy())
    trainer.run(task.batches(), 1)
    after = [v.numpy() for v in head.variables if v is not head.w]
    assert int(after[0].ravel()[-1]) - int(before[0].ravel()[-1]) == 4
