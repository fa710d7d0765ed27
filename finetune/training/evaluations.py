"""Evaluations: the results of Checkpoints, one file each, written once. No TensorFlow.

Takes EvalResults. Gives the sequence (step, metric). Next: `finetune.training.best`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune.jobs.folder import JobFolder, read_json, write_json
from finetune.spec import TrainConfig
from finetune.training.best import Evaluated, Verdict, decide, evaluation_steps
from zoo.errors import InvalidArgument


class UnknownMetric(InvalidArgument):
    """train.early_stop.metric names nothing that the evaluation gives as one number."""


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """Metrics of one split at one step: `loss` and what the head adds. None stands for NaN and infinities.

    `fitted`: arguments of the head that were fitted to these predictions (`FittedHead`). `extremes`: the worst and the
    best predicted examples, see `finetune.training.extremes`. `warnings`: what the head says of these predictions.
    """

    step: int
    split: str
    num_examples: int
    metrics: Mapping[str, Any]
    fitted: Mapping[str, Any] = field(default_factory=dict)
    extremes: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()


class Evaluations:
    """The results in a job's folder. Files never change: each is read once."""

    def __init__(self, folder: JobFolder, train: TrainConfig) -> None:
        self._folder = folder
        self._train = train
        self._expected = evaluation_steps(train)
        self._known: dict[int, EvalResult] = {}

    def write(self, result: EvalResult) -> None:
        write_json(self._folder.evaluation_path(result.step), result.__dict__)

    def get(self, step: int) -> EvalResult | None:
        if step not in self._known:
            value = read_json(self._folder.evaluation_path(step))
            if value is None:
                return None
            self._known[step] = EvalResult(**value)
        return self._known[step]

    def sequence(self) -> list[Evaluated]:
        """The deciding metric of the evaluation steps, up to the first that has no result yet."""
        result: list[Evaluated] = []
        for step in self._expected:
            evaluation = self.get(step)
            if evaluation is None:
                break
            result.append(Evaluated(step=step, metric=self._metric(evaluation)))
        return result

    def verdict(self) -> Verdict:
        return decide(self.sequence(), self._train.early_stop)

    def _metric(self, result: EvalResult) -> float:
        name = self._train.early_stop.metric
        if name not in result.metrics or not isinstance(result.metrics[name], int | float | None):
            numbers = sorted(k for k, v in result.metrics.items() if isinstance(v, int | float | None))
            raise UnknownMetric(
                f"train.early_stop.metric is {name!r}; the validation split's metrics are {', '.join(numbers)}",
                hint=f"--set train.early_stop.metric={numbers[0] if numbers else 'loss'}",
            )
        value = result.metrics[name]
        return float("nan") if value is None else float(value)
