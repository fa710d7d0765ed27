"""The Controller against evaluations that come from elsewhere: waiting, rotating, stopping, leaving."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune.jobs.folder import JobFolder
from finetune.models.network import HeadNetwork
from finetune.spec import JobSpec
from finetune.training.checkpoints import Checkpoints
from finetune.training.controller import Controller, EvaluatorFailed, EvaluatorGone, NoFiniteMetric, Outcome
from finetune.training.evaluations import EvalResult, Evaluations, UnknownMetric
from finetune.training.evaluator import ChiefGone, Evaluator
from finetune.training.progress import Progress, Pulse
from finetune.training.stop import Interrupted, StopSignal
from finetune.training.summaries import Summaries
from tests.finetune.training.line import LineTask
from zoo.atomic_file import NoSpace


def spec(**train: Any) -> JobSpec:
    values = {"steps": 60, "evaluate_every": 10, "summary_every": 5, "batch_size": 8, "keep_checkpoints": 2, **train}
    return JobSpec.parse(
        {
            "name": "child",
            "backbone": "tiny",
            "head": {"kind": "captioner"},
            "data": {"location": "scenes:"},
            "train": values,
        }
    )


class Run:
    """A Controller in a folder, with everything real but the data."""

    def __init__(self, root: Path, task: Any, plan: JobSpec, *, evaluated: bool = True, timeout: float = 20.0) -> None:
        self.folder = JobFolder.create(root, job="j1", spec=plan, store_url="memory://x")
        self.spec = plan
        self.task = task
        self.checkpoints = Checkpoints(self.folder.checkpoints, digest="d")
        self.evaluations = Evaluations(self.folder, plan.train)
        self.trainer = task.trainer(plan.train)
        if self.checkpoints.steps():
            self.checkpoints.restore(self.trainer.variables, step=self.checkpoints.steps()[-1])
        self.stop = StopSignal()
        self.stderr = io.StringIO()
        self._evaluated = evaluated
        self._timeout = timeout
        self.seconds_before = 0.0

    def start(self) -> Outcome:
        summaries = Summaries(self.folder.events_train)
        with Progress(self.folder, steps=self.spec.train.steps, stream=self.stderr) as progress:
            return Controller(
                folder=self.folder,
                spec=self.spec,
                trainer=self.trainer,
                checkpoints=self.checkpoints,
                batches=lambda step: nullcontext(self.task.batches(step)),
                progress=progress,
                summaries=summaries,
                stop=self.stop,
                evaluated=self._evaluated,
                evaluator_timeout=self._timeout,
                seconds_before=self.seconds_before,
            ).run()

    @contextmanager
    def evaluator(self, metric: Callable[[int], float | None], *, pause: float = 0.0) -> Iterator[list[list[int]]]:
        """Somebody who writes a metric for each Checkpoint in order; gives which Checkpoints it saw, each time."""
        ended, seen = threading.Event(), []

        def follow() -> None:
            for step in range(10, self.spec.train.steps + 1, 10):
                while not ended.is_set() and step not in self.checkpoints.steps():
                    time.sleep(0.01)
                if ended.is_set():
                    return
                time.sleep(pause)
                seen.append(self.checkpoints.steps())
                self.evaluations.write(
                    EvalResult(step=step, split="validation", num_examples=1, metrics={"loss": metric(step)})
                )

        thread = threading.Thread(target=follow)
        thread.start()
        try:
            yield seen
        finally:
            ended.set()
            thread.join()


@pytest.fixture(scope="module")
def task() -> LineTask:
    return LineTask()


def test_the_best_is_kept_and_the_disk_stays_bounded(tmp_path: Path, task: Any) -> None:
    run = Run(tmp_path, task, spec())
    with run.evaluator(lambda step: abs(step - 20), pause=0.05) as seen:
        outcome = run.start()
    assert (outcome.steps, outcome.best_step, outcome.stopped_early) == (60, 20, False)
    assert 20 in run.checkpoints.steps()
    assert max(len(steps) for steps in seen) <= 2 + 2 + 1  # kept, ahead of the Evaluator, best
    assert json.loads(run.folder.checkpoints_done_path.read_text()) == {"last_step": 60}


def test_early_stop_discards_what_ran_ahead(tmp_path: Path, task: Any) -> None:
    """Whether the chief ran ahead or not depends on time; the outcome must not."""
    outcomes = []
    for place, pause in enumerate((0.0, 0.15)):
        run = Run(tmp_path / str(place), task, spec(steps=200, early_stop={"patience": 2}))
        with run.evaluator(lambda step: {10: 3.0, 20: 2.0, 30: 2.5, 40: 2.5}.get(step, 1.0), pause=pause):
            outcomes.append(run.start())
    for outcome in outcomes:
        assert (outcome.steps, outcome.best_step, outcome.stopped_early) == (40, 20, True)


def test_nan_is_not_best_and_nothing_finite_is_an_error(tmp_path: Path, task: Any) -> None:
    run = Run(tmp_path / "a", task, spec())
    with run.evaluator(lambda step: None if step < 50 else 7.0):
        assert run.start().best_step == 50
    run = Run(tmp_path / "b", task, spec())
    with run.evaluator(lambda step: None), pytest.raises(NoFiniteMetric, match="none of the 6 evaluations"):
        run.start()


def test_without_a_validation_split_the_last_step_is_best_and_nobody_is_waited_for(tmp_path: Path, task: Any) -> None:
    run = Run(tmp_path, task, spec(), evaluated=False, timeout=0.0)
    outcome = run.start()
    assert (outcome.steps, outcome.best_step) == (60, 60)
    assert run.checkpoints.steps() == [50, 60]


def test_nobody_evaluating_is_an_error_and_not_a_wait_for_ever(tmp_path: Path, task: Any) -> None:
    run = Run(tmp_path, task, spec(), timeout=0.3)
    with pytest.raises(EvaluatorGone, match=str(tmp_path)):
        run.start()
    assert run.checkpoints.steps() == [10, 20, 30]  # not further ahead than allowed


def test_the_evaluators_error_ends_the_chief(tmp_path: Path, task: Any) -> None:
    run = Run(tmp_path, task, spec())
    run.folder.error_path.write_text(json.dumps({"code": "DATA_LOSS", "message": "all is lost"}))
    with pytest.raises(EvaluatorFailed, match="all is lost"):
        run.start()


def test_an_unknown_deciding_metric_says_which_there_are(tmp_path: Path, task: Any) -> None:
    run = Run(tmp_path, task, spec(early_stop={"metric": "ciderr"}))
    with run.evaluator(lambda step: 1.0), pytest.raises(UnknownMetric, match=r"'ciderr'.*are loss"):
        run.start()


def test_a_wish_to_stop_is_granted_after_saving_and_the_run_goes_on_exactly(tmp_path: Path, task: Any) -> None:
    whole = Run(tmp_path / "whole", task, spec())
    with whole.evaluator(lambda step: -float(step)):
        expected = whole.start()

    parts = Run(tmp_path / "parts", task, spec())
    # The wish comes while the trainer is at some step in the middle.
    original = parts.trainer.run

    def run_then_ask(iterator: Any, num_steps: int) -> Any:
        stretch = original(iterator, num_steps)
        if int(parts.trainer.global_step.numpy()) >= 23:
            parts.stop.requested = True
        return stretch

    parts.trainer.run = run_then_ask  # type: ignore[method-assign]
    with parts.evaluator(lambda step: -float(step)), pytest.raises(Interrupted):
        parts.start()
    left = parts.checkpoints.steps()[-1]
    assert 23 <= left <= 30

    again = Run(tmp_path / "parts", task, spec())
    with again.evaluator(lambda step: -float(step)):
        outcome = again.start()
    assert (outcome.steps, outcome.best_step) == (expected.steps, expected.best_step)
    for name, value in whole.checkpoints.read_weights(60).items():
        np.testing.assert_array_equal(again.checkpoints.read_weights(60)[name], value)


def test_progress_and_summaries_tell_what_happened(tmp_path: Path, task: Any) -> None:
    run = Run(tmp_path, task, spec())
    with run.evaluator(lambda step: 1.0):
        run.start()
    progress = run.folder.read_progress()
    assert progress is not None
    assert (progress["step"], progress["steps"]) == (60, 60)
    assert progress["loss"] > 0
    assert progress["examples_per_second"] > 0
    assert 0 <= progress["input"]["waited_share"] <= 1
    assert "training waited for input" in run.stderr.getvalue()
    assert "loss" in run.stderr.getvalue()
    events = EventAccumulator(str(run.folder.events_train), size_guidance={"tensors": 0})
    events.Reload()
    tags = {"loss", "learning_rate", "gradient_norm", "examples_per_second", "input_wait_share"}
    assert tags <= set(events.Tags()["tensors"])
    assert [event.step for event in events.Tensors("loss")] == list(range(5, 61, 5))


def evaluator_of(run: Run, *, timeout: float = 5.0) -> Evaluator:
    head = run.task.head(seed=5)
    network = HeadNetwork(head)
    return Evaluator(
        folder=run.folder,
        train=run.spec.train,
        head=head,
        network_at=lambda step: (network, lambda: run.task.data),
        checkpoints=run.checkpoints,
        summaries=Summaries(run.folder.events_validation),
        pulse=Pulse(run.folder.evaluator_path),
        chief_timeout=timeout,
    )


def test_the_evaluator_follows_a_real_run_to_its_end(
    tmp_path: Path, task: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, task, spec(optimizer={"learning_rate": 0.01, "ema_decay": 0.5}))
    thread = threading.Thread(target=evaluator_of(run).run)
    thread.start()
    outcome = run.start()
    thread.join(timeout=20)
    assert not thread.is_alive()
    results = [run.evaluations.get(step) for step in range(10, 61, 10)]
    losses = [result.metrics["loss"] for result in results if result is not None]
    assert len(losses) == 6
    assert outcome.best_step == 10 * (1 + int(np.argmin(losses)))
    assert set(results[0].metrics) == {"loss", "mean"}  # type: ignore[union-attr]
    assert capsys.readouterr().err.count("warning: validation: all lines are straight") == 1
    assert results[0].num_examples == len(task.data.examples)  # type: ignore[union-attr]


def test_nothing_is_evaluated_twice_and_what_was_rotated_away_is_passed_over(
    tmp_path: Path, task: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path, task, spec(keep_checkpoints=5), evaluated=False)
    run.start()
    assert run.checkpoints.steps() == [20, 30, 40, 50, 60]
    run.evaluations.write(EvalResult(step=20, split="validation", num_examples=1, metrics={"loss": -1.0}))
    evaluator = evaluator_of(run)
    read = run.checkpoints.read_weights

    def read_late(step: int, component: str) -> Any:
        if step == 40:
            run.checkpoints.remove(40)  # between the listing and the reading
        return read(step, component)

    run.checkpoints.read_weights = read_late  # type: ignore[method-assign]
    evaluator.run()
    results = {int(path.stem): json.loads(path.read_text()) for path in run.folder.evaluations.iterdir()}
    assert sorted(results) == [10, 20, 30, 40, 50, 60]
    assert results[20]["metrics"] == {"loss": -1.0}
    for gone in (10, 40):
        assert (results[gone]["num_examples"], results[gone]["metrics"]) == (0, {"loss": None})
    assert results[50]["metrics"]["loss"] > 0
    assert capsys.readouterr().err.count("going on with the next") == 2


def test_best_on_disk_is_blind_to_nan_and_comes_back_when_it_is_lost(tmp_path: Path, task: Any) -> None:
    run = Run(tmp_path, task, spec(keep_checkpoints=6, optimizer={"learning_rate": 0.05}), evaluated=False)
    run.start()
    newest = run.checkpoints.steps()[-1]
    run.checkpoints.remove(newest)
    weight = run.trainer.variables["head"]["w"]
    weight.assign([np.nan, 1.0])
    run.checkpoints.save(run.trainer.variables, step=newest, train_loss=None, seconds=1.0)
    evaluator_of(run).run()
    assert json.loads(run.folder.evaluation_path(newest).read_text())["metrics"]["loss"] is None
    losses = {step: run.evaluations.get(step).metrics["loss"] for step in range(10, newest, 10)}  # type: ignore[union-attr]
    best = min(losses, key=lambda step: losses[step])
    note = {"step": best, "metric": "loss", "value": losses[best], "checkpoint": f"checkpoints/{best}"}
    assert json.loads(run.folder.best_path.read_text()) == note
    assert (run.folder.root / note["checkpoint"]).is_dir()
    assert run.folder.best_path.stat().st_mtime_ns >= run.folder.evaluation_path(best).stat().st_mtime_ns
    run.folder.best_path.unlink()
    evaluator_of(run).run()  # everything is evaluated: only the note is made again
    assert json.loads(run.folder.best_path.read_text()) == note


def test_an_evaluator_without_a_chief_ends_naming_the_folder(tmp_path: Path, task: Any) -> None:
    run = Run(tmp_path, task, spec())
    with pytest.raises(ChiefGone, match=str(tmp_path)):
        evaluator_of(run, timeout=0.5).run()


def test_checkpoints_by_the_clock_are_resumed_from_and_decide_nothing(tmp_path: Path, task: Any) -> None:
    """At every call of the trainer, since the clock is always past due: the outcome is that of a run without them."""
    plain = Run(tmp_path / "plain", task, spec())
    with plain.evaluator(lambda step: abs(step - 20)):
        expected = plain.start()
    clocked = Run(tmp_path / "clocked", task, spec(save_seconds=1e-9, keep_checkpoints=2))
    saved: list[int] = []
    save = clocked.checkpoints.save

    def noted(variables: Any, *, step: int, **record: Any) -> None:
        saved.append(step)
        save(variables, step=step, **record)

    clocked.checkpoints.save = noted  # type: ignore[method-assign]
    with clocked.evaluator(lambda step: abs(step - 20)) as seen:
        outcome = clocked.start()
    between = [step for step in saved if step % 10]
    assert between, saved  # summaries are every 5 steps, so that calls end there
    assert saved == sorted(saved)
    assert (outcome.steps, outcome.best_step) == (expected.steps, expected.best_step) == (60, 20)
    assert sorted(int(path.stem) for path in clocked.folder.evaluations.iterdir()) == list(range(10, 61, 10))
    assert all(len([step for step in steps if step % 10]) <= 2 for steps in seen)
    assert not set(clocked.checkpoints.steps()) & set(between)
    for step in (20, 60):
        for name, value in plain.checkpoints.read_weights(step).items():
            np.testing.assert_array_equal(clocked.checkpoints.read_weights(step)[name], value)
        assert clocked.checkpoints.record(step).train_loss == pytest.approx(plain.checkpoints.record(step).train_loss)


def test_the_training_loss_of_an_evaluation_outlives_an_interruption(tmp_path: Path, task: Any) -> None:
    whole = Run(tmp_path / "whole", task, spec(steps=20), evaluated=False)
    whole.start()
    parts = Run(tmp_path / "parts", task, spec(steps=20, summary_every=3), evaluated=False)
    original = parts.trainer.run

    def run_then_ask(iterator: Any, num_steps: int) -> Any:
        stretch = original(iterator, num_steps)
        parts.stop.requested = int(parts.trainer.global_step.numpy()) >= 13
        return stretch

    parts.trainer.run = run_then_ask  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        parts.start()
    assert parts.checkpoints.steps()[-1] not in (10, 20)
    again = Run(tmp_path / "parts", task, spec(steps=20, summary_every=3), evaluated=False)
    again.start()
    losses = [run.checkpoints.record(20).train_loss for run in (whole, again)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_one_checkpoint_for_so_many_hours_of_training_is_kept(tmp_path: Path, task: Any) -> None:
    """The run began hours ago, as its earlier sessions say; the first Checkpoint of an hour stays."""
    run = Run(tmp_path, task, spec(keep_hours=1.0, keep_checkpoints=1), evaluated=False)
    run.seconds_before = 7300.0
    run.start()
    assert run.checkpoints.steps() == [10, 60]
    assert run.checkpoints.record(10).seconds > 7300


def test_a_disk_that_is_full_ends_the_run_with_what_is_there(tmp_path: Path, task: Any) -> None:
    run = Run(tmp_path, task, spec(), evaluated=False)
    save = run.checkpoints.save

    def full_at_30(variables: Any, *, step: int, **record: Any) -> None:
        if step == 30:
            raise NoSpace("the disk is full; the Checkpoints before are kept", path="x")
        save(variables, step=step, **record)

    run.checkpoints.save = full_at_30  # type: ignore[method-assign]
    with pytest.raises(NoSpace, match="are kept"):
        run.start()
    assert 20 in run.checkpoints.steps()
    assert 30 not in run.checkpoints.steps()
    assert not run.folder.checkpoints_done_path.exists()
