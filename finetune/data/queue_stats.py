"""What the input queue shows: how full it is, how fast each stage is, and who waits for whom.

Takes times from the queue's threads. Gives QueueStats. Next: TensorBoard, the progress line, a sentence at the end.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True)
class QueueStats:
    """Sums since the queue began; `a - b` is what happened in between.

    `seconds`: of wall time. `waited`: seconds that the consumer waited for a batch. `read_seconds`, `decode_seconds`:
    of all threads of a stage together. `fill`: the sum over batches of the share of ready ones.
    """

    seconds: float = 0.0
    waited: float = 0.0
    batches: int = 0
    read: int = 0
    bytes: int = 0
    read_seconds: float = 0.0
    decoded: int = 0
    decode_seconds: float = 0.0
    fill: float = 0.0
    skipped: int = 0

    def __sub__(self, earlier: QueueStats) -> QueueStats:
        return QueueStats(**{f.name: getattr(self, f.name) - getattr(earlier, f.name) for f in fields(self)})

    @property
    def waited_share(self) -> float:
        """Of the time, 0 to 1."""
        return self.waited / self.seconds if self.seconds else 0.0

    @property
    def scalars(self) -> dict[str, float]:
        """For charts: name → value."""
        seconds = self.seconds or 1.0
        return {
            "input/waited_share": self.waited_share,
            "input/ready_fill": self.fill / self.batches if self.batches else 0.0,
            "input/read_per_second": self.read / seconds,
            "input/decoded_per_second": self.decoded / seconds,
            "input/megabytes_per_second": self.bytes / 1e6 / seconds,
            "input/skipped": float(self.skipped),
        }

    @property
    def totals(self) -> dict[str, float]:
        """The sums themselves, for those who count on."""
        return {
            "waited_seconds": self.waited,
            "batches": self.batches,
            "read": self.read,
            "bytes": self.bytes,
            "read_seconds": self.read_seconds,
            "decoded": self.decoded,
            "decode_seconds": self.decode_seconds,
        }

    def sentence(self) -> str:
        """For people, at the end of a run."""
        if not self.batches:
            return "no input was asked for"
        slowest = "reading" if self.read_seconds > self.decode_seconds else "decoding"
        said = f"training waited for input {self.waited_share:.0%} of the time; {slowest} was the slowest stage"
        return said + (f"; {self.skipped} images were skipped" if self.skipped else "")


class StageClock:
    """Adds up; safe to call from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._sums = {f.name: 0.0 for f in fields(QueueStats)}

    def _add(self, **amounts: float) -> None:
        with self._lock:
            for name, amount in amounts.items():
                self._sums[name] += amount

    def read(self, seconds: float, count: int) -> None:
        self._add(read=1, bytes=count, read_seconds=seconds)

    def decoded(self, seconds: float) -> None:
        self._add(decoded=1, decode_seconds=seconds)

    def waited(self, seconds: float) -> None:
        self._add(batches=1, waited=seconds)

    def ready(self, batches: int, at_most: int) -> None:
        self._add(fill=batches / at_most)

    def snapshot(self, *, skipped: int) -> QueueStats:
        with self._lock:
            sums = dict(self._sums)
        return QueueStats(
            seconds=time.monotonic() - self._began,
            waited=sums["waited"],
            batches=int(sums["batches"]),
            read=int(sums["read"]),
            bytes=int(sums["bytes"]),
            read_seconds=sums["read_seconds"],
            decoded=int(sums["decoded"]),
            decode_seconds=sums["decode_seconds"],
            fill=sums["fill"],
            skipped=skipped,
        )
