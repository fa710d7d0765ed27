"""The input queue: rows of targets joined with their features, in the order that (seed, position) decides.

Takes a TargetTable, features and an order. Gives batches (tf.data). Next: `finetune.training.trainer`.

Batch b is rows `order.at(b × batch_size, batch_size)`: no shuffle buffer, so starting at any step gives exactly
the batches an uninterrupted run would have had. The order is computed inside the graph (`finetune.data.order_graph`),
and rows are gathered there. Not by a Python function within tf.data: such a function waits for the interpreter while an
interpreter that exits waits for the iterator, and a finished or interrupted training process would hang for ever (met
with TensorFlow 2.21).
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from finetune.data.order import EpochOrder, RowOrder
from finetune.data.order_graph import drawn, view_of
from finetune.models.heads.head import TargetTable
from zoo.errors import InvalidArgument

_CHUNK_BYTES = 4 << 20  # rows gathered at once: enough to hide the cost of a call, little enough for the caches
_AHEAD = 16  # batches ready before they are asked for


def training_batches(
    *,
    table: TargetTable,
    features: np.ndarray,
    batch_size: int,
    seed: int,
    order: RowOrder | None = None,
    start_step: int = 0,
) -> tf.data.Dataset:
    """Endless batches from step `start_step` on; a batch may span two epochs.

    Args:
        table: N rows; `image_index` points into `features`.
        features: float32 or float16 [images, V, D], V views of each image (a memory map will do). Which view a row
            shows is decided by (seed, turn, row).
        order: of the rows; None: every row once an epoch, by `seed`.
    Gives ({"feature_vector": [B, D] float32}, {every array of the table: [B, …], "weight": [B] float32 ones}).
    """
    _check(table, features, batch_size)
    num_rows, num_views = len(table.image_index), features.shape[1]
    chosen = EpochOrder(num_rows, seed) if order is None else order
    columns = _Columns(table, features)
    chunk = int(np.clip(_CHUNK_BYTES // (4 * batch_size * features.shape[2]), 1, 64))

    def batches_from(step: tf.Tensor) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        position_R = step * batch_size + tf.range(chunk * batch_size, dtype=tf.int64)
        row_R, turn_R = drawn(position_R, chosen)
        return columns.gather(row_R, view_of(turn_R, row_R, seed, num_views), (chunk, batch_size))

    starts = tf.data.Dataset.range(start_step, np.iinfo(np.int64).max, chunk)
    return starts.map(batches_from, num_parallel_calls=2, deterministic=True).unbatch().prefetch(_AHEAD)


def evaluation_batches(*, table: TargetTable, features: np.ndarray, batch_size: int) -> tf.data.Dataset:
    """Every row exactly once, in the table's order, view 0; shapes as in `training_batches`.

    The last batch is filled up with copies of row 0 (not zeros, which need not be valid targets) of weight 0.
    """
    _check(table, features, batch_size)
    num_rows = len(table.image_index)
    columns = _Columns(table, features)

    def batch_at(start: tf.Tensor) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        row_B = start + tf.range(batch_size, dtype=tf.int64)
        real_B = row_B < num_rows
        row_B = tf.where(real_B, row_B, tf.zeros_like(row_B))
        feature, target = columns.gather(row_B, tf.zeros_like(row_B), (batch_size,))
        return feature, target | {"weight": tf.cast(real_B, tf.float32)}

    starts = tf.data.Dataset.range(0, num_rows, batch_size)
    return starts.map(batch_at, num_parallel_calls=2, deterministic=True).prefetch(_AHEAD)


class _Columns:
    """The features and the table's arrays as tensors, gathered by row."""

    def __init__(self, table: TargetTable, features: np.ndarray) -> None:
        self._num_views = features.shape[1]
        self._feature_XD = tf.convert_to_tensor(features.reshape(-1, features.shape[2]))
        self._image_N = tf.convert_to_tensor(table.image_index.astype(np.int64))
        self._arrays = {name: tf.convert_to_tensor(array) for name, array in table.arrays.items()}

    def gather(
        self, row_R: tf.Tensor, view_R: tf.Tensor, shape: tuple[int, ...]
    ) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        """Every column's rows with their first axis folded into `shape`; weights are 1."""
        feature_RD = tf.gather(self._feature_XD, tf.gather(self._image_N, row_R) * self._num_views + view_R)
        targets: dict[str, tf.Tensor] = {name: tf.gather(array, row_R) for name, array in self._arrays.items()}
        folded = {name: tf.reshape(value, (*shape, *value.shape[1:])) for name, value in targets.items()}
        folded["weight"] = tf.ones(shape, tf.float32)
        feature_RD = tf.cast(feature_RD, tf.float32)  # float16 is for disks and memory
        return {"feature_vector": tf.reshape(feature_RD, (*shape, feature_RD.shape[1]))}, folded


def _check(table: TargetTable, features: np.ndarray, batch_size: int) -> None:
    num_rows = len(table.image_index)
    if num_rows < 1 or batch_size < 1:
        raise InvalidArgument(f"batches need at least one row and a size ≥ 1; got {num_rows} rows, size {batch_size}")
    if features.ndim != 3:
        raise InvalidArgument(f"features must be [images, views, D], got shape {features.shape}")
    for name, array in table.arrays.items():
        if len(array) != num_rows:
            raise InvalidArgument(f"target array {name!r} has {len(array)} rows, the table has {num_rows}")
    if "weight" in table.arrays:
        raise InvalidArgument("a target array may not be called 'weight': the queue adds that one")
    least, most = int(np.min(table.image_index)), int(np.max(table.image_index))
    if least < 0 or most >= len(features):
        raise InvalidArgument(f"rows belong to images {least} to {most}, there are features of {len(features)}")
