"""Saving beside the training: what is written is the moment of the call, and what goes wrong is told."""

from __future__ import annotations

import resource
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.spec import OptimizerConfig, TrainConfig
from finetune.training.checkpoints import Checkpoints
from finetune.training.saving import Saving
from tests.finetune.training.line import LineTask
from zoo.atomic_file import NoSpace

CONFIG = TrainConfig(steps=200, optimizer=OptimizerConfig(name="adam", ema_decay=0.9))


class SlowCheckpoints(Checkpoints):
    """A disk that takes as long as the test wants."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, digest="d" * 64)
        self.go_on = threading.Event()

    def save(self, variables: Any, **record: Any) -> None:
        assert self.go_on.wait(60)
        super().save(variables, **record)


def values(trainer: Any) -> dict[str, np.ndarray]:
    return {f"{group}/{name}": v.numpy() for group, members in trainer.variables.items() for name, v in members.items()}


def test_steps_go_on_while_the_state_of_the_call_is_written(tmp_path: Path) -> None:
    """Twice, so that the copies are used again; with noise, whose generator is part of the state."""
    task, checkpoints = LineTask(), SlowCheckpoints(tmp_path)
    trainer, saving = task.trainer(CONFIG), Saving(checkpoints)
    iterator = task.batches()
    for step in (3, 10):
        trainer.run(iterator, step - int(trainer.global_step.numpy()))
        then = values(trainer)
        checkpoints.go_on.clear()
        saving.save(trainer.variables, step=step, train_loss=1.0, seconds=2.0)
        trainer.run(iterator, 4)
        assert saving.step == step
        assert not saving.done()
        assert step not in checkpoints.steps()
        checkpoints.go_on.set()
        assert saving.settle()
        assert not saving.settle()  # told once
        assert saving.step is None

        other = LineTask().trainer(CONFIG, seed=9)
        assert checkpoints.restore(other.variables, step=step).step == step
        for name, value in then.items():
            np.testing.assert_array_equal(values(other)[name], value, err_msg=name)
        for name in ("head/w", "ema/w", "seeds/0000", "progress/global_step"):
            assert not np.array_equal(values(trainer)[name], then[name]), name
    assert checkpoints.steps() == [3, 10]


def test_one_save_is_under_way_at_a_time(tmp_path: Path) -> None:
    checkpoints = SlowCheckpoints(tmp_path)
    trainer, saving = LineTask().trainer(CONFIG), Saving(checkpoints)
    saving.save(trainer.variables, step=1, train_loss=None, seconds=0.0)
    threading.Timer(0.3, checkpoints.go_on.set).start()
    stood = saving.save(trainer.variables, step=2, train_loss=None, seconds=0.0)
    assert stood >= 0.2  # it waited for the first
    saving.settle()
    assert checkpoints.steps() == [1, 2]


def test_a_disk_that_takes_no_more_is_told_at_the_next_look(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real refusal by the kernel, in the thread that writes."""
    trainer, saving = LineTask().trainer(CONFIG), Saving(Checkpoints(tmp_path, digest="d" * 64))
    saving.save(trainer.variables, step=1, train_loss=None, seconds=0.0)
    assert saving.settle()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, hard))
    try:
        saving.save(trainer.variables, step=2, train_loss=None, seconds=0.0)
        with pytest.raises(NoSpace, match="the Checkpoints before are kept"):
            saving.settle()
        saving.save(trainer.variables, step=3, train_loss=None, seconds=0.0)
        for thread in [each for each in threading.enumerate() if each.name == "save-3"]:
            thread.join()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    saving.abandon()  # another error is on its way: a warning only
    assert "warning: a Checkpoint was not saved" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    saving.save(trainer.variables, step=4, train_loss=None, seconds=0.0)
    assert saving.settle()
