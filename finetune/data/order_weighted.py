"""Weighted order: each row as often as its weight says, spread evenly.

Takes a weight for each row and a seed. Gives rows for any range of positions. Next: `finetune.data.queue`.

Systematic sampling (Madow & Madow, "On the theory of systematic sampling", 1944): in every epoch of N positions the
interval from 0 to N is laid out with the rows, each as long as its share of the weight × N, and met by a comb of N
teeth at distance 1, which the epoch's key shifts by a part of 1. So a row comes ⌊share × N⌋ or ⌈share × N⌉ times an
epoch, its share in the mean. The teeth are met in the order of `EpochOrder`: with equal weights this order is that one.
Arithmetic on 2**-32 of 1 in integers, so that a graph repeats it to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from finetune.data.order import GOLDEN, EpochOrder, derived_seed, mixed, mixed_array
from zoo.errors import InvalidArgument

_MOST = 2**31 - 1  # rows: positions in 2**-32 of a tooth's distance must fit into int64


@dataclass(frozen=True, eq=False)
class WeightedOrder:
    """`weights`: float [N], finite and ≥ 0, at least one > 0; only ratios count. A row of weight 0 never comes."""

    weights: np.ndarray
    seed: int

    def __post_init__(self) -> None:
        weights = self.weights
        if weights.ndim != 1 or not 1 <= len(weights) <= _MOST:
            raise InvalidArgument(f"a weighted order needs 1 to {_MOST} weights, got an array {weights.shape}")
        wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
        if wrong.size:
            raise InvalidArgument(
                f"{wrong.size} weights are not finite numbers ≥ 0, the first is {weights[wrong[0]]} of row {wrong[0]}"
            )
        if not weights.any():
            raise InvalidArgument(f"all {len(weights)} weights are 0: no row may come")

    @property
    def num_examples(self) -> int:
        return len(self.weights)

    @cached_property
    def ends(self) -> np.ndarray:
        """int64 [N]: where each row's part of the interval ends, in 2**-32; the last is N × 2**32."""
        sums = np.cumsum(self.weights.astype(np.float64) / float(self.weights.max()))
        return np.rint(sums / sums[-1] * (len(sums) * 2.0**32)).astype(np.int64)

    @cached_property
    def teeth(self) -> EpochOrder:
        return EpochOrder(self.num_examples, self.seed)

    @cached_property
    def shift_key(self) -> int:
        return mixed(derived_seed(self.seed, "shift"))

    def at(self, first_position: int, count: int) -> np.ndarray:
        """int64 [count]: the rows at `first_position`, …"""
        tooth_R, epoch_R = self.teeth.drawn(first_position, count)
        shift_R = mixed_array(np.uint64(self.shift_key) ^ epoch_R.astype(np.uint64) * np.uint64(GOLDEN))
        point_R = (tooth_R << 32) + (shift_R >> np.uint64(32)).astype(np.int64)
        return np.searchsorted(self.ends, point_R, side="right")

    def drawn(self, first_position: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows, turns): a row may come more than once an epoch, so its turn is the position."""
        return self.at(first_position, count), np.arange(first_position, first_position + count)
