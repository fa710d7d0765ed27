"""Best, early stop and rotation are functions of sequences."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.spec import EarlyStop, TrainConfig
from finetune.training.best import (
    Evaluated,
    decide,
    evaluation_steps,
    is_evaluation_step,
    kept_hourly,
    rotation,
)

NAN = float("nan")


def sequence(*metrics: float) -> list[Evaluated]:
    return [Evaluated(step=10 * place, metric=metric) for place, metric in enumerate(metrics, start=1)]


def test_the_lowest_is_best_and_the_first_of_equals() -> None:
    verdict = decide(sequence(3.0, 1.0, 2.0, 1.0), EarlyStop())
    assert verdict.best == Evaluated(step=20, metric=1.0)
    assert verdict.stop_step is None


def test_mode_max_takes_the_highest() -> None:
    assert decide(sequence(0.1, 0.3, 0.2), EarlyStop(metric="cider", mode="max")).best == Evaluated(step=20, metric=0.3)


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
def test_what_is_not_finite_is_never_best(mode: str, bad: float) -> None:
    rule = EarlyStop(mode=mode)  # type: ignore[arg-type]
    assert decide(sequence(bad, 5.0, bad), rule).best == Evaluated(step=20, metric=5.0)
    assert decide(sequence(bad, bad), rule).best is None


def test_patience_counts_evaluations_without_a_new_best_and_nan_among_them() -> None:
    rule = EarlyStop(patience=2)
    assert decide(sequence(3.0, 2.0, 2.5), rule).stop_step is None
    assert decide(sequence(3.0, 2.0, 2.5, NAN), rule).stop_step == 40
    assert decide(sequence(NAN, NAN), rule).stop_step == 20


def test_what_comes_after_the_stop_is_discarded() -> None:
    verdict = decide(sequence(3.0, 4.0, 4.0, 1.0), EarlyStop(patience=2))
    assert verdict.best == Evaluated(step=10, metric=3.0)
    assert verdict.stop_step == 30


def test_training_that_ends_before_patience_still_has_its_best() -> None:
    assert decide(sequence(3.0, 2.0, 4.0), EarlyStop(patience=5)).best == Evaluated(step=20, metric=2.0)


def test_an_order_that_depends_on_time_is_refused() -> None:
    with pytest.raises(ValueError, match="in order of steps"):
        decide([Evaluated(step=20, metric=1.0), Evaluated(step=10, metric=2.0)], EarlyStop())


@given(
    metrics=st.lists(st.floats(allow_nan=True), max_size=30),
    patience=st.none() | st.integers(1, 5),
    cut=st.integers(0, 30),
)
def test_a_stop_decided_on_a_prefix_stays(metrics: list[float], patience: int | None, cut: int) -> None:
    """The chief sees prefixes of the sequence, at moments that depend on time: it must never decide otherwise later."""
    rule = EarlyStop(patience=patience)
    early, whole = decide(sequence(*metrics[:cut]), rule), decide(sequence(*metrics), rule)
    if early.stop_step is not None:
        assert early == whole


def test_evaluation_steps_end_with_the_last_step() -> None:
    assert evaluation_steps(TrainConfig(steps=25, evaluate_every=10)) == [10, 20, 25]
    assert evaluation_steps(TrainConfig(steps=20, evaluate_every=10)) == [10, 20]
    assert evaluation_steps(TrainConfig(steps=5, evaluate_every=10)) == [5]


@given(steps=st.integers(1, 300), every=st.integers(1, 60))
def test_the_two_definitions_of_evaluation_steps_agree(steps: int, every: int) -> None:
    train = TrainConfig(steps=steps, evaluate_every=every)
    assert evaluation_steps(train) == [step for step in range(steps + 1) if is_evaluation_step(step, train)]


def test_rotation_keeps_the_newest_the_best_and_what_waits_for_evaluation() -> None:
    train = TrainConfig(steps=1000, evaluate_every=10)
    saved = [10, 20, 30, 40, 50, 60]
    assert rotation(saved, keep=2, evaluated=[10, 20, 30, 40, 50], best=20, train=train) == [10, 30, 40]
    assert rotation(saved, keep=2, evaluated=[10], best=10, train=train) == []


def test_a_checkpoint_between_evaluations_serves_only_until_there_is_a_newer_one() -> None:
    train = TrainConfig(steps=1000, evaluate_every=10)
    assert rotation([10, 13], keep=3, evaluated=[10], best=10, train=train) == []
    assert rotation([10, 13, 20], keep=3, evaluated=[10], best=10, train=train) == [13]


@given(
    places=st.sets(st.integers(1, 40), min_size=1),
    done=st.integers(0, 40),
    keep=st.integers(1, 5),
    best=st.none() | st.integers(1, 40),
)
def test_rotation_never_removes_what_it_promises_to_keep(
    places: set[int], done: int, keep: int, best: int | None
) -> None:
    train = TrainConfig(steps=120, evaluate_every=3)
    evaluated = [step for step in sorted(places) if step <= done and is_evaluation_step(step, train)]
    gone = rotation(sorted(places), keep=keep, evaluated=evaluated, best=best, train=train)
    unevaluated = [step for step in places if is_evaluation_step(step, train) and step not in evaluated]
    assert not set(gone) & {max(places), best, *unevaluated}
    left = [step for step in places - set(gone) if is_evaluation_step(step, train)]
    assert len(left) <= keep + len(unevaluated) + 1


def test_the_first_checkpoint_of_each_stretch_of_hours_stays() -> None:
    seconds = {step: 1800.0 * step for step in range(1, 10)}  # every half hour
    assert kept_hourly(seconds, 2.0) == {4, 8}
    assert kept_hourly(seconds, 0.5) == set(range(1, 10))
    assert kept_hourly({1: 5.0}, 2.0) == set()
    # What was chosen stays chosen when the others are gone.
    assert kept_hourly({step: seconds[step] for step in (4, 8, 9)}, 2.0) == {4, 8}
    train = TrainConfig(steps=100, evaluate_every=1)
    gone = rotation(range(1, 10), keep=1, evaluated=range(1, 10), best=2, train=train, hourly={4, 8})
    assert gone == [1, 3, 5, 6, 7]
