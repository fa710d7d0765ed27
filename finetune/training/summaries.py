"""Summaries: TensorBoard scalars. Train and validation have the same tags, so that they lie on one chart.

Takes stretches of steps and evaluations. Gives event files in `events/train` and `events/validation`.
Next: `tensorboard --logdir <job>/events`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from finetune.training.trainer import Stretch


class Summaries:
    """Writes scalars into one folder. TensorFlow can't write to s3:// here: the folder is local."""

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
                "input_wait_share": stretch.waited_seconds / seconds if seconds else 0.0,
            },
        )

    def scalars(self, step: int, values: Mapping[str, Any]) -> None:
        """Every finite number in `values`; tables such as per_class have no place on a chart."""
        with self._writer.as_default(step=step):
            for tag, value in sorted(values.items()):
                if isinstance(value, int | float) and math.isfinite(value):
                    tf.summary.scalar(tag, value)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
