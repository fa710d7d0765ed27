"""Class-balanced order: every class equally often, whatever its size; within a class no example twice before all came.

Takes the classes of the rows and a seed. Gives rows for any range of positions. Next: `finetune.data.queue`.

Positions go in rounds of one turn a class, the classes of a round in a keyed order of its own. In its n-th turn a class
shows the n-th of its own examples, by a keyed permutation that is another one each time the class is through. So any
position is reached at once, as in `finetune.data.order`, and golden tests freeze it as that one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from finetune.data.order import (
    BLOCK,
    GOLDEN,
    M1,
    M2,
    EpochOrder,
    derived_seed,
    domain_bits,
    mixed_array,
    permuted_each,
    seed_keys,
)
from finetune.data.order_small import SMALL, small_permutations, walked
from zoo.errors import InvalidArgument, OutOfRange

_TABLE_STEPS = 12  # a table of 64 costs as much as so many steps of a walk without


@dataclass(frozen=True, eq=False)
class BalancedOrder:
    """`members`: the rows of each class, one class after the other; class c has `sizes[c]` ≥ 1 of them.

    together: how many examples of a class stand side by side (2: pairs, for losses that compare images of a class).
    """

    members: np.ndarray  # int64
    sizes: np.ndarray  # int64 [classes]
    seed: int
    together: int = 1

    def __post_init__(self) -> None:
        if not len(self.sizes) or self.together < 1:
            raise InvalidArgument(f"a balanced order of {len(self.sizes)} classes, {self.together} together: none")
        if int(self.sizes.min()) < 1 or int(self.sizes.sum()) != len(self.members):
            raise InvalidArgument(f"classes of {self.sizes.tolist()} rows do not make {len(self.members)} members")

    @classmethod
    def of_labels(cls, label_N: np.ndarray, seed: int, *, together: int = 1) -> BalancedOrder:
        """`label_N`: the class of each row, int [N]. A class without rows has no turn.

        Or which classes each row has, [N, C] of 0 and 1: a row then is shown for each of its classes, and rows without
        any make a class of their own.
        """
        if label_N.ndim == 2:
            row_M, class_M = np.nonzero(np.column_stack([label_N > 0, ~(label_N > 0).any(axis=1)]))
        else:
            row_M, class_M = np.arange(len(label_N)), label_N
        by_class = np.argsort(class_M, kind="stable")
        sizes = np.unique(class_M, return_counts=True)[1]
        return cls(row_M[by_class].astype(np.int64), sizes.astype(np.int64), seed, together)

    @property
    def num_examples(self) -> int:
        """As many positions as there are members count as an epoch, though not every example comes in each."""
        return len(self.members)

    @cached_property
    def first_member(self) -> np.ndarray:
        """int64 [classes]: where each class begins in `members`."""
        return np.cumsum(self.sizes) - self.sizes

    @cached_property
    def bits(self) -> np.ndarray:
        """int64 [classes]: see `domain_bits`."""
        return np.array([domain_bits(int(size)) for size in self.sizes], np.int64)

    @cached_property
    def classes(self) -> EpochOrder:
        """The order of the classes in each round."""
        return EpochOrder(len(self.sizes), derived_seed(self.seed, "classes"))

    @cached_property
    def member_keys(self) -> tuple[int, ...]:
        return seed_keys(derived_seed(self.seed, "members"))

    def at(self, first_position: int, count: int) -> np.ndarray:
        """int64 [count]: the rows at `first_position`, …"""
        return self.drawn(first_position, count)[0]

    def drawn(self, first_position: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows, turns): a row's turn is how often its class was through before."""
        if first_position < 0 or count < 0:
            raise OutOfRange(f"positions {first_position} to {first_position + count}: they count from 0")
        row_R, turn_R = np.empty(count, np.int64), np.empty(count, np.int64)
        for block in range(0, count, BLOCK):
            end = min(block + BLOCK, count)
            row_R[block:end], turn_R[block:end] = self._drawn(first_position + block, end - block)
        return row_R, turn_R

    def _drawn(self, first_position: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        position_R = np.arange(first_position, first_position + count)
        if self.together == 1:
            class_R = self.classes.at(first_position, count)
            showing_R = position_R // len(self.sizes)
        else:
            group_R = position_R // self.together
            class_G = self.classes.at(int(group_R[0]), int(group_R[-1] - group_R[0]) + 1)
            class_R = class_G[group_R - group_R[0]]
            showing_R = group_R // len(self.sizes) * self.together + position_R % self.together
        # `showing`: how often the class had a turn before.
        size_R = self.sizes[class_R]
        turn_R = showing_R // size_R
        which_R, keys = self._keys(class_R, turn_R, showing_R)
        place_R = self._places(class_R, which_R, keys, showing_R - turn_R * size_R, size_R)
        return self.members[self.first_member[class_R] + place_R], turn_R

    def _keys(
        self, class_R: np.ndarray, turn_R: np.ndarray, showing_R: np.ndarray
    ) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
        """(which, keys): position r goes by keys[round][which[r]]. Keys are made once for each turn of a class, as far
        as that is fewer than one for each position."""
        if len(self.sizes) <= len(class_R):
            first_C = int(showing_R.min()) // self.sizes
            turns_C = int(showing_R.max()) // self.sizes - first_C + 1
            begin_C = np.cumsum(turns_C) - turns_C
            if (num_turns := int(turns_C.sum())) < len(class_R):
                class_T = np.repeat(np.arange(len(self.sizes)), turns_C)
                turn_T = np.arange(num_turns) + (first_C - begin_C)[class_T]
                return (begin_C - first_C)[class_R] + turn_R, self._keys_of(class_T, turn_T)
        return np.arange(len(class_R)), self._keys_of(class_R, turn_R)

    def _keys_of(self, class_T: np.ndarray, turn_T: np.ndarray) -> tuple[np.ndarray, ...]:
        at_T = turn_T.astype(np.uint64) * np.uint64(GOLDEN) ^ mixed_array(class_T.astype(np.uint64) + np.uint64(1))
        return tuple(mixed_array(np.uint64(key) ^ at_T) for key in self.member_keys)

    def _places(
        self,
        class_R: np.ndarray,
        which_R: np.ndarray,
        keys: tuple[np.ndarray, ...],
        start_R: np.ndarray,
        size_R: np.ndarray,
    ) -> np.ndarray:
        """Which of its members a class shows."""
        place_R = np.zeros(len(class_R), np.int64)  # of classes of one
        walking_R = size_R > 1
        small = np.flatnonzero(walking_R & (size_R <= SMALL))
        used, which = np.unique(which_R[small], return_inverse=True)
        if (SMALL / size_R[small]).sum() > _TABLE_STEPS * len(used):
            permutations = small_permutations(tuple(key[used] for key in keys), (M1, M2))
            place_R[small] = walked(permutations, which, start_R[small], size_R[small])
            walking_R[small] = False
        rest = np.flatnonzero(walking_R)
        if rest.size:
            sizes, bits = size_R[rest].astype(np.uint64), self.bits[class_R[rest]].astype(np.uint64)
            keys_R = tuple(key[which_R[rest]] for key in keys)
            place_R[rest] = permuted_each(start_R[rest].astype(np.uint64), sizes, bits, keys_R).astype(np.int64)
        return place_R
