"""16-bit backbones: what is stored and evaluated stays float32, and float16's overflows cost an update, not the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from finetune.data.source import Example
from finetune.models.heads import head_kind
from finetune.models.network import HeadNetwork, ThawedNetwork
from finetune.spec import InvalidSpec, JobSpec, OptimizerConfig, TrainConfig
from finetune.training.checkpoints import Checkpoints
from finetune.training.trainer import NonFiniteLoss, Trainer
from tests.finetune.training.line import Line
from tests.tiny import TINY, TINY_FEATURE_DIM, tiny_tensors
from zoo.input_spec import InputSpec

X = np.array([[1.0, 2.0], [3.0, -1.0], [0.5, 0.5], [9.0, 9.0]], np.float32)
Y = np.array([1.0, 2.0, 3.0, 4.0], np.float32)


def config(precision: str) -> TrainConfig:
    return TrainConfig(
        steps=50,
        precision=precision,  # type: ignore[arg-type]
        optimizer=OptimizerConfig(name="momentum", learning_rate=0.02, ema_decay=0.9),
    )


def network(precision: str) -> ThawedNetwork:
    kind = head_kind("classifier")
    arguments = kind.Arguments.model_validate({})
    assets = kind.learn_assets([Example(id=f"{n}", label="ab"[n % 2]) for n in range(4)], arguments)
    made = ThawedNetwork(
        head=kind.build(arguments=arguments, feature_dim=TINY_FEATURE_DIM, assets=assets, seed=1),
        architecture=TINY, input_spec=InputSpec(height=32, width=32), train_from="block_14", precision=precision,
    )  # fmt: skip
    made.restore_backbone(tiny_tensors())
    return made


def images() -> Any:
    random = np.random.default_rng(3)
    targets = {"label": np.array([0, 1] * 4, np.int32), "weight": np.ones(8, np.float32)}
    return {"image": random.random((8, 32, 32, 3), np.float32)}, targets


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_a_backbone_in_16_bits_trains_and_leaves_float32(tmp_path: Path, precision: str) -> None:
    wide, narrow = network("float32"), network(precision)
    exact, rounded = (each.features(images()[0]["image"])["feature_vector"] for each in (wide, narrow))
    assert rounded.dtype == tf.float32
    assert not np.array_equal(exact, rounded)
    assert np.linalg.norm(rounded - exact) < 0.1 * np.linalg.norm(exact)

    strategy = tf.distribute.get_strategy()
    trainer = Trainer(network=narrow, config=config(precision), strategy=strategy)
    batches = iter([images()] * 20)
    first, last = trainer.run(batches, 1), [trainer.run(batches, 1) for _ in range(15)][-1]
    assert last.loss < 0.8 * first.loss
    checkpoints = Checkpoints(tmp_path, digest="d")
    checkpoints.save(trainer.variables, step=16, train_loss=None, seconds=0.0)
    kinds = {kind.partition("[")[0] for kind in checkpoints.record(16).variables.values()}
    assert kinds <= {"float32", "int64", "int32", "uint32"}
    stored = checkpoints.read_weights(16, "backbone")
    assert {name: value.shape for name, value in stored.items()} == {
        name: tuple(variable.shape) for name, variable in wide.groups["backbone"].items()
    }


def line_trainer() -> tuple[Line, Trainer]:
    head = Line()
    return head, Trainer(
        network=HeadNetwork(head), config=config("mixed_float16"), strategy=tf.distribute.get_strategy()
    )


def batches() -> Any:
    batch = {"feature_vector": X}, {"y": Y, "weight": np.ones(4, np.float32)}
    return iter(tf.data.Dataset.from_tensors(batch).repeat())


def test_the_scale_changes_nothing_but_what_overflows(tmp_path: Path) -> None:
    plain_head = Line()
    plain = Trainer(network=HeadNetwork(plain_head), config=config("float32"), strategy=tf.distribute.get_strategy())
    plain.run(batches(), 5)
    head, trainer = line_trainer()
    trainer.run(batches(), 5)
    np.testing.assert_array_equal(head.w.numpy(), plain_head.w.numpy())  # powers of two round nothing

    state = trainer.variables["progress"]
    before, average = head.w.numpy(), trainer.variables["ema"]["w"].numpy()
    state["loss_scale"].assign(2.0**127)
    stretch = trainer.run(batches(), 1)
    assert (stretch.steps, stretch.left_out) == (1, 1)
    assert state["loss_scale"].numpy() == 2.0**126
    assert int(trainer.global_step.numpy()) == 6  # the batch was used up
    np.testing.assert_array_equal(head.w.numpy(), before)
    np.testing.assert_array_equal(trainer.variables["ema"]["w"].numpy(), average)

    state["loss_scale"].assign(2.0**10)
    state["good_updates"].assign(1999)
    assert trainer.run(batches(), 1).left_out == 0
    assert (state["loss_scale"].numpy(), int(state["good_updates"].numpy())) == (2.0**11, 0)
    assert not np.array_equal(head.w.numpy(), before)

    checkpoints = Checkpoints(tmp_path, digest="d")
    checkpoints.save(trainer.variables, step=7, train_loss=None, seconds=0.0)
    _, other = line_trainer()
    checkpoints.restore(other.variables, step=7)
    assert other.variables["progress"]["loss_scale"].numpy() == 2.0**11


def test_what_no_scale_helps_is_named_by_its_step() -> None:
    head, trainer = line_trainer()
    head.w.assign([1e25, 1e25])  # the squared error is beyond float32
    with pytest.raises(NonFiniteLoss, match="at step 1 of 50"):
        trainer.run(batches(), 1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "it is of the backbone, which is frozen"),
        (
            {"model": {"train_from": "all"}, "strategy": {"kind": "all-reduce", "workers": 2}},
            "its loss scale is of one device",
        ),
    ],
)
def test_where_16_bits_can_not_be(changes: dict[str, Any], words: str) -> None:
    plan = {
        "name": "child", "backbone": "tiny", "head": {"kind": "classifier"}, "data": {"location": "scenes:"},
        "train": {"precision": "mixed_float16"},
    }  # fmt: skip
    with pytest.raises(InvalidSpec, match=words):
        JobSpec.parse(plan | changes)
