"""Share: which rows of each batch one of several all-reduce workers computes.

Takes a worker's number and the batch size of the whole group. Gives positions in the input order. Next:
`finetune.data.queue`'s batches cut to the share, `finetune.training.image_rows`.

The order and the batches are those of a single process: step s is rows s × batch_size … of the order. Worker w has the
w-th piece of each. Where the batch can't be shared out evenly, pieces are filled up with rows of weight 0, so that all
have the same shape and every row counts once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from zoo.errors import InvalidArgument

_AHEAD = 4  # batches


@dataclass(frozen=True, kw_only=True)
class Share:
    """`batch_size`: of the whole group, i.e. of one update. A process whose devices take a piece each has the pieces of
    `pieces` workers, from number `worker` on."""

    batch_size: int
    worker: int = 0
    num_workers: int = 1
    pieces: int = 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not 0 <= self.worker <= self.num_workers - self.pieces or self.pieces < 1:
            raise InvalidArgument(
                f"worker {self.worker} of {self.num_workers} has no share of batches of {self.batch_size}"
            )

    @property
    def rows(self) -> int:
        """Of this process' batches, those of weight 0 included."""
        return self.pieces * self._piece

    @property
    def _piece(self) -> int:
        return -(-self.batch_size // self.num_workers)

    @property
    def first(self) -> int:
        """Where in a batch the piece begins; a piece behind its end has no rows of its own, only the last one again."""
        return self.worker * self._piece

    @property
    def weight_R(self) -> np.ndarray:
        """float32 [rows]: 0 for rows that only fill the shape."""
        return (self.first + np.arange(self.rows) < self.batch_size).astype(np.float32)

    @property
    def own_R(self) -> np.ndarray:
        """int64 [rows]: the rows' places in the batch of all; those of weight 0 are copies of the last one."""
        return np.minimum(self.first + np.arange(self.rows), self.batch_size - 1)

    def of_batches(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        """The worker's pieces of ({…: [B, …]}, {…: [B, …], "weight": [B]})."""
        if self.num_workers == 1:
            return batches
        row_R = self.own_R
        weight_R = self.weight_R

        def piece(features: Any, targets: Any) -> Any:
            features, targets = tf.nest.map_structure(lambda value: tf.gather(value, row_R), (features, targets))
            return features, targets | {"weight": targets["weight"] * weight_R}

        return batches.map(piece).prefetch(_AHEAD)
