"""RetryingStore: calls again what a store did not do or did not answer.

Takes any ObjectStore. Gives one that outlasts short faults. Next: `zoo.store.open_store`, which wraps buckets in it.

Only StoreBusy and NoAnswer are worth the same call again; everything else is an answer. A `create` is never repeated
here: of a call whose answer was lost, the next one would say ObjectExists, and only who knows what was to be written
can tell by reading the key whether that was its own (`zoo.model_logs` does so by the event's id). `create_from_file` is
for keys that name their bytes, so there ObjectExists says that they are stored, whoever sent them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)

from zoo.byte_count import OnBytes, nobody_listens
from zoo.errors import InvalidArgument
from zoo.store.object_store import Leftover, NoAnswer, ObjectInfo, ObjectStore, StoreBusy

T = TypeVar("T")
_NOTHING_MORE = object()


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often, and how patiently. Before try n + 1 comes a pause of 0 to `first_pause` · 2^(n-1) seconds, evenly
    spread, so that many writers who were refused together don't come back together."""

    attempts: int = 8  # tries in all, at least 1
    first_pause: float = 0.1  # seconds
    longest_pause: float = 5.0  # seconds
    total_seconds: float = 60.0  # after which no further try begins

    def __post_init__(self) -> None:
        if self.attempts < 1 or min(self.first_pause, self.longest_pause, self.total_seconds) < 0:
            raise InvalidArgument(f"{self}: at least one attempt, and no pause below 0 seconds")


class RetryingStore:
    """An ObjectStore; safe to share between threads when `store` is.

    A stream that breaks goes on at its offset, and a listing after its last entry; each step forward brings all tries
    back. An object replaced by `put` between two tries of its stream may show bytes of both.
    """

    def __init__(self, store: ObjectStore, policy: RetryPolicy | None = None) -> None:
        self._store = store
        self._policy = policy or RetryPolicy()
        self._lock = threading.Lock()
        self._retries = 0

    @property
    def url(self) -> str:
        return self._store.url

    @property
    def store(self) -> ObjectStore:
        """The store below, whose calls are not repeated."""
        return self._store

    @property
    def retries(self) -> int:
        """How many calls were made again so far."""
        with self._lock:
            return self._retries

    def create(self, key: str, data: bytes) -> None:
        self._store.create(key, data)

    def create_from_file(
        self, key: str, path: Path, *, chunks: Sequence[str] = (), on_bytes: OnBytes = nobody_listens
    ) -> None:
        self._tried(lambda: self._store.create_from_file(key, path, chunks=chunks, on_bytes=on_bytes))

    def put(self, key: str, data: bytes) -> None:
        self._tried(lambda: self._store.put(key, data))

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        return self._tried(lambda: self._store.read(key, start=start, length=length))

    def stream(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        given = 0

        def rest(last: bytes | None) -> Iterator[bytes]:
            left = None if length is None else length - given
            return iter(()) if left == 0 and given else self._store.stream(key, start=start + given, length=left)

        for piece in self._resumed(rest):
            given += len(piece)
            yield piece

    def download(self, key: str, path: Path) -> None:
        self._tried(lambda: self._store.download(key, path))

    def stat(self, key: str) -> ObjectInfo:
        return self._tried(lambda: self._store.stat(key))

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        return self._resumed(lambda last: self._store.list(prefix, start_after=last.key if last else start_after))

    def folders(self, prefix: str) -> Iterator[str]:
        return self._resumed(lambda last: (name for name in self._store.folders(prefix) if last is None or name > last))

    def delete(self, key: str) -> None:
        self._tried(lambda: self._store.delete(key))

    def local_path(self, key: str) -> Path | None:
        return self._store.local_path(key)

    def leftovers(self, prefix: str) -> Iterator[Leftover]:
        seen: set[tuple[str, str]] = set()  # a store gives them in no order that could be gone on in
        for leftover in self._resumed(
            lambda last: (found for found in self._store.leftovers(prefix) if (found.key, found.id) not in seen)
        ):
            seen.add((leftover.key, leftover.id))
            yield leftover

    def remove_leftover(self, leftover: Leftover) -> None:
        self._tried(lambda: self._store.remove_leftover(leftover))

    def _resumed(self, rest: Callable[[T | None], Iterator[T]]) -> Iterator[T]:
        """What `rest(None)` gives; after a fault `rest` is asked, by the last item that came, for those after it."""
        going: list[Iterator[T]] = []
        last: T | None = None

        def step() -> T | object:
            if not going:
                going.append(iter(rest(last)))
            try:
                return next(going[0], _NOTHING_MORE)
            except (StoreBusy, NoAnswer):
                going.clear()
                raise

        while (item := self._tried(step)) is not _NOTHING_MORE:
            last = cast("T", item)
            yield last

    def _tried(self, call: Callable[[], T]) -> T:
        policy = self._policy
        faults: list[StoreBusy | NoAnswer] = []
        try:
            return call()  # the usual case goes without the machinery below
        except (StoreBusy, NoAnswer) as error:
            faults.append(error)

        def again() -> T:
            if faults:  # of the first try, which has been made
                raise faults.pop()
            return call()

        retrying = Retrying(
            retry=retry_if_exception_type((StoreBusy, NoAnswer)),
            stop=stop_after_attempt(policy.attempts) | stop_before_delay(policy.total_seconds),
            wait=wait_random_exponential(multiplier=policy.first_pause, max=policy.longest_pause),
            before_sleep=self._count,
            retry_error_callback=_given_up,
        )
        return retrying(again)

    def _count(self, state: RetryCallState) -> None:
        with self._lock:
            self._retries += 1


def _given_up(state: RetryCallState) -> object:
    """Raises the last fault, which then says how often it was tried."""
    assert state.outcome is not None
    error = state.outcome.exception()
    assert isinstance(error, StoreBusy | NoAnswer)
    error.message += f" (tried {state.attempt_number} times in {state.seconds_since_start or 0:.1f} s)"
    error.args = (error.message,)
    raise error
