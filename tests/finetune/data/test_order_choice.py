"""`data.order` in a spec: which order it gives, what it refuses, and the same batches however they are made."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from finetune.data.image_queue import QueueSizes
from finetune.data.order import EpochOrder, RowOrder
from finetune.data.order_choice import NoClassesToBalance, class_weights, row_order
from finetune.data.queue import training_batches
from finetune.data.share import Share
from finetune.data.sources import open_source
from finetune.models.heads.head import TargetTable
from finetune.spec import InvalidSpec, JobSpec
from finetune.training.image_rows import ImageRows
from finetune.training.split_data import SplitData
from zoo.input_spec import InputSpec

LABELS = np.array([0] * 90 + [1] * 8 + [2] * 2, np.int32)
NAMES = ["shuffled", "balanced", "paired", "weighted"]
SPEC = InputSpec(height=16, width=16)
BATCH = 10  # of which three workers have 4, 4 and 2


def order_of(name: Any, labels: np.ndarray = LABELS, **more: Any) -> RowOrder:
    return row_order(name, {"label": labels}, num_rows=len(labels), seed=1, **more)


def test_golden() -> None:
    """These numbers may never change: every interrupted job would resume with other batches."""
    found = {name: order_of(name).at(0, 10).tolist() for name in NAMES}
    assert found == {
        "shuffled": EpochOrder(100, 1).at(0, 10).tolist(),
        "balanced": [98, 65, 91, 99, 76, 95, 24, 98, 97, 99],
        "paired": [98, 99, 65, 76, 91, 95, 98, 99, 24, 18],
        "weighted": [38, 96, 76, 95, 30, 86, 71, 15, 92, 84],
    }
    assert order_of("weighted", power=1.0).at(10**9, 10).tolist() == [97, 71, 98, 96, 33, 87, 91, 52, 98, 96]


def test_how_often_each_class_comes() -> None:
    def counts(name: str, **more: Any) -> list[int]:
        return np.bincount(LABELS[order_of(name, **more).at(0, 30_000)], minlength=3).tolist()

    assert counts("shuffled") == [27_000, 2_400, 600]
    assert counts("balanced") == counts("paired") == [10_000] * 3
    roots = np.sqrt([90, 8, 2])
    assert counts("weighted") == pytest.approx((30_000 * roots / roots.sum()).tolist(), rel=0.01)
    assert counts("weighted", power=1.0) == pytest.approx([10_000] * 3, rel=0.01)
    assert np.array_equal(order_of("weighted", power=0.0).at(0, 300), EpochOrder(100, 1).at(0, 300))


def test_a_row_of_several_classes_weighs_as_its_rarest_and_rows_of_none_are_a_class() -> None:
    has = np.array([[1, 1], [1, 0], [1, 0], [1, 0], [0, 0], [0, 0]], np.int32)
    assert class_weights(has, 1.0).tolist() == [1, 0.25, 0.25, 0.25, 0.5, 0.5]
    assert class_weights(has, 0.5).tolist() == pytest.approx([1, 0.5, 0.5, 0.5, 0.5**0.5, 0.5**0.5])
    assert class_weights(has, 0.0).tolist() == [1] * 6
    order = row_order("weighted", {"labels": has, "positive_weight": has}, num_rows=6, seed=1, power=1.0)
    assert np.bincount(order.at(0, 2700)).tolist() == pytest.approx([1080, 270, 270, 270, 540, 540], abs=270)


def test_rows_without_classes_are_refused_with_the_reason() -> None:
    for name in ("balanced", "paired", "weighted"):
        with pytest.raises(NoClassesToBalance, match=f"data.order={name} goes by the classes.*have none: tokens"):
            row_order(name, {"tokens": np.zeros((3, 4), np.int32)}, num_rows=3, seed=1)


def plan(head: str, **data: Any) -> JobSpec:
    return JobSpec.parse(
        {"name": "n", "backbone": "b", "head": {"kind": head}, "data": {"location": "folder:x", **data}}
    )


def test_a_spec_is_refused_before_anything_is_prepared() -> None:
    assert plan("captioner").data.order == "shuffled"
    assert plan("multilabel", order="weighted", order_power=1.0).data.order_power == 1.0
    with pytest.raises(
        InvalidSpec, match=r"data\.order: balanced goes by the classes.*captions, which are in no class"
    ):
        plan("captioner", order="balanced")
    with pytest.raises(InvalidSpec, match=r"order_power is for data\.order=weighted; data\.order is balanced"):
        plan("classifier", order="balanced", order_power=0.5)
    with pytest.raises(InvalidSpec, match=r"data\.order: .*'shuffled', 'balanced', 'paired' or 'weighted'.*'even'"):
        plan("classifier", order="even")


@pytest.fixture(scope="module")
def split() -> SplitData:
    """Forty rows of as many scenes: thirty of the first class, eight of the second, two of the third."""
    source = open_source("scenes:count=40,size=32")
    labels = np.array([0] * 30 + [1] * 8 + [2] * 2, np.int32)
    table = TargetTable(image_index=np.arange(40, dtype=np.int32), arrays={"label": labels, "row": np.arange(40)})
    features = np.random.default_rng(0).standard_normal((40, 2, 5)).astype(np.float32)
    return SplitData.join(
        name="train", examples=tuple(source.examples), source_index=range(40), table=table, features_NVD=features,
        row_of=np.arange(40),
    )  # fmt: skip


def rows_of(order: RowOrder, split: SplitData, *, first: int, steps: int, share: Share) -> list[dict[str, np.ndarray]]:
    assert split.features_NVD is not None
    made = training_batches(
        table=split.table, features=split.features_NVD, batch_size=BATCH, seed=1, order=order, start_step=first
    )
    batches = share.of_batches(made).take(steps).as_numpy_iterator()
    return [{**features, **targets} for features, targets in batches]


def images_of(
    order: RowOrder, split: SplitData, *, first: int, steps: int, share: Share, threads: int = 2
) -> list[dict[str, np.ndarray]]:
    with ImageRows(
        split=split, source=open_source("scenes:count=40,size=32"), spec=SPEC, share=share, seed=1, order=order,
        views=3, max_pixels=10_000, max_bad_share=0.0, start_step=first,
        sizes=QueueSizes(readers=threads, decoders=threads),
    ) as batches:  # fmt: skip
        return [{**inputs, **targets} for inputs, targets in (next(batches) for _ in range(steps))]


def real(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without the rows that only fill the shape."""
    return {name: values[batch["weight"] > 0] for name, values in batch.items()}


def alike(one: list[dict[str, np.ndarray]], other: list[dict[str, np.ndarray]]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        *((images_of, name) for name in NAMES),
        (rows_of, "weighted"),
        *(pytest.param(rows_of, name, marks=pytest.mark.slow) for name in NAMES if name != "weighted"),
    ],
)
def test_resumed_or_shared_out_the_batches_are_the_same(name: Any, make: Any, split: SplitData) -> None:
    order = order_of(name, split.table.arrays["label"])
    alone = make(order, split, first=0, steps=9, share=Share(batch_size=BATCH))
    assert np.concatenate([batch["row"] for batch in alone]).tolist() == order.at(0, 90).tolist()
    alike(make(order, split, first=7, steps=2, share=Share(batch_size=BATCH)), alone[7:])
    for workers in (2, 3) if make is images_of else (3,):
        shares = [Share(batch_size=BATCH, worker=worker, num_workers=workers) for worker in range(workers)]
        pieces = [make(order, split, first=4, steps=3, share=share) for share in shares]
        together = [
            {name: np.concatenate([real(piece)[name] for piece in step]) for name in step[0]}
            for step in zip(*pieces, strict=True)
        ]
        alike(together, alone[4:7])


@pytest.mark.parametrize("threads", [1, 7])
def test_the_pixels_do_not_depend_on_the_number_of_threads(threads: int, split: SplitData) -> None:
    order = order_of("weighted", split.table.arrays["label"])
    share = Share(batch_size=BATCH)
    alike(
        images_of(order, split, first=0, steps=8, share=share, threads=threads),
        images_of(order, split, first=0, steps=8, share=share),
    )


def test_a_row_that_comes_again_shows_another_of_its_views(split: SplitData) -> None:
    """Weighted rows come several times an epoch, balanced ones of a small class as well."""
    for name in ("balanced", "weighted"):
        order = order_of(name, split.table.arrays["label"])
        batches = images_of(order, split, first=0, steps=12, share=Share(batch_size=BATCH))
        rarest = {
            image.tobytes()
            for batch in batches
            for image, row in zip(batch["image"], batch["row"], strict=True)
            if row == 39
        }
        assert len(rarest) == 3
