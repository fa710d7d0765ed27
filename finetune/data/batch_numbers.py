"""BatchNumbers: who works on which batch, where workers come and go (asynchronous training with parameter servers).

Takes a first number. Gives numbers, each once, until they are finished. Next: the Checkpoint keeps its JSON.

A batch is a number, since the order is a function of it; so what a run has done is the lowest number that isn't
finished and those finished above it. What was handed out and not finished when the state was saved is handed out again.
"""

from __future__ import annotations

import heapq
import threading
from typing import Any

from zoo.errors import FailedPrecondition, InvalidArgument


class BatchNumbers:
    """Safe to share between threads."""

    def __init__(self, lowest_unfinished: int = 0, finished_above: frozenset[int] = frozenset()) -> None:
        if lowest_unfinished < 0 or any(number <= lowest_unfinished for number in finished_above):
            raise InvalidArgument(
                f"finished batches {sorted(finished_above)[:5]} must lie above the lowest unfinished one, "
                f"{lowest_unfinished}, and that one must not be negative"
            )
        self._lock = threading.Lock()
        self._lowest, self._above = lowest_unfinished, set(finished_above)
        self._next = lowest_unfinished
        self._returned: list[int] = []  # a heap
        self._out: set[int] = set()

    def take(self) -> int:
        """The lowest number that nobody works on."""
        with self._lock:
            if self._returned:
                number = heapq.heappop(self._returned)
            else:
                while self._next in self._above:
                    self._next += 1
                number = self._next
                self._next += 1
            self._out.add(number)
            return number

    def finish(self, number: int) -> None:
        """Its update is done. Raises FailedPrecondition for a number that isn't out: it would count twice."""
        with self._lock:
            self._back(number)
            self._above.add(number)
            while self._lowest in self._above:
                self._above.remove(self._lowest)
                self._lowest += 1

    def give_back(self, number: int) -> None:
        """Its worker is gone: somebody else is to do it. Raises FailedPrecondition for a number that isn't out."""
        with self._lock:
            self._back(number)
            heapq.heappush(self._returned, number)

    def _back(self, number: int) -> None:
        if number not in self._out:
            raise FailedPrecondition(f"batch {number} is not out: it was never taken, or is finished already")
        self._out.remove(number)

    @property
    def num_finished(self) -> int:
        with self._lock:
            return self._lowest + len(self._above)

    def to_json(self) -> dict[str, Any]:
        with self._lock:
            return {"lowest_unfinished": self._lowest, "finished_above": sorted(self._above)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> BatchNumbers:
        """Raises InvalidArgument for what `to_json` can't have made."""
        lowest, above = value.get("lowest_unfinished"), value.get("finished_above")
        if not isinstance(lowest, int) or not isinstance(above, list) or not all(isinstance(n, int) for n in above):
            raise InvalidArgument(f"no state of batch numbers: {str(value)[:200]}")
        return cls(lowest, frozenset(above))
