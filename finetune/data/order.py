"""Input order as a function: which example stands at a position of an epoch. No shuffle buffer, nothing to save.

Takes (number of examples, seed). Gives indices for any range of positions. Next: `finetune.data.queue`. Other orders
are built on this one: `finetune.data.order_balanced`, `finetune.data.order_weighted`; `finetune.data.order_graph`
repeats all of them inside a graph.

A keyed permutation: a Feistel network over the smallest power of two that holds all indices, walked again wherever
it leads outside (cycle walking; Black & Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). The key is a hash of
(seed, epoch). A golden test freezes it: a changed order would break the exact resume of every running job.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from finetune.data.order_small import SMALL, small_permutations, walked
from zoo.errors import InvalidArgument, OutOfRange

ROUNDS = 8  # even, so that the halves are back in their places
_MIN_BITS = 6  # below that the network has too few permutations to be fair to sets of two or three
BLOCK = 1 << 14  # indices at once: the vectors stay in the cores' caches
_MANY_EPOCHS = 4  # from so many on they are computed at once
_WHOLE_EPOCH = 1 << 16  # sets up to this size are permuted an epoch at a time, and remembered
GOLDEN, M1, M2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # splitmix64's constants


class RowOrder(Protocol):
    """Which row stands at a position of the endless input order: a function of (seed, position) alone."""

    @property
    def num_examples(self) -> int: ...

    def at(self, first_position: int, count: int) -> np.ndarray:
        """int64 [count]: the rows at `first_position`, …"""

    def drawn(self, first_position: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows, turns), both int64 [count]. What is chosen anew each time that a row is shown (its view) is chosen by
        (turn, row): two showings of a row have different turns, as far as the order has a say."""


@dataclass(frozen=True)
class EpochOrder:
    """The order of `num_examples` ≥ 1 examples in every epoch.

    Positions count from 0 through the endless concatenation of epochs: position p lies in epoch p // num_examples.
    """

    num_examples: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_examples < 1:
            raise InvalidArgument(f"an order needs at least 1 example, got {self.num_examples}")

    def indices(self, epoch: int, start: int = 0, count: int | None = None) -> np.ndarray:
        """int64 [count]: the examples at `start`, `start + 1`, … of `epoch`; by default to the epoch's end."""
        count = self.num_examples - start if count is None else count
        if epoch < 0 or start < 0 or count < 0 or start + count > self.num_examples:
            raise OutOfRange(
                f"epoch {epoch}, positions {start} to {start + count}: an epoch has positions 0 to {self.num_examples}"
            )
        if self.num_examples <= _WHOLE_EPOCH:
            return _whole_epoch(self.num_examples, self.seed, epoch)[start : start + count].copy()
        result = np.empty(count, np.int64)
        for block in range(0, count, BLOCK):
            end = min(block + BLOCK, count)
            positions = np.arange(start + block, start + end, dtype=np.uint64)
            result[block:end] = _permuted(positions, self.num_examples, _keys(self.seed, epoch))
        return result

    def at(self, first_position: int, count: int) -> np.ndarray:
        """int64 [count]: the examples at `first_position`, … of the endless sequence of epochs."""
        parts = []
        if count > _MANY_EPOCHS * self.num_examples:
            for block in range(0, count, BLOCK):
                parts.append(self._at_many(first_position + block, min(BLOCK, count - block)))
            return np.concatenate(parts)
        while count > 0:
            epoch, start = divmod(first_position, self.num_examples)
            taken = min(count, self.num_examples - start)
            parts.append(self.indices(epoch, start, taken))
            first_position, count = first_position + taken, count - taken
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _at_many(self, first_position: int, count: int) -> np.ndarray:
        """As `at`, many short epochs at once."""
        first_epoch, start = divmod(first_position, self.num_examples)
        epochs = -(-(start + count) // self.num_examples)
        epoch_E = np.arange(first_epoch, first_epoch + epochs, dtype=np.uint64) * np.uint64(GOLDEN)
        keys = tuple(mixed_array(np.uint64(key) ^ epoch_E) for key in seed_keys(self.seed))
        which_R, start_R = np.divmod(np.arange(start, start + count), self.num_examples)
        if self.num_examples <= SMALL:
            return walked(small_permutations(keys, (M1, M2)), which_R, start_R, self.num_examples)
        size_R = np.full(count, self.num_examples, np.uint64)
        bits_R = np.full(count, domain_bits(self.num_examples), np.uint64)
        keys_R = tuple(key_E[which_R] for key_E in keys)
        return permuted_each(start_R.astype(np.uint64), size_R, bits_R, keys_R).astype(np.int64)

    def drawn(self, first_position: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The turn of a row is its epoch."""
        positions = np.arange(first_position, first_position + count)
        return self.at(first_position, count), positions // self.num_examples


@functools.lru_cache(maxsize=16)
def _whole_epoch(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    return _permuted(np.arange(num_examples, dtype=np.uint64), num_examples, _keys(seed, epoch)).astype(np.int64)


@functools.lru_cache(maxsize=64)
def _keys(seed: int, epoch: int) -> tuple[np.uint64, ...]:
    """One key a round. Arithmetic modulo 2**64, so that `finetune.data.queue` can repeat it inside a graph."""
    at = (epoch * GOLDEN) % 2**64
    return tuple(np.uint64(mixed(key ^ at)) for key in seed_keys(seed))


def seed_keys(seed: int) -> tuple[int, ...]:
    """What the seed gives to each round's key, before the epoch: unsigned 64-bit numbers."""
    digest = hashlib.shake_256(f"order 1 {seed}".encode()).digest(8 * ROUNDS)
    return tuple(int.from_bytes(digest[at : at + 8], "little") for at in range(0, len(digest), 8))


def mixed(value: int) -> int:
    """splitmix64's finisher: a permutation of the 64-bit numbers in which every bit depends on every other."""
    value = ((value ^ (value >> 30)) * M1) % 2**64
    value = ((value ^ (value >> 27)) * M2) % 2**64
    return value ^ (value >> 31)


def derived_seed(seed: int, purpose: str) -> int:
    """Another seed, for an order inside an order."""
    return int.from_bytes(hashlib.sha256(f"{purpose} {seed}".encode()).digest()[:8], "little")


def mixed_array(value_R: np.ndarray) -> np.ndarray:
    """`mixed` of each uint64."""
    value_R = (value_R ^ (value_R >> np.uint64(30))) * np.uint64(M1)
    value_R = (value_R ^ (value_R >> np.uint64(27))) * np.uint64(M2)
    return value_R ^ (value_R >> np.uint64(31))


def _permuted(positions: np.ndarray, num_examples: int, keys: tuple[np.uint64, ...]) -> np.ndarray:
    bits = domain_bits(num_examples)
    result = _feistel(positions, bits, keys)
    outside = np.flatnonzero(result >= num_examples)
    while outside.size:
        walked = _feistel(result[outside], bits, keys)
        result[outside] = walked
        outside = outside[walked >= num_examples]
    return result


def permuted_each(
    position_R: np.ndarray, size_R: np.ndarray, bits_R: np.ndarray, key_KR: tuple[np.ndarray, ...]
) -> np.ndarray:
    """As `_permuted`, where every position (uint64) has a set of its own: size, bits, a key for each round."""
    result_R = _feistel(position_R, bits_R, key_KR)
    outside = np.flatnonzero(result_R >= size_R)
    while outside.size:
        walked = _feistel(result_R[outside], bits_R[outside], tuple(key_R[outside] for key_R in key_KR))
        result_R[outside] = walked
        outside = outside[walked >= size_R[outside]]
    return result_R


def domain_bits(num_examples: int) -> int:
    """The network permutes the numbers below 2**bits."""
    return max(_MIN_BITS, (num_examples - 1).bit_length())


def _feistel(
    values: np.ndarray, bits: int | np.ndarray, keys: tuple[np.uint64, ...] | tuple[np.ndarray, ...]
) -> np.ndarray:
    """A permutation of the numbers below 2**bits; the halves differ by one bit where `bits` is odd."""
    all_bits: Any = np.uint64(bits)
    low_bits = all_bits >> np.uint64(1)
    high_bits = all_bits - low_bits
    high, low = values >> low_bits, values & ((np.uint64(1) << low_bits) - np.uint64(1))
    for key in keys:
        mixed = (low ^ key) * np.uint64(M1)
        mixed ^= mixed >> np.uint64(29)
        mixed *= np.uint64(M2)
        mixed >>= np.uint64(64) - high_bits  # a product's best-mixed bits are its highest
        mixed ^= high
        high, low = low, mixed
        low_bits, high_bits = high_bits, low_bits
    return (high << low_bits) | low
