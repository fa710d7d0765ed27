"""ByteCount: what a listener is told of bytes that may be moved twice, found there, or not moved at all.

Takes counts as they happen. Gives counts that add up to what was announced. Next: a progress bar.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

OnBytes = Callable[[int], None]


def nobody_listens(count: int) -> None:
    pass


def one_at_a_time(on_bytes: OnBytes) -> OnBytes:
    """For a listener to whom several threads, or several ByteCounts, talk."""
    lock = threading.Lock()

    def told(count: int) -> None:
        with lock:
            on_bytes(count)

    return told


class ByteCount:
    """Of `total` bytes. Safe to share between threads; the listener is called by one at a time."""

    def __init__(self, total: int, on_bytes: OnBytes) -> None:
        self._left = total
        self._on_bytes = on_bytes
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """So many bytes were moved; more than there are in all aren't told."""
        with self._lock:
            told = min(count, self._left)
            self._left -= told
            if told:
                self._on_bytes(told)

    def complete(self) -> None:
        """There is nothing more to move."""
        self.add(self._left)
