"""Evaluate: every example of a split once, with the mean loss and the head's own metrics.

Takes a head and SplitData (or a published version and DATA). Gives numbers.
Next: `finetune.training.evaluator`, the CLI.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from finetune.data.queue import evaluation_batches
from finetune.models.heads.head import HeadLayer
from finetune.training.split_data import SplitData


class SplitEvaluation:
    """A compiled evaluation of one split with one head; call it as often as the head's weights change."""

    def __init__(self, head: HeadLayer, split: SplitData, *, batch_size: int) -> None:
        self._head = head
        self._split = split
        self._batch_size = batch_size
        self._features_ND = split.first_view()
        self._warned: set[str] = set()
        self._step = tf.function(self._terms)

    def __call__(self) -> dict[str, Any]:
        """`loss` (mean over weights), means of the loss terms' other metrics, and the head's metrics of predictions.

        Warnings of the head go to stderr, once each.
        """
        metrics = self._means()
        metrics |= self._head.evaluate(self._features_ND, self._split.examples)
        for warning in metrics.pop("warnings", ()):
            if warning not in self._warned:
                self._warned.add(warning)
                print(f"warning: {self._split.name}: {warning}", file=sys.stderr, flush=True)
        return {name: _plain(value) for name, value in metrics.items()}

    def _means(self) -> dict[str, Any]:
        totals: dict[str, np.ndarray] = {}
        batches = evaluation_batches(
            table=self._split.table, features=self._split.features_NVD, batch_size=self._batch_size
        )
        for features, targets in batches:
            for name, pair in self._step(features, targets).items():
                totals[name] = totals.get(name, np.zeros(2)) + pair.numpy().astype(np.float64)
        return {name: float(total / weight) if weight else float("nan") for name, (total, weight) in totals.items()}

    def _terms(self, features: Mapping[str, tf.Tensor], targets: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        terms = self._head.loss(features, targets, training=False)
        pairs = {"loss": (terms.loss_sum, terms.weight_sum), **terms.metrics}
        return {name: tf.stack([tf.cast(x, tf.float32) for x in pair]) for name, pair in pairs.items()}


def _plain(value: Any) -> Any:
    """NumPy's numbers as Python's, for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    return value
