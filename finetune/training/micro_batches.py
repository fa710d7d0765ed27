"""Micro-batches: one update's batch computed in pieces, so that only a piece's activations need memory at a time.

Takes a batch and a function that gives sums. Gives the sums over all of it. Next: `finetune.training.trainer`.

Sums of losses, gradients and weights are added before anything is divided, so that N pieces of b rows give the update
of one batch of N·b rows; Keras' own `gradient_accumulation_steps` averages means, and fails under two strategies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf


def summed(
    compute: Callable[[Any, Any], Any], features: Mapping[str, Any], targets: Mapping[str, Any], pieces: int
) -> Any:
    """What `compute` (of features and targets, any nest of tensors) gives for each piece, added up.

    Rows that a piece lacks to have the size of the others are copies of the last row with weight 0.
    """
    if pieces == 1:
        return compute(features, targets)
    stacked = _stacked(with_partners(features, targets), targets, pieces)

    def piece(number: Any) -> Any:
        return compute(*tf.nest.map_structure(lambda value: value[number], stacked))

    # The first lies outside of the loop because it shows what the loop carries.
    first = piece(0)
    flat = tf.nest.flatten(first)

    def body(number: tf.Tensor, *total: tf.Tensor) -> tuple[tf.Tensor, ...]:
        more = tf.nest.flatten(piece(number))
        return (number + 1, *(before + new for before, new in zip(total, more, strict=True)))

    _, *total = tf.while_loop(lambda number, *_: number < pieces, body, (tf.constant(1), *flat), parallel_iterations=1)
    return tf.nest.pack_sequence_as(first, total)


def with_partners(features: Mapping[str, Any], targets: Mapping[str, Any]) -> dict[str, Any]:
    """`features` in which mixed pictures bring the targets of their partners, which may be in another piece."""
    if "partner" not in features:
        return dict(features)
    others = {f"partner/{name}": tf.gather(value, features["partner"]) for name, value in targets.items()}
    return {name: value for name, value in features.items() if name != "partner"} | others


def _stacked(features: Mapping[str, Any], targets: Mapping[str, Any], pieces: int) -> tuple[Any, Any]:
    """Both as [pieces, rows, …]."""
    batch = dict(features), dict(targets)
    weight_B = tf.convert_to_tensor(targets["weight"])
    rows = weight_B.shape[0] if weight_B.shape[0] is not None else tf.shape(weight_B)[0]
    size = -(-rows // pieces)
    if not (isinstance(rows, int) and rows % pieces == 0):
        place_B = tf.range(pieces * size)
        row_B = tf.minimum(place_B, rows - 1)
        batch = tf.nest.map_structure(lambda value: tf.gather(value, row_B), batch)
        batch[1]["weight"] = tf.where(place_B < rows, batch[1]["weight"], 0.0)
    return tf.nest.map_structure(lambda value: _folded(tf.convert_to_tensor(value), (pieces, size)), batch)


def _folded(value: tf.Tensor, first: tuple[Any, Any]) -> tf.Tensor:
    """The first axis as two; the others, known or not, as they are."""
    sides = [tf.shape(value)[axis] if side is None else side for axis, side in enumerate(value.shape)]
    return tf.reshape(value, (*first, *sides[1:]))
