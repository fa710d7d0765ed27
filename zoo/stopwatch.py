"""Stopwatch: seconds that pass, also while the machine sleeps.

Linux stops `time.monotonic` during a suspend. Who measures by it how old something in a store has become, takes a
laptop that was closed over night for one that paused a moment.
"""

from __future__ import annotations

import time

_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def stopwatch() -> float:
    """Only the difference of two readings means anything."""
    return time.clock_gettime(_CLOCK)
