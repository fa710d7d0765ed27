"""The input orders inside a TensorFlow graph, by the same arithmetic as NumPy's; a test holds them together.

Takes a RowOrder and positions as a tensor. Gives rows and turns as tensors. Next: `finetune.data.queue`.
"""

from __future__ import annotations

import tensorflow as tf

from finetune.data.order import GOLDEN, M1, M2, EpochOrder, RowOrder, domain_bits, seed_keys
from finetune.data.order_balanced import BalancedOrder
from finetune.data.order_weighted import WeightedOrder
from zoo.errors import Internal

Drawn = tuple[tf.Tensor, tf.Tensor]


def drawn(position_R: tf.Tensor, order: RowOrder) -> Drawn:
    """(rows, turns), int64 [R]: `order.drawn` for any positions (int64), as graph operations."""
    if isinstance(order, EpochOrder):
        return rows_at(position_R, order.num_examples, order.seed), position_R // order.num_examples
    if isinstance(order, BalancedOrder):
        return _balanced(position_R, order)
    if isinstance(order, WeightedOrder):
        return _weighted(position_R, order)
    raise Internal(f"{type(order).__name__} has no form for graphs")


def rows_at(position_R: tf.Tensor, num_rows: int, seed: int) -> tf.Tensor:
    """int64 [R]: `EpochOrder(num_rows, seed).at` for any positions."""
    epoch_R, start_R = position_R // num_rows, position_R % num_rows
    at_R = tf.cast(epoch_R, tf.uint64) * _u64(GOLDEN)
    keys = [_mixed(tf.bitwise.bitwise_xor(_u64(key), at_R)) for key in seed_keys(seed)]
    low_bits, high_bits = _halves(tf.constant(domain_bits(num_rows), tf.int64))
    return _permuted(start_R, _u64(num_rows), low_bits, high_bits, keys)


def view_of(turn_R: tf.Tensor, row_R: tf.Tensor, seed: int, num_views: int) -> tf.Tensor:
    """int64 [R]: which of `num_views` views a row shows in a turn; any two turns choose independently."""
    if num_views == 1:
        return tf.zeros_like(row_R)
    key = _mixed(tf.cast(turn_R, tf.uint64) * _u64(GOLDEN) + _u64(seed_keys(seed)[0]))
    mixed = _mixed(tf.bitwise.bitwise_xor(key, tf.cast(row_R, tf.uint64) * _u64(M1)))
    return tf.cast(_shifted(mixed, _u64(33)), tf.int64) % num_views


def _balanced(position_R: tf.Tensor, order: BalancedOrder) -> Drawn:
    group_R = position_R // order.together
    class_R = rows_at(group_R, len(order.sizes), order.classes.seed)
    showing_R = group_R // len(order.sizes) * order.together + position_R % order.together
    size_R = tf.gather(tf.constant(order.sizes), class_R)
    turn_R = showing_R // size_R
    at_R = tf.bitwise.bitwise_xor(tf.cast(turn_R, tf.uint64) * _u64(GOLDEN), _mixed(tf.cast(class_R + 1, tf.uint64)))
    keys = [_mixed(tf.bitwise.bitwise_xor(_u64(key), at_R)) for key in order.member_keys]
    low_bits_R, high_bits_R = _halves(tf.gather(tf.constant(order.bits), class_R))
    place_R = _permuted(showing_R % size_R, tf.cast(size_R, tf.uint64), low_bits_R, high_bits_R, keys)
    member_R = tf.gather(tf.constant(order.first_member), class_R) + place_R
    return tf.gather(tf.constant(order.members), member_R), turn_R


def _weighted(position_R: tf.Tensor, order: WeightedOrder) -> Drawn:
    tooth_R = rows_at(position_R, order.num_examples, order.seed)
    epoch_R = tf.cast(position_R // order.num_examples, tf.uint64)
    shift_R = _mixed(tf.bitwise.bitwise_xor(_u64(order.shift_key), epoch_R * _u64(GOLDEN)))
    point_R = tooth_R * 2**32 + tf.cast(_shifted(shift_R, _u64(32)), tf.int64)
    return tf.searchsorted(tf.constant(order.ends), point_R, side="right", out_type=tf.int64), position_R


def _permuted(
    start_R: tf.Tensor, bound: tf.Tensor, low_bits: tf.Tensor, high_bits: tf.Tensor, keys: list[tf.Tensor]
) -> tf.Tensor:
    """int64 [R]. `bound`, bits and keys (uint64) are one for all positions or one each."""

    def walk(value_R: tf.Tensor) -> tuple[tf.Tensor]:
        return (tf.where(value_R >= bound, _feistel(value_R, low_bits, high_bits, keys), value_R),)

    first_R = _feistel(tf.cast(start_R, tf.uint64), low_bits, high_bits, keys)
    (row_R,) = tf.while_loop(lambda value_R: tf.reduce_any(value_R >= bound), walk, (first_R,))
    return tf.cast(row_R, tf.int64)


def _halves(bits: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    return tf.cast(bits // 2, tf.uint64), tf.cast(bits - bits // 2, tf.uint64)


def _feistel(value_R: tf.Tensor, low_bits: tf.Tensor, high_bits: tf.Tensor, keys: list[tf.Tensor]) -> tf.Tensor:
    one = _u64(1)
    high = _shifted(value_R, low_bits)
    low = tf.bitwise.bitwise_and(value_R, tf.bitwise.left_shift(one, low_bits) - one)
    for key in keys:
        mixed = tf.bitwise.bitwise_xor(low, key) * _u64(M1)
        mixed = tf.bitwise.bitwise_xor(mixed, _shifted(mixed, _u64(29))) * _u64(M2)
        high, low = low, tf.bitwise.bitwise_xor(_shifted(mixed, _u64(64) - high_bits), high)
        low_bits, high_bits = high_bits, low_bits
    return tf.bitwise.bitwise_or(tf.bitwise.left_shift(high, low_bits), low)


def _mixed(value: tf.Tensor) -> tf.Tensor:
    value = tf.bitwise.bitwise_xor(value, _shifted(value, _u64(30))) * _u64(M1)
    value = tf.bitwise.bitwise_xor(value, _shifted(value, _u64(27))) * _u64(M2)
    return tf.bitwise.bitwise_xor(value, _shifted(value, _u64(31)))


def _shifted(value: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    return tf.bitwise.right_shift(value, places)


def _u64(value: int) -> tf.Tensor:
    return tf.constant(value, tf.uint64)
