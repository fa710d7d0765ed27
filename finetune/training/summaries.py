"""Summaries: what TensorBoard shows. Train and validation have the same tags, so that they lie on one chart.

Takes stretches of steps and evaluations. Gives event files in `events/train` and `events/validation`.
Next: `finetune tensorboard JOB`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorboard.plugins.pr_curve import metadata as pr_curve_metadata

from finetune.training.trainer import Stretch

_THRESHOLDS = 101  # of a precision-recall curve, evenly from 0 to 1


class Summaries:
    """Writes into one folder. TensorFlow can't write to s3:// here: the folder is local."""

    def __init__(self, folder: Path) -> None:
        self._writer = tf.summary.create_file_writer(str(folder))

    def stretch(self, step: int, stretch: Stretch, *, seconds: float) -> None:
        """What happened since the summary before, at `step`."""
        means = {name: total / weight for name, (total, weight) in stretch.metrics.items() if weight}
        self.scalars(
            step,
            means
            | {
                "loss": stretch.loss,
                "learning_rate": stretch.learning_rate,
                "gradient_norm": stretch.gradient_norm,
                "examples_per_second": stretch.examples / seconds if seconds else 0.0,
                "steps_per_second": stretch.steps / seconds if seconds else 0.0,
                "step_milliseconds": 1000 * seconds / stretch.steps,
                "input_wait_share": stretch.waited_seconds / seconds if seconds else 0.0,
            }
            | ({"updates_left_out": stretch.left_out} if stretch.left_out else {}),
        )

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Every finite number in `values`; tables such as per_class have no place on a chart."""
        with self._writer.as_default(step=step):
            for tag, value in sorted(values.items()):
                if isinstance(value, int | float) and math.isfinite(value):
                    tf.summary.scalar(tag, value)
        self._writer.flush()

    def histograms(self, step: int, values: Mapping[str, np.ndarray]) -> None:
        """Of the finite values of each array; of none where there are none."""
        with self._writer.as_default(step=step):
            for tag, array in values.items():
                finite = array if np.isfinite(array).all() else array[np.isfinite(array)]
                if finite.size:
                    tf.summary.histogram(tag, finite)
        self._writer.flush()

    def graph(self, graph: tf.Graph) -> None:
        with self._writer.as_default(step=0):
            tf.summary.graph(graph)
        self._writer.flush()

    def text(self, step: int, tag: str, markdown: str) -> None:
        with self._writer.as_default(step=step):
            tf.summary.text(tag, markdown)
        self._writer.flush()

    def image(self, step: int, tag: str, pixels_HWC: np.ndarray) -> None:
        """uint8 RGB."""
        with self._writer.as_default(step=step):
            tf.summary.image(tag, pixels_HWC[np.newaxis])
        self._writer.flush()

    def precision_recall(self, step: int, tag: str, truth_N: np.ndarray, score_N: np.ndarray) -> None:
        """Of yes or no answers: truth bool [N], score [N] from 0 to 1. In the form of TensorBoard's own plugin
        (tensorboard.plugins.pr_curve), whose writers are TensorFlow 1's."""
        table = precision_recall_table(truth_N, score_N)
        metadata = pr_curve_metadata.create_summary_metadata(
            display_name=tag, description="", num_thresholds=_THRESHOLDS
        )
        own = tf.compat.v1.SummaryMetadata.FromString(metadata.SerializeToString())
        with self._writer.as_default(step=step):
            tf.summary.write(tag, tf.constant(table, tf.float32), metadata=own)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def precision_recall_table(truth_N: np.ndarray, score_N: np.ndarray) -> np.ndarray:
    """float [6, T]: true and false positives, true and false negatives, precision and recall at thresholds from 0 to 1
    in T equal steps; what is at the threshold is positive."""
    threshold_T = np.linspace(0.0, 1.0, _THRESHOLDS)
    yes, no = np.sort(score_N[truth_N]), np.sort(score_N[~truth_N])
    found_T = len(yes) - np.searchsorted(yes, threshold_T, side="left")
    wrong_T = len(no) - np.searchsorted(no, threshold_T, side="left")
    precision_T = found_T / np.maximum(found_T + wrong_T, 1)
    recall_T = found_T / max(len(yes), 1)
    return np.stack([found_T, wrong_T, len(no) - wrong_T, len(yes) - found_T, precision_T, recall_T])
