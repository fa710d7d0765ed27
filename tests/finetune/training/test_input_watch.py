"""What a run says of its input: in progress.json, on charts, at the end."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from finetune.data.share import Share
from finetune.data.sources import open_source
from finetune.training.image_rows import ImageRows
from finetune.training.input_watch import InputWatch
from finetune.training.progress import progress_line
from finetune.training.trainer import Stretch
from tests.finetune.data.test_order_choice import SPEC, split

__all__ = ["split"]  # the fixture
STRETCH = Stretch(
    steps=10, examples=80, loss_sum=1.0, weight_sum=1.0, metrics={}, gradient_norm=1.0, learning_rate=1.0,
    waited_seconds=0.5,
)  # fmt: skip


def test_of_features_the_time_that_training_waited() -> None:
    watch = InputWatch()
    watch.begin(iter([]))
    assert watch.now(iter([])) == {}
    assert watch.sentence(iter([])) is None
    watch.add(STRETCH, 2.0)
    assert watch.now(iter([])) == {"waited_share": 0.25}
    assert watch.chart(iter([])) == {}
    watch.add(replace(STRETCH, waited_seconds=0.0), 3.0)
    assert watch.now(iter([])) == {"waited_share": 0.0}  # since the chart
    assert watch.sentence(iter([])) == "training waited for input 10% of the time; features were cached"


def test_under_op_determinism_nothing_is_timed_and_nothing_is_said() -> None:
    watch = InputWatch()
    watch.begin(iter([]))
    watch.add(replace(STRETCH, waited_seconds=float("nan")), 2.0)
    assert watch.now(iter([])) == {}
    assert watch.sentence(iter([])) is None


def test_of_images_every_stage_and_what_was_skipped(split: Any) -> None:
    with ImageRows(
        split=split, source=open_source("scenes:count=40,size=32"), spec=SPEC, share=Share(batch_size=8), seed=1,
        views=1, max_pixels=10_000, max_bad_share=0.0,
    ) as batches:  # fmt: skip
        watch = InputWatch()
        watch.begin(batches)
        for _ in range(6):
            next(batches)
        told = watch.now(batches)
        assert {"waited_share", "ready_fill", "read_per_second", "decoded_per_second", "megabytes_per_second"} < set(
            told
        )
        assert 0 <= told["waited_share"] <= 1
        assert 0 <= told["ready_fill"] <= 1
        assert told["skipped"] == 0
        assert told["totals"]["batches"] == 6
        assert told["totals"]["decoded"] >= 48
        assert told["totals"]["bytes"] > 48 * 100
        assert watch.chart(batches)["input/megabytes_per_second"] > 0
        next(batches)
        assert watch.now(batches)["totals"]["batches"] == 7
        assert "the slowest stage" in (watch.sentence(batches) or "")


def test_the_line_says_so_from_one_percent_on() -> None:
    state = {"phase": "training", "step": 5, "steps": 10, "examples_per_second": 10.0, "eta_seconds": 3}
    assert "input" not in progress_line(state | {"input": {"waited_share": 0.004, "skipped": 0}})
    line = progress_line(state | {"input": {"waited_share": 0.034, "skipped": 2}})
    assert line.endswith("10 examples/s  waits for input 3%  2 images skipped  0:03 left")
    assert progress_line(state | {"input": None}).endswith("10 examples/s  0:03 left")
