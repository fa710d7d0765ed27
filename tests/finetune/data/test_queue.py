"""The input queue: every row once an epoch, exact resume, and a process that can end."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from finetune.data.order import EpochOrder
from finetune.data.order_graph import rows_at
from finetune.data.queue import evaluation_batches, training_batches
from finetune.models.heads.head import TargetTable
from zoo.errors import InvalidArgument


def table(num_rows: int = 23, num_images: int = 7) -> TargetTable:
    rows = np.arange(num_rows)
    return TargetTable(
        image_index=(rows % num_images).astype(np.int32),
        arrays={"row": rows.astype(np.int32), "tokens": np.stack([rows, -rows], axis=1).astype(np.int64)},
    )


def features(num_images: int = 7, num_views: int = 1) -> np.ndarray:
    """Value 0 is the image, value 1 the view."""
    image, view = np.mgrid[0:num_images, 0:num_views]
    return np.stack([image, view, image * 0], axis=-1).astype(np.float32)


def taken(dataset: tf.data.Dataset, count: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return list(islice(dataset.as_numpy_iterator(), count))


@pytest.mark.parametrize("num_rows", [1, 2, 3, 31, 64, 65, 1000, 70_000])
def test_the_graph_knows_the_order(num_rows: int) -> None:
    position = tf.range(2 * num_rows + 5, 2 * num_rows + 400, dtype=tf.int64)
    assert np.array_equal(rows_at(position, num_rows, 9).numpy(), EpochOrder(num_rows, 9).at(2 * num_rows + 5, 395))


def test_batches_follow_the_order_and_carry_their_own_features() -> None:
    batches = taken(training_batches(table=table(), features=features(), batch_size=5, seed=3), 40)
    order = EpochOrder(23, 3)
    for step, (feature, target) in enumerate(batches):
        row_B = order.at(step * 5, 5)
        assert target["row"].tolist() == row_B.tolist()
        assert target["tokens"].tolist() == [[row, -row] for row in row_B]
        assert feature["feature_vector"][:, 0].tolist() == (row_B % 7).tolist()
        assert target["weight"].tolist() == [1.0] * 5
    seen = Counter(row for _, target in batches for row in target["row"].tolist()[:5])
    assert set(seen.values()) == {8, 9}  # 200 positions are 8 epochs and 16 rows


@pytest.mark.parametrize("start_step", [0, 1, 63, 64, 65, 1_000_003])
def test_starting_at_a_step_is_as_if_it_had_never_stopped(start_step: int) -> None:
    resumed = taken(
        training_batches(table=table(), features=features(), batch_size=4, seed=1, start_step=start_step), 70
    )
    order = EpochOrder(23, 1)
    assert [row for _, target in resumed for row in target["row"].tolist()] == order.at(start_step * 4, 280).tolist()


def test_each_row_shows_every_view_in_turn_and_resumes_with_the_same() -> None:
    options = {"table": table(), "features": features(num_views=3), "batch_size": 23, "seed": 1}
    epochs = taken(training_batches(**options), 60)
    views = np.zeros((60, 23), int)
    for epoch, (feature, target) in enumerate(epochs):
        views[epoch, target["row"]] = feature["feature_vector"][:, 1]
    assert all(len(set(views[:, row])) == 3 for row in range(23))
    assert np.bincount(views.ravel()) == pytest.approx([460] * 3, abs=90)  # five standard deviations
    assert abs(np.corrcoef(views[1:].ravel(), views[:-1].ravel())[0, 1]) < 0.12
    (again,) = taken(training_batches(**options, start_step=41), 1)
    assert np.array_equal(again[0]["feature_vector"], epochs[41][0]["feature_vector"])


def test_evaluation_meets_every_row_once() -> None:
    batches = list(evaluation_batches(table=table(), features=features(num_views=2), batch_size=5).as_numpy_iterator())
    rows = np.concatenate([target["row"] for _, target in batches])
    weights = np.concatenate([target["weight"] for _, target in batches])
    assert len(batches) == 5
    assert rows[weights == 1].tolist() == list(range(23))
    assert weights.tolist() == [1.0] * 23 + [0.0] * 2
    assert rows[weights == 0].tolist() == [0, 0]
    assert {view for feature, _ in batches for view in feature["feature_vector"][:, 1]} == {0.0}


def test_shapes_are_known_before_the_first_batch() -> None:
    for dataset in (
        training_batches(table=table(), features=features(), batch_size=4, seed=1),
        evaluation_batches(table=table(), features=features(), batch_size=4),
    ):
        feature, target = dataset.element_spec
        assert feature["feature_vector"] == tf.TensorSpec((4, 3), tf.float32)
        assert target["tokens"] == tf.TensorSpec((4, 2), tf.int64)
        assert target["weight"] == tf.TensorSpec((4,), tf.float32)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"features": features(6)}, "images 0 to 6, there are features of 6"),
        ({"features": features()[:, 0]}, r"must be \[images, views, D\]"),
        ({"table": TargetTable(image_index=np.zeros(0, np.int32), arrays={})}, "got 0 rows"),
        ({"batch_size": 0}, "size 0"),
        ({"table": TargetTable(image_index=np.zeros(3, np.int32), arrays={"x": np.zeros(2)})}, "'x' has 2 rows"),
        ({"table": TargetTable(image_index=np.zeros(3, np.int32), arrays={"weight": np.ones(3)})}, "'weight'"),
    ],
)
def test_tables_that_do_not_fit_are_refused(change: dict[str, Any], says: str) -> None:
    options = {"table": table(), "features": features(), "batch_size": 4} | change
    with pytest.raises(InvalidArgument, match=says):
        training_batches(**options, seed=1)
    with pytest.raises(InvalidArgument, match=says):
        evaluation_batches(**options)


def test_a_process_with_a_live_queue_ends() -> None:
    """A Python function inside tf.data made exiting processes wait for ever."""
    code = """
        from tests.finetune.data.test_queue import features, table
        from finetune.data.queue import training_batches
        live = [iter(training_batches(table=table(), features=features(), batch_size=4, seed=n)) for n in range(4)]
        for _ in range(50):
            for one in live:
                next(one)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    assert subprocess.run(command, cwd=Path(__file__).parents[3], timeout=100, check=False).returncode == 0
