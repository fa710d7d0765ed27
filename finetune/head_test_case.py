"""HeadTestCase: what every head must hold to, as assertions for its tests (docs/debugging.md).

Takes a HeadLayer and a batch. Gives failures that name the variable or the value. Next: your own test module.

Beyond these, `tf.test.TestCase` brings `assertAllClose`, `assertAllEqual`, `assertAllInRange`, `assertAllInSet`,
`assertNotAllClose`, all of tensors and arrays alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from finetune.models.heads.head import HeadLayer, LossTerms

_Arrays = Mapping[str, Any]


class HeadTestCase(tf.test.TestCase):
    """A batch is `features` and `targets` as `HeadLayer.loss` takes them, with `weight` among the targets."""

    test_session = None  # TensorFlow's old context, which test runners take for a test

    def assertShape(self, value: Any, shape: Sequence[int | None]) -> None:
        """None stands for any size."""
        found = tuple(np.shape(value))
        fits = len(found) == len(shape) and all(want in (None, have) for have, want in zip(found, shape, strict=True))
        if not fits:
            self.fail(f"shape {found}, expected {tuple(shape)}")

    def assertAllFinite(self, value: Any) -> None:
        array = np.asarray(value)
        bad = np.argwhere(~np.isfinite(array))
        if len(bad):
            place = tuple(int(x) for x in bad[0])
            self.fail(f"{len(bad)} of {array.size} values are NaN or Inf, the first at {place}: {array[place]}")

    def assertGradientsFlow(self, head: HeadLayer, features: _Arrays, targets: _Arrays) -> None:
        """Each trainable variable has a gradient that is finite and not 0 throughout."""
        variables = list(head.trainable_variables)
        with tf.GradientTape() as tape:
            loss_sum = head.loss(features, targets, training=True).loss_sum
        gradients = tape.gradient(loss_sum, [variable.value for variable in variables])
        for variable, gradient in zip(variables, gradients, strict=True):
            if gradient is None:
                self.fail(f"the loss doesn't depend on {variable.path}")
            array = np.asarray(tf.convert_to_tensor(gradient))
            if not np.isfinite(array).all():
                self.fail(f"the gradient of {variable.path} has NaN or Inf")
            if not array.any():
                self.fail(f"the gradient of {variable.path} is 0 throughout")

    def assertSumsAdd(self, head: HeadLayer, features: _Arrays, targets: _Arrays, *, rtol: float = 1e-4) -> None:
        """The terms of a batch are the sums of those of its two parts: so several workers give what one gives."""
        rows = int(np.shape(targets["weight"])[0])
        whole = _sums(head.loss(features, targets, training=False))
        parts = [
            _sums(head.loss(_rows(features, part), _rows(targets, part), training=False))
            for part in (slice(0, rows // 2), slice(rows // 2, rows))
        ]
        for name, value in whole.items():
            self.assertAllClose(parts[0][name] + parts[1][name], value, rtol=rtol, msg=f"{name} doesn't add up")

    def assertPaddingIgnored(self, head: HeadLayer, features: _Arrays, targets: _Arrays, *, rtol: float = 1e-4) -> None:
        """Rows of weight 0 change no term: the last batch of an evaluation is filled up with them."""
        alone = _sums(head.loss(features, targets, training=False))
        doubled = {name: np.concatenate([np.asarray(x), np.asarray(x)[::-1]]) for name, x in targets.items()}
        doubled["weight"] = np.concatenate([np.asarray(targets["weight"]), np.zeros_like(targets["weight"])])
        padded = {name: np.concatenate([np.asarray(x), np.asarray(x)[::-1]]) for name, x in features.items()}
        for name, value in _sums(head.loss(padded, doubled, training=False)).items():
            self.assertAllClose(value, alone[name], rtol=rtol, msg=f"{name} counts rows of weight 0")


def _rows(arrays: _Arrays, part: slice) -> dict[str, Any]:
    return {name: np.asarray(x)[part] for name, x in arrays.items()}


def _sums(terms: LossTerms) -> dict[str, np.ndarray]:
    pairs = {"loss": (terms.loss_sum, terms.weight_sum), **terms.metrics}
    return {name: np.array([float(x) for x in pair]) for name, pair in pairs.items()}
