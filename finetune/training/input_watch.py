"""InputWatch: what a run says of its input, while it trains and at the end.

Takes the stretches of training and the input queue's counts. Gives values for progress.json, charts and a sentence.
Next: `finetune.training.progress`, `finetune.training.summaries`, `finetune metrics`.

Features come from memory or a memory map, through tf.data, which tells nothing of its stages: of them there is only the
time that training waited.
"""

from __future__ import annotations

import math
from typing import Any

from finetune.data.queue_stats import QueueStats
from finetune.training.inputs import queue_stats
from finetune.training.trainer import Stretch


class InputWatch:
    """Of one session of training."""

    def __init__(self) -> None:
        self._charted: QueueStats | None = None  # what the charts have of the queue
        self._waited, self._seconds = 0.0, 0.0  # of the session
        self._waited_since, self._seconds_since = 0.0, 0.0  # since the last chart

    def begin(self, iterator: Any) -> None:
        self._charted = queue_stats(iterator)

    def add(self, stretch: Stretch, seconds: float) -> None:
        """`seconds`: of wall time. The first stretch, in which the step is traced, is better left out."""
        self._waited += stretch.waited_seconds
        self._waited_since += stretch.waited_seconds
        self._seconds += seconds
        self._seconds_since += seconds

    def now(self, iterator: Any) -> dict[str, Any]:
        """Since the last chart, as JSON values; `totals` since the input began."""
        stats = queue_stats(iterator)
        if stats is None or self._charted is None:
            share = _share(self._waited_since, self._seconds_since)
            return {"waited_share": share} if share is not None else {}
        return {name.removeprefix("input/"): value for name, value in (stats - self._charted).scalars.items()} | {
            "skipped": stats.skipped,
            "totals": stats.totals,
        }

    def chart(self, iterator: Any) -> dict[str, float]:
        """Since the last chart: tag → value; of features, nothing that the stretch's own charts don't have."""
        self._waited_since, self._seconds_since = 0.0, 0.0
        stats, before = queue_stats(iterator), self._charted
        if stats is None or before is None:
            return {}
        self._charted = stats
        return (stats - before).scalars

    def sentence(self, iterator: Any) -> str | None:
        """For people, at the end; None where nothing was timed."""
        if (stats := queue_stats(iterator)) is not None:
            return stats.sentence()
        share = _share(self._waited, self._seconds)
        return None if share is None else f"training waited for input {share:.0%} of the time; features were cached"


def _share(waited: float, seconds: float) -> float | None:
    """None where it isn't known: TensorFlow has no clock under op determinism."""
    return None if not seconds or math.isnan(waited) else min(1.0, waited / seconds)
