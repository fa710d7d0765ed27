"""Balanced and weighted orders: how often each row comes, frozen numbers, and the same inside a graph."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.data.order import EpochOrder, RowOrder
from finetune.data.order_balanced import BalancedOrder
from finetune.data.order_graph import drawn
from finetune.data.order_weighted import WeightedOrder
from zoo.errors import InvalidArgument, OutOfRange

LABELS = np.array([0] * 90 + [3] * 7 + [1] * 2 + [5], np.int32)  # classes 2 and 4 have no rows
RANDOM = np.random.default_rng(0)
WEIGHTS = np.append(RANDOM.random(999) ** 3, 0.0)


def test_golden() -> None:
    """These numbers may never change: every interrupted job would resume with other batches."""
    balanced = BalancedOrder.of_labels(LABELS, 1)
    assert balanced.at(0, 12).tolist() == [92, 65, 99, 98, 96, 76, 97, 99, 24, 99, 97, 93]
    assert balanced.at(10**9, 6).tolist() == [97, 55, 99, 96, 98, 58]
    assert BalancedOrder.of_labels(LABELS, 1, together=2).at(0, 12).tolist() == [
        92,
        96,
        65,
        76,
        99,
        99,
        98,
        97,
        93,
        95,
        24,
        18,
    ]
    weighted = WeightedOrder(np.array([1.0, 0.0, 4.0, 2.0, 0.5]), 1)
    assert weighted.at(0, 15).tolist() == [2, 3, 4, 2, 2, 2, 2, 3, 3, 0, 4, 2, 3, 2, 2]
    assert weighted.at(10**9, 5).tolist() == [3, 0, 2, 3, 2]


def test_every_class_comes_once_a_round_whatever_its_size() -> None:
    rows = BalancedOrder.of_labels(LABELS, 3).at(0, 4 * 900)
    rounds = LABELS[rows].reshape(900, 4)
    assert all(sorted(one) == [0, 1, 3, 5] for one in rounds.tolist())
    orders = Counter(tuple(one) for one in rounds.tolist())
    assert len(orders) == 24  # of the classes in a round
    assert max(orders.values()) < 75  # 37.5 in the mean


def test_no_example_twice_before_its_class_is_through() -> None:
    rows = BalancedOrder.of_labels(LABELS, 3).at(0, 4 * 900)
    for label in (0, 1, 3, 5):
        members = np.flatnonzero(label == LABELS)
        epochs = rows[LABELS[rows] == label][: 900 // len(members) * len(members)].reshape(-1, len(members))
        assert all(np.array_equal(np.sort(epoch), members) for epoch in epochs)
        if len(members) > 20:  # of seven there are but 5,040 permutations
            assert len({epoch.tobytes() for epoch in epochs}) == len(epochs)
    two = rows[LABELS[rows] == 1].reshape(-1, 2)
    assert {tuple(pair) for pair in two.tolist()} == {(97, 98), (98, 97)}


def test_two_classes_of_one_size_go_their_own_ways() -> None:
    labels = np.repeat([0, 1], 50)
    rows = BalancedOrder.of_labels(labels, 1).at(0, 100)
    first, second = rows[labels[rows] == 0], rows[labels[rows] == 1] - 50
    assert np.count_nonzero(first == second) < 8  # one in the mean


def test_pairs_of_a_class_stand_side_by_side() -> None:
    rows = BalancedOrder.of_labels(LABELS, 3, together=2).at(0, 4 * 900)
    pairs = LABELS[rows].reshape(-1, 2)
    assert np.array_equal(pairs[:, 0], pairs[:, 1])
    assert Counter(LABELS[rows].tolist()) == {0: 900, 1: 900, 3: 900, 5: 900}
    of_zero = rows[LABELS[rows] == 0]
    assert np.array_equal(np.sort(of_zero[:90]), np.arange(90))


def test_the_turn_is_how_often_the_class_was_through() -> None:
    rows, turns = BalancedOrder.of_labels(LABELS, 3).drawn(0, 4 * 900)
    assert len(set(zip(rows.tolist(), turns.tolist(), strict=True))) == len(rows)
    assert turns[LABELS[rows] == 5].tolist() == list(range(900))
    assert turns[LABELS[rows] == 0].tolist() == [showing // 90 for showing in range(900)]


def test_rows_of_several_classes_come_for_each_and_rows_of_none_are_a_class() -> None:
    has = np.array([[1, 1, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]], np.int32)
    order = BalancedOrder.of_labels(has, 1)
    assert order.sizes.tolist() == [3, 1, 2]  # the second class is row 0 alone; nobody has the third
    counts = np.bincount(order.at(0, 300), minlength=5)
    assert counts.sum() == 300
    assert counts[1:].tolist() == pytest.approx([33, 33, 50, 50], abs=1)


def test_weighted_rows_come_as_often_as_their_share_says() -> None:
    order = WeightedOrder(WEIGHTS, 5)
    share = WEIGHTS / WEIGHTS.sum() * 1000
    for epoch in (0, 1, 10**6):
        counts = np.bincount(order.at(epoch * 1000, 1000), minlength=1000)
        assert (counts >= np.floor(share)).all()
        assert (counts <= np.ceil(share)).all()
    many = np.bincount(order.at(0, 400_000), minlength=1000) / 400
    assert many == pytest.approx(share, abs=0.12)  # five standard deviations of what the shifts leave to chance
    assert many[999] == 0


def test_equal_weights_are_the_plain_order() -> None:
    assert np.array_equal(WeightedOrder(np.full(77, 0.3), 4).at(0, 770), EpochOrder(77, 4).at(0, 770))


ORDERS: list[RowOrder] = [
    EpochOrder(1000, 9),
    EpochOrder(3, 9),
    BalancedOrder.of_labels(LABELS, 9),
    BalancedOrder.of_labels(LABELS, 9, together=3),
    BalancedOrder.of_labels(np.sort(RANDOM.integers(0, 300, 5000)), 2**70),
    WeightedOrder(WEIGHTS, 9),
]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: f"{type(order).__name__} {order.num_examples}")
def test_the_graph_knows_the_order(order: RowOrder) -> None:
    in_graph = tf.function(lambda position_R: drawn(position_R, order), reduce_retracing=True)
    for first in (0, 12345, 10**12):
        rows, turns = order.drawn(first, 700)
        row_R, turn_R = in_graph(tf.range(first, first + 700, dtype=tf.int64))
        assert np.array_equal(row_R.numpy(), rows)
        assert np.array_equal(turn_R.numpy(), turns)


@settings(deadline=None, max_examples=40)
@given(which=st.sampled_from(range(len(ORDERS))), first=st.integers(0, 5000), count=st.integers(0, 60))
def test_any_range_is_a_part_of_the_endless_sequence(which: int, first: int, count: int) -> None:
    order = ORDERS[which]
    whole = order.at(0, first + count)
    assert np.array_equal(order.at(first, count), whole[first:])
    assert [int(order.at(first + place, 1)[0]) for place in range(min(count, 9))] == whole[first:][:9].tolist()
    assert order.at(first, count).dtype == np.int64


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="0 classes"):
        BalancedOrder.of_labels(np.zeros(0, np.int32), 1)
    with pytest.raises(InvalidArgument, match=r"classes of \[2, 0\] rows"):
        BalancedOrder(np.arange(2), np.array([2, 0]), 1)
    with pytest.raises(OutOfRange, match="they count from 0"):
        BalancedOrder.of_labels(LABELS, 1).at(-1, 2)
    for weights, says in (
        ([], r"an array \(0,\)"),
        ([1.0, float("nan"), -1.0], "2 weights are not finite numbers ≥ 0, the first is nan of row 1"),
        ([0.0, 0.0], "all 2 weights are 0"),
    ):
        with pytest.raises(InvalidArgument, match=says):
            WeightedOrder(np.array(weights), 1)
