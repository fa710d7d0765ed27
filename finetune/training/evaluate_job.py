"""Evaluate a job: every Checkpoint that is still there once more, in order, on any of its splits.

Takes a job's folder, running or ended. Gives a JobEvaluation, and writes nothing. Next: the CLI. The evaluator that
follows a run and writes its results down is `finetune.training.evaluator`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.jobs.folder import JobFolder
from finetune.models.restore import restore
from finetune.spec import EarlyStop, JobSpec
from finetune.training.best import Evaluated, Verdict, decide
from finetune.training.checkpoints import CheckpointGone, Checkpoints, spec_digest
from finetune.training.evaluate import SplitEvaluation, captions_of
from finetune.training.evaluations import Evaluations
from finetune.training.prepare import Prepared, load_prepared
from finetune.training.stage_networks import StageNetworks
from zoo.catalog import Catalog
from zoo.errors import InvalidArgument, NotFound

PARTS = ("train", "validation", "test")


class NoCheckpoints(NotFound):
    """The job has no Checkpoint (yet), or not the one that was asked for."""


class NoSuchSplit(InvalidArgument):
    """The job's split rule gave this part no examples."""


@dataclass(frozen=True, kw_only=True)
class CheckpointEvaluation:
    """`recorded`: what the run's own evaluator wrote of this step; None: nothing. `best`: the best of the run so far,
    kept from rotation; None where the run evaluates nothing."""

    step: int
    metrics: Mapping[str, Any]
    recorded: Mapping[str, Any] | None
    best: bool

    def to_json(self) -> dict[str, Any]:
        recorded = None if self.recorded is None else dict(self.recorded)
        return {"step": self.step, "best": self.best, "metrics": dict(self.metrics), "recorded": recorded}


@dataclass(frozen=True, kw_only=True)
class JobEvaluation:
    """`gone`: steps whose Checkpoints were rotated away before they could be read. `best`: by this evaluation."""

    job: str
    folder: str
    split: str
    num_examples: int
    metric: str
    checkpoints: tuple[CheckpointEvaluation, ...]
    gone: tuple[int, ...]
    best: Evaluated | None

    def to_json(self) -> dict[str, Any]:
        return {
            "job": self.job,
            "folder": self.folder,
            "split": self.split,
            "num_examples": self.num_examples,
            "checkpoints": [entry.to_json() for entry in self.checkpoints],
            "gone": list(self.gone),
            "best": None
            if self.best is None
            else {"step": self.best.step, "metric": self.metric, "value": self.best.metric},
        }


def evaluate_job(
    folder: JobFolder,
    catalog: Catalog,
    *,
    split: str = "validation",
    steps: Sequence[int] = (),
    on_result: Callable[[CheckpointEvaluation], None] = lambda result: None,
) -> JobEvaluation:
    """Every Checkpoint of a job that is there, or those of `steps`, from the earliest on.

    The run may go on beside it: what it rotates away meanwhile is passed over and counted in `gone`; what it saves
    after the start is not looked at.

    Raises NoCheckpoints, NoSuchSplit; NotAJobFolder, DamagedJobFile, DataChanged, DamagedCheckpoint, AnotherCheckpoint.
    """
    request = folder.request()
    spec = request.spec
    checkpoints = Checkpoints(folder.checkpoints, digest=spec_digest(spec))
    wanted = _wanted(checkpoints, steps)
    prepared = load_prepared(folder, spec, catalog, parts=tuple(dict.fromkeys(["validation", split])))
    if split not in prepared.splits:
        there = ", ".join(f"{count} {part}" for part, count in prepared.num_examples.items())
        raise NoSuchSplit(f"job {request.job} has no {split} examples; its split {spec.data.split!r} gave {there}")
    ours = _Evaluation(spec, catalog, prepared, split)
    recorded = Evaluations(folder, spec.train)
    results, gone = [], []
    for step in wanted:
        try:
            metrics = ours.metrics(checkpoints, step)
        except CheckpointGone as error:
            print(f"warning: {error.message}; going on with the next", file=sys.stderr, flush=True)
            gone.append(step)
            continue
        of_run = recorded.get(step) if split == "validation" else None
        best = recorded.verdict().best
        result = CheckpointEvaluation(
            step=step,
            metrics=metrics,
            recorded=None if of_run is None else of_run.metrics,
            best=best is not None and best.step == step,
        )
        on_result(result)
        results.append(result)
    rule = spec.train.early_stop
    return JobEvaluation(
        job=request.job,
        folder=str(folder.root),
        split=split,
        num_examples=len(prepared.splits[split].examples),
        metric=rule.metric,
        checkpoints=tuple(results),
        gone=tuple(gone),
        best=_best(results, rule).best,
    )


class _Evaluation:
    """Networks that take one Checkpoint's weights after the other, each that of the Checkpoint's stage."""

    def __init__(self, spec: JobSpec, catalog: Catalog, prepared: Prepared, split: str) -> None:
        self._networks = StageNetworks(spec, catalog, prepared)
        self._evaluation = SplitEvaluation(
            self._networks.head,
            batch_size=spec.train.batch_size,
            training_captions=captions_of(prepared.source, prepared.split.train),
        )
        self._split = split
        # What a head fits to its predictions (a temperature, thresholds) always comes from the validation split.
        self._fits_before = split != "validation" and "validation" in prepared.splits

    def metrics(self, checkpoints: Checkpoints, step: int) -> dict[str, Any]:
        """Raises CheckpointGone, DamagedCheckpoint, AnotherCheckpoint."""
        network, seen = self._networks.at(step, part=self._split)
        weights = {name: checkpoints.read_weights(step, name) for name in network.groups}
        for component, tensors in weights.items():
            restore(network.groups[component], tensors).require_complete(f"the Checkpoint's {component}")
        if self._fits_before:
            self._evaluation.fit(self._networks.at(step)[1]())
        split = seen()
        if split.name == "validation":
            self._evaluation.fit(split)
        return self._evaluation(split)


def _wanted(checkpoints: Checkpoints, steps: Sequence[int]) -> list[int]:
    there = checkpoints.steps()
    missing = sorted(set(steps) - set(there))
    if missing or not there:
        named = "none yet" if not there else ", ".join(map(str, there))
        asked = f" of step {missing[0]}" if missing else ""
        raise NoCheckpoints(f"{checkpoints.root} has no Checkpoint{asked}; there are: {named}")
    return [step for step in there if not steps or step in steps]


def _best(results: Sequence[CheckpointEvaluation], rule: EarlyStop) -> Verdict:
    numbers = [(result.step, result.metrics.get(rule.metric)) for result in results]
    entries = [
        Evaluated(step=step, metric=float(value) if isinstance(value, int | float) else float("nan"))
        for step, value in numbers
    ]
    return decide(entries, rule.model_copy(update={"patience": None}))
