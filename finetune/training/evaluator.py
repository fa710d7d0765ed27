"""Evaluator: follows the Checkpoints of a job in a process of its own, each once, in order.

Takes Checkpoints and the validation split. Gives `evaluations/<step>.json` and best.json.
Next: `finetune.training.best`.

It only reads Checkpoints and is in no cluster: a parameter-server coordinator would hang on it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from finetune.jobs.folder import JobFolder, read_json, write_json
from finetune.models.heads.head import HeadLayer
from finetune.models.network import Network
from finetune.models.restore import restore
from finetune.spec import TrainConfig
from finetune.training.best import evaluation_steps
from finetune.training.checkpoints import CheckpointGone, Checkpoints
from finetune.training.evaluate import SplitEvaluation
from finetune.training.evaluations import EvalResult, Evaluations
from finetune.training.pictures import Pictures
from finetune.training.progress import Pulse, PulseWatch
from finetune.training.split_data import SplitData
from finetune.training.summaries import Summaries
from zoo.errors import Unavailable

# The validation split with its features, which change with the weights where the backbone is trained too.
Validation = Callable[[], SplitData]
# Step → the network that its Checkpoint is of; networks of all steps have one head.
NetworkAt = Callable[[int], tuple[Network, Validation]]

_POLL = 0.2  # seconds
_CHIEF_TIMEOUT = 300.0  # seconds without a sign of life of the chief


class ChiefGone(Unavailable):
    """Nothing new appears, and no chief is alive to save it."""


class Evaluator:
    """Evaluates what is there already, then waits for more, until the chief's end marker or the early stop."""

    def __init__(
        self,
        *,
        folder: JobFolder,
        train: TrainConfig,
        head: HeadLayer,
        network_at: NetworkAt,
        checkpoints: Checkpoints,
        summaries: Summaries,
        pulse: Pulse,
        pictures: Pictures | None = None,
        training_captions: Callable[[], Iterable[str]] | None = None,
        chief_timeout: float = _CHIEF_TIMEOUT,
        on_result: Callable[[EvalResult], None] = lambda result: None,
    ) -> None:
        self._folder = folder
        self._train = train
        self._network_at = network_at
        self._evaluation = SplitEvaluation(head, batch_size=train.batch_size, training_captions=training_captions)
        self._checkpoints = checkpoints
        self._summaries = summaries
        self._pulse = pulse
        self._pictures = pictures
        self._chief_timeout = chief_timeout
        self._on_result = on_result
        self._evaluations = Evaluations(folder, train)

    def run(self) -> None:
        """Raises ChiefGone naming the folder, DamagedCheckpoint, AnotherCheckpoint."""
        chief = PulseWatch(self._folder.progress_path)
        quiet_since = time.monotonic()
        self._note_best()
        while self._evaluations.verdict().stop_step is None:
            done = read_json(self._folder.checkpoints_done_path)  # looked at first: what is saved later isn't missed
            step = self._next()
            if step is not None:
                self._evaluate(step)
                self._note_best()
                quiet_since = time.monotonic()
                continue
            if done is not None:
                return
            silent = min(time.monotonic() - quiet_since, chief.silent())
            if silent > self._chief_timeout:
                raise ChiefGone(
                    f"no new Checkpoint in {self._folder.checkpoints} for {silent:.0f} s, and no chief is alive there",
                    hint="run the same command again: it resumes",
                )
            time.sleep(_POLL)

    def _next(self) -> int | None:
        """The first evaluation step up to the newest Checkpoint that has no result. Nothing is evaluated twice, also
        after a restart."""
        newest = max(self._checkpoints.steps(), default=0)
        expected = (step for step in evaluation_steps(self._train) if step <= newest)
        return next((step for step in expected if self._evaluations.get(step) is None), None)

    def _note_best(self) -> None:
        """best.json, for people and other tools; it comes after the evaluation, which comes after the weights. What is
        published is decided by the sequence of evaluations itself."""
        best = self._evaluations.verdict().best
        if best is None:
            return
        note = {
            "step": best.step,
            "metric": self._train.early_stop.metric,
            "value": best.metric,
            "checkpoint": f"{self._folder.checkpoints.name}/{best.step}",
        }
        if read_json(self._folder.best_path) != note:
            write_json(self._folder.best_path, note)

    def _evaluate(self, step: int) -> None:
        self._pulse.set(step=step)
        network, validation = self._network_at(step)
        try:
            weights = {component: self._checkpoints.read_weights(step, component) for component in network.groups}
        except CheckpointGone as error:
            # The chief never removes what isn't evaluated, but somebody else may have. The sequence must not end here:
            # like NaN, an absent metric never is the best.
            print(f"warning: {error.message}; going on with the next", file=sys.stderr, flush=True)
            absent = {self._train.early_stop.metric: None}
            self._written(EvalResult(step=step, split="validation", num_examples=0, metrics=absent))
            return
        for component, tensors in weights.items():
            restore(network.groups[component], tensors).require_complete(f"the Checkpoint's {component}")
        split = validation()  # as these weights see it
        result = self._result(step, split)
        self._written(result)
        self._summaries.scalars(step, result.metrics)
        if self._pictures is not None:
            self._pictures.write(step, split, result.metrics)
        print(f"step {step}: " + _line(result.metrics), file=sys.stderr, flush=True)

    def _written(self, result: EvalResult) -> None:
        self._evaluations.write(result)
        self._on_result(result)

    def _result(self, step: int, split: SplitData) -> EvalResult:
        fitted = self._evaluation.fit(split)
        metrics = self._evaluation(split)
        return EvalResult(
            step=step,
            split="validation",
            num_examples=len(split.examples),
            metrics=metrics,
            fitted=fitted,
            extremes=self._evaluation.extremes(split),
            warnings=self._evaluation.warnings,
        )


def _line(metrics: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in metrics.items() if isinstance(value, int | float))
