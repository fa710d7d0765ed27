"""Back to the last good Checkpoint with a smaller rate: where to, how often, and the same bits when interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from finetune.models.heads.head import LossTerms
from finetune.spec import InvalidSpec, JobSpec
from finetune.training.stop import Interrupted
from finetune.training.trainer import NonFiniteLoss
from tests.finetune.training.line import Line, LineTask
from tests.finetune.training.test_controller import Run, spec

RISING = {"name": "sgd", "learning_rate": 2.0, "warmup_steps": 40, "clip_norm": None, "ema_decay": 0.9}


class Fragile(Line):
    """Its loss is NaN as soon as a weight leaves ±`bound`, as a logarithm is beyond its domain."""

    bound = 10.0

    def loss(self, features: Any, targets: Any, *, training: bool) -> LossTerms:
        terms = super().loss(features, targets, training=training)
        wild = tf.reduce_max(tf.abs(self.w.value)) > self.bound
        return terms + LossTerms(loss_sum=tf.where(wild, float("nan"), 0.0), weight_sum=0.0, metrics={})


class FragileTask(LineTask):
    def head(self, seed: int = 1) -> Line:
        return Fragile(wild=0.1, seed=seed)


@pytest.fixture(scope="module")
def task() -> FragileTask:
    return FragileTask()


def rising(**train: Any) -> JobSpec:
    return spec(
        **{"optimizer": RISING, "on_nan": {"action": "rollback", "factor": 0.25}, "keep_checkpoints": 9, **train}
    )


def weights(run: Run) -> dict[str, np.ndarray]:
    return {**run.checkpoints.read_weights(60), "w": run.trainer.variables["head"]["w"].numpy()}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, task: Any) -> Run:
    run = Run(tmp_path_factory.mktemp("unbroken"), task, rising(), evaluated=False)
    assert run.start().steps == 60
    return run


def test_it_goes_on_from_the_last_evaluation_step_with_a_smaller_rate(tmp_path: Path, task: Any, unbroken: Run) -> None:
    stops = Run(tmp_path, task, spec(optimizer=RISING), evaluated=False)
    with pytest.raises(NonFiniteLoss) as caught:
        stops.start()
    step = int(caught.value.details["step"])
    said = unbroken.stderr.getvalue()
    back = step - 1 - (step - 1) % 10
    assert 10 <= back < step
    line = f"at step {step} of 60: back to step {back}, on with 0.25 times the learning rate (rollback 1 of 3)"
    assert line in said
    assert (unbroken.folder.read_progress() or {})["news"] == [line_of(said, "back to step")]
    assert unbroken.trainer.variables["progress"]["rate_factor"].numpy() == 0.25
    assert np.abs(weights(unbroken)["w"] - [2.0, -1.0]).max() < 0.3  # and it learns


def line_of(text: str, words: str) -> str:
    return next(line for line in text.splitlines() if words in line)


@pytest.mark.parametrize("at", [7, 19, 44])
def test_interrupted_anywhere_it_ends_with_the_same_bits(tmp_path: Path, task: Any, unbroken: Run, at: int) -> None:
    """Before the rollback, and after it: what an interruption saved is never gone back to."""
    parts = Run(tmp_path, task, rising(save_seconds=1e-9), evaluated=False)
    original = parts.trainer.run

    def run_then_ask(iterator: Any, num_steps: int) -> Any:
        stretch = original(iterator, min(num_steps, 3))
        parts.stop.requested = int(parts.trainer.global_step.numpy()) >= at
        return stretch

    parts.trainer.run = run_then_ask  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        parts.start()
    again = Run(tmp_path, task, rising(save_seconds=1e-9), evaluated=False)
    again.start()
    for name, value in weights(unbroken).items():
        np.testing.assert_array_equal(weights(again)[name], value, err_msg=name)
    assert again.checkpoints.steps() == unbroken.checkpoints.steps()


def test_before_the_first_evaluation_it_goes_back_to_the_beginning(tmp_path: Path, task: Any) -> None:
    plan = rising(
        optimizer={"name": "sgd", "learning_rate": 1e5, "clip_norm": None},
        on_nan={"action": "rollback", "factor": 1e-6},
    )
    run = Run(tmp_path, task, plan, evaluated=False)
    assert run.start().steps == 60
    assert "back to step 0, on with 1e-06 times the learning rate" in run.stderr.getvalue()
    assert 0 not in run.checkpoints.steps()  # not needed any more


def test_what_a_smaller_rate_does_not_help_ends_after_the_retries(tmp_path: Path, task: Any) -> None:
    run = Run(tmp_path, task, rising(on_nan={"action": "rollback", "factor": 0.99, "retries": 2}), evaluated=False)
    with pytest.raises(NonFiniteLoss, match=r"after 2 rollbacks, the last with 0\.9801 times") as caught:
        run.start()
    assert "step" in caught.value.details
    assert run.stderr.getvalue().count("back to step") == 2
    again = Run(tmp_path, task, rising(on_nan={"action": "rollback", "factor": 0.99, "retries": 2}), evaluated=False)
    with pytest.raises(NonFiniteLoss, match="after 2 rollbacks"):
        again.start()


def test_the_action_alone_and_what_can_not_be() -> None:
    assert spec(on_nan="rollback").train.on_nan.action == "rollback"
    assert "on_nan" not in spec(on_nan="stop").to_json()["train"]
    for wrong, words in (
        ("ignore", "'rollback'"),
        ({"action": "rollback", "factor": 1.0}, "less than 1"),
        ({"action": "rollback", "factor": float("nan")}, "factor"),
        ({"retries": 0}, "greater than or equal to 1"),
    ):
        with pytest.raises(InvalidSpec, match=words):
            spec(on_nan=wrong)
