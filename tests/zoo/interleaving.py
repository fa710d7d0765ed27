"""Two programs on one store, one call at a time, in an order that the test chooses."""

from __future__ import annotations

import threading
from collections.abc import Callable

from tests.zoo.samples import FailingStore
from zoo.store.object_store import ObjectStore

_PATIENCE = 30  # seconds; only a fault of the test's lasts so long


class Turns:
    """Whose turn it is to call the store. Each side runs until its `pauses` say so, or until it waits for the other."""

    def __init__(self, first: str, second: str, *, pauses: dict[str, list[int]]) -> None:
        """pauses: after which of its calls, counted from 1, a side lets the other one run."""
        self._order = (first, second)
        self._turn = first
        self._pauses = {side: set(calls) for side, calls in pauses.items()}
        self._ended: set[str] = set()
        self._changed = threading.Condition()

    def store(self, side: str, store: ObjectStore) -> ObjectStore:
        """The store as that side sees it."""

        def step(number: int, name: str, key: str, before: bool) -> None:
            if not before:
                return
            if number - 1 in self._pauses.get(side, ()):
                self.pass_on(side)
            self._wait_for(side)

        return FailingStore(store, step)

    def pass_on(self, side: str) -> None:
        """Lets the other side run, if it hasn't ended."""
        with self._changed:
            other = next(name for name in self._order if name != side)
            if other not in self._ended:
                self._turn = other
            self._changed.notify_all()

    def run(self, programs: dict[str, Callable[[], object]]) -> dict[str, object]:
        """What each program returned, or the exception that it raised."""
        results: dict[str, object] = {}

        def run(side: str) -> None:
            try:
                self._wait_for(side)
                results[side] = programs[side]()
            except Exception as error:  # noqa: BLE001 - handed to the test
                results[side] = error
            finally:
                with self._changed:
                    self._ended.add(side)
                    self._turn = next(name for name in self._order if name != side)
                    self._changed.notify_all()

        threads = [threading.Thread(target=run, args=(side,), name=side) for side in self._order]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(_PATIENCE)
            assert not thread.is_alive(), f"{thread.name} hangs"
        return results

    def _wait_for(self, side: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self._turn == side, _PATIENCE), f"it is never the turn of {side}"
