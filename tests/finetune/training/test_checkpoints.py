"""Checkpoints: exact, atomic, and refused by whom they don't belong to."""

from __future__ import annotations

import errno
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from finetune.spec import OptimizerConfig, TrainConfig
from finetune.training.checkpoints import (
    AnotherCheckpoint,
    CheckpointGone,
    Checkpoints,
    DamagedCheckpoint,
    disk_error,
)
from zoo.atomic_file import NoSpace

CONFIG = TrainConfig(steps=40, optimizer=OptimizerConfig(name="adam", ema_decay=0.9, schedule="cosine"))
DROPOUT = {"embedding_dropout": 0.3, "output_dropout": 0.2, "word_dropout": 0.1}


def values(trainer: Any) -> dict[str, np.ndarray]:
    return {f"{group}/{name}": v.numpy() for group, members in trainer.variables.items() for name, v in members.items()}


def save(checkpoints: Checkpoints, trainer: Any, step: int) -> None:
    checkpoints.save(trainer.variables, step=step, train_loss=1.5, seconds=2.0)


@pytest.fixture
def checkpoints(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", digest="d" * 64)


def test_a_run_continued_from_a_checkpoint_is_the_unbroken_run_to_the_bit(
    captioner_task: Any, checkpoints: Checkpoints
) -> None:
    """With dropout, so that a forgotten random generator would show; from a trainer of another seed."""
    task = captioner_task(**DROPOUT)
    unbroken = task.trainer(CONFIG)
    iterator = task.batches()
    unbroken.run(iterator, 7)
    save(checkpoints, unbroken, 7)
    unbroken.run(iterator, 9)

    continued = task.trainer(CONFIG, seed=99)
    assert checkpoints.restore(continued.variables, step=7).step == 7
    assert int(continued.global_step.numpy()) == 7
    continued.run(task.batches(7), 9)

    expected, found = values(unbroken), values(continued)
    assert any(name.startswith("seeds/") for name in expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_what_is_evaluated_and_exported_are_the_averages(captioner_task: Any, checkpoints: Checkpoints) -> None:
    trainer = captioner_task().trainer(CONFIG)
    trainer.run(captioner_task().batches(), 5)
    save(checkpoints, trainer, 5)
    weights = checkpoints.read_weights(5)
    assert set(weights) == set(trainer.variables["head"])
    for name, average in trainer.variables["ema"].items():
        np.testing.assert_array_equal(weights[name], average.numpy())
        assert not np.array_equal(weights[name], trainer.variables["head"][name].numpy())


def test_without_averages_the_weights_themselves_are_read(captioner_task: Any, checkpoints: Checkpoints) -> None:
    trainer = captioner_task().trainer(TrainConfig())
    save(checkpoints, trainer, 0)
    for name, value in checkpoints.read_weights(0).items():
        np.testing.assert_array_equal(value, trainer.variables["head"][name].numpy())


def test_another_spec_is_refused(captioner_task: Any, checkpoints: Checkpoints) -> None:
    trainer = captioner_task().trainer(CONFIG)
    save(checkpoints, trainer, 3)
    other = Checkpoints(checkpoints.root, digest="e" * 64)
    for read in (lambda: other.restore(trainer.variables, step=3), lambda: other.read_weights(3)):
        with pytest.raises(AnotherCheckpoint, match="another spec"):
            read()


def test_another_model_is_refused_naming_the_tensors(captioner_task: Any, checkpoints: Checkpoints) -> None:
    save(checkpoints, captioner_task().trainer(CONFIG), 3)
    wider = captioner_task(units=20).trainer(CONFIG)
    before = values(wider)
    with pytest.raises(AnotherCheckpoint, match=r"head/lstm/bias is float32\[64\], wanted float32\[80\]"):
        checkpoints.restore(wider.variables, step=3)
    for name, value in values(wider).items():
        np.testing.assert_array_equal(value, before[name])


def test_steps_are_those_of_complete_checkpoints(captioner_task: Any, checkpoints: Checkpoints) -> None:
    assert checkpoints.steps() == []
    trainer = captioner_task().trainer(CONFIG)
    for step in (10, 9, 100):
        save(checkpoints, trainer, step)
    (checkpoints.root / ".saving-abc").mkdir()
    (checkpoints.root / "done.json").write_text("{}")
    assert checkpoints.steps() == [9, 10, 100]
    checkpoints.clear_leftovers()
    assert not (checkpoints.root / ".saving-abc").exists()
    checkpoints.remove(10)
    checkpoints.remove(10)
    assert checkpoints.steps() == [9, 100]


def test_a_checkpoint_that_was_rotated_away_is_gone_and_not_damaged(
    captioner_task: Any, checkpoints: Checkpoints
) -> None:
    trainer = captioner_task().trainer(CONFIG)
    with pytest.raises(CheckpointGone):
        checkpoints.read_weights(3)
    save(checkpoints, trainer, 3)
    next((checkpoints.root / "3").glob("*.data-*")).unlink()
    with pytest.raises(DamagedCheckpoint, match="3"):
        checkpoints.read_weights(3)
    shutil.rmtree(checkpoints.root / "3")
    with pytest.raises(CheckpointGone):
        checkpoints.restore(trainer.variables, step=3)


def test_a_disk_that_takes_no_more_while_saving_keeps_what_is_there(
    captioner_task: Any, checkpoints: Checkpoints
) -> None:
    """A real refusal by the kernel, which TensorFlow tells of in words only."""
    trainer = captioner_task().trainer(CONFIG)
    save(checkpoints, trainer, 3)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))  # Python ignores SIGXFSZ, so that writing fails instead
    try:
        with pytest.raises(NoSpace, match="the Checkpoints before are kept"):
            save(checkpoints, trainer, 6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in checkpoints.root.iterdir()] == ["3"]
    checkpoints.restore(trainer.variables, step=3)


def test_errors_of_the_disk_are_told_from_others(tmp_path: Path) -> None:
    assert isinstance(disk_error(OSError(errno.ENOSPC, "No space left on device"), tmp_path), NoSpace)
    # As TensorFlow 2.21 says it on a full tmpfs.
    full = tf.errors.ResourceExhaustedError(None, None, "x.tempstate7757690059543228128; No space left on device")
    assert isinstance(disk_error(full, tmp_path), NoSpace)
    other = tf.errors.InternalError(None, None, "something else")
    assert disk_error(other, tmp_path) is other
