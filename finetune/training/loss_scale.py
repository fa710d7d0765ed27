"""LossScale: gradients in float16 without underflow (Micikevicius et al. 2018, arXiv:1710.03740, section 3.2).

Takes whether an update's gradients were finite. Gives the factor of the next step's loss. Next:
`finetune.training.trainer`.

The factor is a power of two, so that to multiply and to divide by it rounds nothing. It falls by half when gradients
overflow, and that update is left out; it doubles after `_PATIENCE` updates in a row that went well. It is a variable of
the trainer, so that a resumed run goes on with it.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

_FIRST = 2.0**10  # sums of losses are differentiated, not means: less than the usual 2^15
_LEAST, _MOST = 1.0, 2.0**24
_PATIENCE = 2000  # updates, as everywhere


class LossScale:
    """For one replica; `variables` belong in the Checkpoint."""

    def __init__(self) -> None:
        self._factor = tf.Variable(_FIRST, trainable=False, name="loss_scale")
        self._good = tf.Variable(0, dtype=tf.int64, trainable=False, name="good_updates")

    @property
    def variables(self) -> dict[str, Any]:
        return {"loss_scale": self._factor, "good_updates": self._good}

    @property
    def factor(self) -> tf.Tensor:
        return self._factor.read_value()

    def exhausted(self) -> tf.Tensor:
        """Whether no smaller factor is left: what overflows then is no matter of float16."""
        return self._factor.read_value() <= _LEAST

    def adapt(self, finite: tf.Tensor) -> None:
        """After an update."""
        good = tf.where(finite, self._good.read_value() + 1, 0)
        grows = good >= _PATIENCE
        factor = self._factor.read_value()
        bigger = tf.where(grows, tf.minimum(2.0 * factor, _MOST), factor)
        self._factor.assign(tf.where(finite, bigger, tf.maximum(factor / 2.0, _LEAST)))
        self._good.assign(tf.where(grows, tf.zeros_like(good), good))
