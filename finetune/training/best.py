"""Best and early stop: functions of the sequence (step, metric), never of time. No TensorFlow.

Takes the evaluations of Checkpoints in the order of their steps. Gives the verdict.
Next: `finetune.training.controller`, `finetune.training.publish`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from finetune.spec import EarlyStop, TrainConfig


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """The deciding metric of one Checkpoint; NaN where the evaluation gave no finite number."""

    step: int
    metric: float


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`best` is None while no metric was finite. `stop_step` is the evaluation that used up the patience, or None."""

    best: Evaluated | None
    stop_step: int | None


def evaluation_steps(train: TrainConfig) -> list[int]:
    """The steps whose Checkpoints are evaluated: every `evaluate_every`, and the last one of every stage."""
    return sorted({*range(train.evaluate_every, train.steps + 1, train.evaluate_every), *train.stage_ends})


def is_evaluation_step(step: int, train: TrainConfig) -> bool:
    return step > 0 and (step % train.evaluate_every == 0 or step in train.stage_ends)


def decide(sequence: Sequence[Evaluated], rule: EarlyStop) -> Verdict:
    """The first of equals is best; NaN never is; what comes after the stop is not looked at.

    A NaN counts against the patience like any other evaluation without a new best. Raises ValueError where `sequence`
    isn't in strictly rising order of steps: an answer for it would depend on time.
    """
    best: Evaluated | None = None
    waited = 0
    previous = -1
    for entry in sequence:
        if entry.step <= previous:
            raise ValueError(f"evaluations must come in order of steps: {entry.step} after {previous}")
        previous = entry.step
        if math.isfinite(entry.metric) and (best is None or _better(entry.metric, best.metric, rule.mode)):
            best, waited = entry, 0
        else:
            waited += 1
        if rule.patience is not None and waited >= rule.patience:
            return Verdict(best=best, stop_step=entry.step)
    return Verdict(best=best, stop_step=None)


def _better(new: float, old: float, mode: str) -> bool:
    return new < old if mode == "min" else new > old


def kept_hourly(seconds: Mapping[int, float], hours: float) -> set[int]:
    """Of Checkpoints at `seconds` of training each, the first of every stretch of so many hours after the first one.

    Training time, over all sessions of a run: neither pauses nor a clock that jumps count. What is chosen stays chosen
    when others are removed or added.
    """
    kept: dict[int, int] = {}
    for step in sorted(seconds):
        kept.setdefault(int(seconds[step] // (3600.0 * hours)), step)
    return {step for stretch, step in kept.items() if stretch > 0}


def rotation(
    saved: Sequence[int],
    *,
    keep: int,
    evaluated: Sequence[int],
    best: int | None,
    train: TrainConfig,
    hourly: Collection[int] = (),
) -> list[int]:
    """Which of the saved Checkpoints may go: neither among the newest `keep`, nor the best, nor still to be evaluated,
    nor among those of `kept_hourly`.

    A Checkpoint between evaluations (saved by the clock, or when a run was interrupted) serves only to resume: it goes
    as soon as there is a newer one. That of step 0, which a rollback may need, stays until one has been evaluated.
    """
    ordered = sorted(saved)
    for_evaluation = [step for step in ordered if is_evaluation_step(step, train)]
    kept = set(for_evaluation[-keep:]) | {step for step in for_evaluation if step not in set(evaluated)}
    kept |= {*ordered[-1:], *hourly, *([] if for_evaluation else [0])}
    if best is not None:
        kept.add(best)
    return [step for step in ordered if step not in kept]
