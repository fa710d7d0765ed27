"""The keyed order: a permutation every epoch, another one each time, frozen for ever."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.order import EpochOrder
from zoo.errors import InvalidArgument, OutOfRange


@pytest.mark.parametrize("num_examples", [1, 2, 3, 4, 7, 31, 32, 33, 1000, 65536, 65537, 300_001])
def test_every_epoch_has_every_example_once(num_examples: int) -> None:
    order = EpochOrder(num_examples, 5)
    for epoch in (0, 1, 10**9):
        assert np.array_equal(np.sort(order.indices(epoch)), np.arange(num_examples))


def test_golden() -> None:
    """These numbers may never change: every interrupted job would resume with other batches."""
    assert EpochOrder(10, 1).at(0, 20).tolist() == [7, 3, 4, 9, 1, 8, 6, 2, 0, 5, 1, 2, 5, 3, 8, 9, 6, 0, 7, 4]
    assert EpochOrder(1000, 7).indices(3, 500, 8).tolist() == [122, 612, 598, 509, 797, 318, 124, 256]
    assert EpochOrder(5_000_000, 2**63).indices(0, 0, 4).tolist() == [3932508, 1446572, 282225, 1299115]


@pytest.mark.parametrize("num_examples", [100, 1000, pytest.param(65_536, marks=pytest.mark.slow), 1_000_000])
def test_no_two_epochs_are_alike(num_examples: int) -> None:
    order = EpochOrder(num_examples, 1)
    seen = {order.indices(epoch, 0, min(num_examples, 1000)).tobytes() for epoch in range(1000)}
    assert len(seen) == 1000


def test_another_seed_is_another_order() -> None:
    order = EpochOrder(1000, 1)
    assert not np.array_equal(order.indices(0), EpochOrder(1000, 2).indices(0))


@pytest.mark.parametrize("num_examples", [2, 3, 4])
def test_small_sets_meet_every_permutation_about_equally(num_examples: int) -> None:
    counts = Counter(tuple(EpochOrder(num_examples, 1).indices(epoch).tolist()) for epoch in range(600))
    permutations = int(np.prod(range(1, num_examples + 1)))
    expected = 600 / permutations
    assert len(counts) == permutations
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values()) / max(1, permutations - 1)
    assert chi_square < 3


def test_each_place_of_an_epoch_is_fair_to_each_example() -> None:
    counts = np.zeros((100, 100))
    for epoch in range(2000):
        counts[np.arange(100), EpochOrder(100, 1).indices(epoch)] += 1
    assert ((counts - 20) ** 2 / 20).sum() / 99**2 == pytest.approx(1, abs=0.05)  # sd of this ratio is 0.014


@settings(deadline=None, max_examples=40)
@given(
    num_examples=st.integers(1, 200), seed=st.integers(0, 2**70), first=st.integers(0, 300), count=st.integers(0, 100)
)
def test_any_range_is_a_part_of_the_endless_sequence(num_examples: int, seed: int, first: int, count: int) -> None:
    order = EpochOrder(num_examples, seed)
    whole = np.concatenate([order.indices(epoch) for epoch in range((first + count) // num_examples + 1)])
    assert np.array_equal(order.at(first, count), whole[first : first + count])


def test_large_sets_are_cut_into_blocks_without_a_seam() -> None:
    order = EpochOrder(200_000, 3)
    whole = order.indices(2)
    assert np.array_equal(order.indices(2, 16_000, 40_000), whole[16_000:56_000])
    assert order.at(399_990, 20).tolist() == [*order.indices(1, 199_990).tolist(), *whole[:10].tolist()]


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="at least 1 example, got 0"):
        EpochOrder(0, 1)
    with pytest.raises(OutOfRange, match="positions 0 to 10"):
        EpochOrder(10, 1).indices(0, 5, 6)


def test_two_million_indices_a_second() -> None:
    order = EpochOrder(10_000_000, 1)
    best = 0.0
    for _ in range(3):  # of this thread's own time: the machine may be busy
        began = time.thread_time()
        order.at(9_500_000, 1_000_000)
        best = max(best, 1_000_000 / (time.thread_time() - began))
    assert best >= 2_000_000
