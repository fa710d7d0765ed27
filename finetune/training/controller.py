"""Controller: trains to the next boundary, saves, lets the Evaluator follow, and decides when it is over.

Takes a Trainer, batches from any step on, Checkpoints and the evaluations that another process writes.
Gives the Outcome. Next: `finetune.training.publish`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from finetune.jobs.folder import JobFolder, write_json
from finetune.spec import JobSpec
from finetune.training.best import is_evaluation_step, kept_hourly, rotation
from finetune.training.checkpoints import Checkpoints
from finetune.training.evaluations import Evaluations
from finetune.training.input_watch import InputWatch
from finetune.training.observed import ObservedTrainer
from finetune.training.progress import Progress, PulseWatch
from finetune.training.rollback import Rollback
from finetune.training.saving import Saving
from finetune.training.stop import Interrupted, StopSignal
from finetune.training.summaries import Summaries
from finetune.training.trainer import NonFiniteLoss, Stretch, Trainer
from zoo.errors import FailedPrecondition, Unavailable

_CALL_SECONDS = 0.4  # a tf.function call lasts about this long: progress moves, and SIGTERM is seen
_EVALUATOR_TIMEOUT = 300.0  # seconds without a pulse of the Evaluator


class EvaluatorGone(Unavailable):
    """The chief waits for an evaluation and no Evaluator is alive to write it."""


class EvaluatorFailed(FailedPrecondition):
    """The Evaluator ended with an error, which is in error.json."""


class NoFiniteMetric(FailedPrecondition):
    """No evaluation gave a finite number: there is no best Checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """`steps`: how many were done that count, i.e. up to the early stop. `best_step` is to be exported."""

    steps: int
    best_step: int
    stopped_early: bool
    seconds: float


@dataclass
class _Sums:
    """Stretches added up since a boundary."""

    since: float
    stretch: Stretch | None = None

    def add(self, new: Stretch) -> None:
        self.stretch = new if self.stretch is None else self.stretch + new


@dataclass
class _Loss:
    """Of the training rows since the last evaluation step; it outlives interruptions in the Checkpoints between."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, new: Stretch) -> None:
        self.total += new.loss_sum
        self.weight += new.weight_sum

    @property
    def mean(self) -> float | None:
        return self.total / self.weight if self.weight else None


class Controller:
    """`last_step`: where the stage that the Trainer is of ends; None for the last one. `seconds_before`: wall time that
    earlier sessions and stages of this run took. `evaluated`: whether there is a validation
    split; without one no Evaluator is waited for, and the last Checkpoint is the best."""

    def __init__(
        self,
        *,
        folder: JobFolder,
        spec: JobSpec,
        trainer: Trainer | ObservedTrainer,
        checkpoints: Checkpoints,
        batches: Callable[[int], AbstractContextManager[Any]],
        progress: Progress,
        summaries: Summaries,
        stop: StopSignal,
        evaluated: bool,
        last_step: int | None = None,
        seconds_before: float = 0.0,
        evaluator_timeout: float = _EVALUATOR_TIMEOUT,
    ) -> None:
        self._folder = folder
        self._train = spec.train
        self._trainer = trainer
        self._checkpoints = checkpoints
        self._saving = Saving(checkpoints)
        self._saved_at = time.monotonic()
        self._batches = batches
        self._progress = progress
        self._summaries = summaries
        self._stop = stop
        self._evaluated = evaluated
        self._last_step = last_step or spec.train.steps
        self._evaluations = Evaluations(folder, spec.train)
        self._evaluator_timeout = evaluator_timeout
        self._began = time.monotonic() - seconds_before
        self._step = int(trainer.global_step.numpy())
        self._step_seconds: float | None = None  # a moving mean
        self._traced = False
        self._input = InputWatch()
        self._since_summary = _Sums(time.monotonic())
        self._rollback = Rollback(train=spec.train, variables=trainer.variables, checkpoints=checkpoints)
        self._loss = _Loss()
        if self._step in checkpoints.steps():
            record = checkpoints.record(self._step)
            self._loss = _Loss(record.loss_sum or 0.0, record.weight_sum or 0.0)

    def run(self) -> Outcome:
        """`train`, then `finish`."""
        self.train()
        return self.finish()

    def train(self) -> None:
        """Trains to the end of the stage or the early stop.

        Raises Interrupted (after saving) on SIGTERM, NonFiniteLoss, EvaluatorGone, EvaluatorFailed, NoSpace.
        """
        self._folder.checkpoints_done_path.unlink(missing_ok=True)
        if self._rollback.wanted and not self._checkpoints.steps():
            self._save()  # of step 0
            self._settle()
        while self._step < self._last_step and not self._stopped():
            try:
                self._train_on()
            except NonFiniteLoss as error:
                self._go_back(error)

    @property
    def over(self) -> bool:
        """Whether there is nothing left to train: the last step of all or the early stop was reached."""
        return self._step >= self._train.steps or self._stopped()

    @property
    def seconds(self) -> float:
        """Wall time of training so far, over all sessions."""
        return time.monotonic() - self._began

    def finish(self) -> Outcome:
        """Waits until the Evaluator has caught up. Raises what `train` raises, and NoFiniteMetric."""
        write_json(self._folder.checkpoints_done_path, {"last_step": self._step})
        self._wait("the evaluation of the last Checkpoints", lambda: self._stopped() or not self._unevaluated())
        return self._outcome()

    def _train_on(self) -> None:
        """To the last step or the early stop, whichever comes first, with batches from the present step on."""
        try:
            with self._batches(self._step) as iterator:
                self._input.begin(iterator)
                while self._step < self._last_step and not self._stopped():
                    self._stretch(iterator)
                if (sentence := self._input.sentence(iterator)) is not None:
                    self._progress.say(sentence)
            self._settle()
        except NonFiniteLoss:
            self._settle()  # what is being saved may be where to go back to
            raise
        finally:
            self._saving.abandon()
            self._stop.deferred = False

    def _go_back(self, error: NonFiniteLoss) -> None:
        """Raises `error` unless train.on_nan allows one more rollback."""
        self._step, said = self._rollback.go_back(error)
        self._trainer.begin()
        self._progress.announce(said)
        self._loss, self._since_summary = _Loss(), _Sums(time.monotonic())

    def _stretch(self, iterator: Any) -> None:
        """One call of the Trainer, and what is due at the step that it reaches."""
        begin = time.monotonic()
        stretch = self._trainer.run(iterator, self._num_steps())
        seconds = time.monotonic() - begin
        self._stop.deferred = True  # from here on there are steps to lose
        self._step += stretch.steps
        mean = seconds / stretch.steps
        self._step_seconds = None if not self._traced else 0.7 * (self._step_seconds or mean) + 0.3 * mean
        if self._traced:  # the first call's time was spent on tracing
            self._input.add(stretch, seconds)
        self._traced = True
        self._since_summary.add(stretch)
        self._loss.add(stretch)
        self._report(stretch, iterator)
        if self._step % self._train.summary_every == 0 or self._step == self._last_step:
            self._summarise(iterator)
        if self._saving.done():
            self._rotate()
        if is_evaluation_step(self._step, self._train):
            self._save()
            keep = self._train.keep_checkpoints
            self._wait("the Evaluator to catch up", lambda: self._stopped() or len(self._unevaluated()) <= keep)
        elif self._save_is_due():
            self._save()
        if self._stop.requested:
            self._leave()

    def _num_steps(self) -> int:
        """Up to the next boundary, and for about `_CALL_SECONDS`; the grouping has no influence on the weights."""
        boundary = min(
            self._last_step,
            *(every * (self._step // every + 1) for every in (self._train.summary_every, self._train.evaluate_every)),
        )
        affordable = 1 if self._step_seconds is None else int(_CALL_SECONDS / max(self._step_seconds, 1e-6))
        return min(boundary - self._step, max(affordable, self._trainer.least_steps))

    def _report(self, stretch: Stretch, iterator: Any) -> None:
        done, each = self._since_summary.stretch, self._step_seconds
        self._progress.update(
            phase="training",
            step=self._step,
            loss=done.loss if done else None,
            examples_per_second=stretch.examples / stretch.steps / each if each else None,
            eta_seconds=(self._train.steps - self._step) * each if each else None,
            input=self._input.now(iterator),
        )

    def _summarise(self, iterator: Any) -> None:
        now = time.monotonic()
        self._summaries.scalars(self._step, self._input.chart(iterator))
        if (done := self._since_summary.stretch) is not None and done.left_out:
            self._progress.say(f"{done.left_out} updates were left out: gradients overflowed in float16")
        if self._since_summary.stretch is not None:
            self._summaries.stretch(self._step, self._since_summary.stretch, seconds=now - self._since_summary.since)
        self._since_summary = _Sums(now)

    def _save_is_due(self) -> bool:
        """By the clock: such a Checkpoint is only resumed from, and decides nothing."""
        every = self._train.save_seconds
        return every is not None and self._saving.step is None and time.monotonic() - self._saved_at >= every

    def _save(self) -> None:
        """Begins to save; when the Checkpoint is there, what may go is decided with it in place (`_rotate`)."""
        evaluated = is_evaluation_step(self._step, self._train)
        stood = self._saving.save(
            self._trainer.variables,
            step=self._step,
            train_loss=self._loss.mean,
            seconds=self.seconds,
            loss_sum=None if evaluated else self._loss.total,
            weight_sum=None if evaluated else self._loss.weight,
        )
        self._saved_at = time.monotonic()
        self._summaries.scalars(self._step, {"checkpoint_stall_milliseconds": 1000 * stood})
        if evaluated:
            self._loss = _Loss()

    def _settle(self) -> None:
        """Until nothing is being saved any more."""
        if self._saving.settle():
            self._rotate()

    def _tell_warnings(self) -> None:
        """What the head says of its predictions; not of the first, when it may well still say the same of everything.

        Unless there is only one."""
        results = [self._evaluations.get(entry.step) for entry in self._evaluations.sequence()]
        for result in results[1:] or (results if self._step == self._train.steps else []):
            for text in result.warnings if result is not None else ():
                self._progress.warn(text)

    def _rotate(self) -> None:
        if self._evaluated:
            self._tell_warnings()
        saved, train = self._checkpoints.steps(), self._train
        best = self._evaluations.verdict().best if self._evaluated else None
        evaluated = [step for step in saved if not self._evaluated or self._evaluations.get(step) is not None]
        hourly: set[int] = set()
        if train.keep_hours is not None:
            seconds = {step: self._checkpoints.record(step).seconds for step in saved}
            hourly = kept_hourly(seconds, train.keep_hours)
        for step in rotation(
            saved,
            keep=train.keep_checkpoints,
            evaluated=evaluated,
            best=best.step if best else None,
            train=train,
            hourly=hourly,
        ):
            self._checkpoints.remove(step)

    def _leave(self) -> None:
        self._settle()
        if self._step not in self._checkpoints.steps():
            self._save()
            self._settle()
        self._progress.say(f"interrupted at step {self._step}; the same command resumes there")
        raise Interrupted

    def _stopped(self) -> bool:
        return self._evaluated and self._evaluations.verdict().stop_step is not None

    def _unevaluated(self) -> list[int]:
        if not self._evaluated:
            return []
        steps = {*self._checkpoints.steps(), *([] if self._saving.step is None else [self._saving.step])}
        return [
            step
            for step in sorted(steps)
            if is_evaluation_step(step, self._train) and self._evaluations.get(step) is None
        ]

    def _wait(self, what: str, ready: Callable[[], bool]) -> None:
        """Until `ready`, looking ten times a second; the disk stays bounded because the chief doesn't run ahead."""
        begin, pulse = time.monotonic(), PulseWatch(self._folder.evaluator_path)
        while not ready():
            if self._saving.done():
                self._rotate()
            if self._stop.requested:
                self._leave()
            error = self._folder.read_error()
            if error is not None:
                raise EvaluatorFailed(f"the Evaluator ended with an error: {error.get('message')}")
            silent = pulse.silent()
            if silent > self._evaluator_timeout:
                raise EvaluatorGone(
                    f"waited {silent:.0f} s for {what}, and no Evaluator is alive for {self._folder.root}",
                    hint="look at logs/evaluator.log, then run the same command: it resumes",
                )
            if time.monotonic() - begin > 1.0:  # shorter waits aren't worth a line
                self._progress.update(phase="waiting", eta_seconds=None, examples_per_second=None)
            time.sleep(0.1)

    def _outcome(self) -> Outcome:
        seconds = self.seconds
        if not self._evaluated:
            return Outcome(steps=self._step, best_step=self._step, stopped_early=False, seconds=seconds)
        self._tell_warnings()
        verdict = self._evaluations.verdict()
        if verdict.best is None:
            name = self._train.early_stop.metric
            raise NoFiniteMetric(
                f"none of the {len(self._evaluations.sequence())} evaluations gave a finite {name}: there is no best "
                "Checkpoint to publish",
                hint="lower train.optimizer.learning_rate or look at the data",
            )
        return Outcome(
            steps=verdict.stop_step or self._step,
            best_step=verdict.best.step,
            stopped_early=verdict.stop_step is not None and verdict.stop_step < self._train.steps,
            seconds=seconds,
        )
