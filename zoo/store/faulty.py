"""FaultyStore: any store behind a network that fails by a plan.

Takes an ObjectStore and a FaultPlan. Gives an ObjectStore that keeps the contract's words on errors and no more, so
that whatever rests on a store can be tried against bad days. Next: tests, `zoo.store.retrying`.

What a call meets is decided by the plan's seed, the method's name and which call of that method it is, and by nothing
else: a run with one thread can be repeated exactly, and one with many meets as many faults each time.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Literal, TypeVar

from zoo.byte_count import OnBytes, nobody_listens
from zoo.errors import InvalidArgument, Unavailable
from zoo.store.keys import check_folder, check_key, check_prefix
from zoo.store.object_store import (
    Leftover,
    NoAnswer,
    ObjectExists,
    ObjectInfo,
    ObjectMissing,
    ObjectStore,
    StoreBusy,
)

T = TypeVar("T")

_READS = frozenset({"read", "stream", "download", "stat", "list", "folders", "leftovers"})
_WRITES = frozenset({"create", "create_from_file", "put", "delete", "remove_leftover"})
METHODS = _READS | _WRITES


class Fate(StrEnum):
    """What a call meets."""

    NONE = "none"
    BUSY = "busy"  # nothing is done: StoreBusy
    SILENT = "silent"  # nothing is done: NoAnswer
    UNAVAILABLE = "unavailable"  # nothing is done: Unavailable, which no retry answers to
    LOST = "lost"  # it is done, whatever came of it isn't told: NoAnswer
    CUT = "cut"  # a part of what was asked for comes, then NoAnswer; a write is cut before it is one
    DUPLICATED = "duplicated"  # it is done twice, and the second answer told: ObjectExists for a create that won
    DELAYED = "delayed"  # it is done later


class Crash(BaseException):
    """The process is gone as far as a test can have it: nothing that handles errors handles this one, and every later
    call of the same FaultyStore meets it again."""


class StoreDown(Unavailable):
    """A store out of reach, by plan."""


@dataclass(frozen=True, kw_only=True)
class CrashAt:
    """The process ends at a call, before or after the store has done it."""

    call: int  # counted over all methods that the plan covers, from 1
    when: Literal["before", "after"] = "before"
    how: Literal["raise", "kill"] = "raise"  # Crash; or SIGKILL to this process


@dataclass(frozen=True, kw_only=True)
class FaultPlan:
    """Which calls fail, and how. The rates are shares of a method's calls, 0 to 1, and together at most 1."""

    seed: int = 0
    busy: float = 0.0
    silent: float = 0.0
    unavailable: float = 0.0
    lost: float = 0.0
    cut: float = 0.0
    duplicated: float = 0.0
    delayed: float = 0.0
    delay_seconds: float = 0.002  # longest; each delay is between 0 and this
    methods: frozenset[str] = METHODS  # all others always work
    at: tuple[tuple[int, Fate], ...] = ()  # fates of single calls, counted as CrashAt.call; they go before the rates
    crash: CrashAt | None = None

    def __post_init__(self) -> None:
        rates = [rate for _, rate in self._rates()]
        if min(rates) < 0 or sum(rates) > 1 + 1e-9:
            raise InvalidArgument(f"fault rates must be from 0 to 1, and together at most 1; received {rates}")
        if unknown := sorted(self.methods - METHODS):
            raise InvalidArgument(f"a store has no methods {unknown}; it has {sorted(METHODS)}")

    @classmethod
    def none(cls) -> FaultPlan:
        """Every call works."""
        return cls()

    @classmethod
    def mixed(cls, rate: float, *, seed: int = 0, methods: frozenset[str] = METHODS) -> FaultPlan:
        """`rate` of all calls meet one of the faults that a caller is to outlast, each kind equally often."""
        share = rate / 5
        return cls(seed=seed, busy=share, silent=share, lost=share, cut=share, duplicated=share, methods=methods)

    def fate(self, method: str, number: int) -> Fate:
        """What the `number`-th call (from 1) of `method` meets by the rates."""
        drawn = random.Random(f"{self.seed} {method} {number}").random()
        for fate, rate in self._rates():
            drawn -= rate
            if drawn < 0:
                return fate
        return Fate.NONE

    def _rates(self) -> tuple[tuple[Fate, float], ...]:
        return tuple((fate, getattr(self, fate.value)) for fate in Fate if fate is not Fate.NONE)


class FaultyStore:
    """An ObjectStore over `store`; safe to share between threads when `store` is.

    `local_path` gives None, so that readers come through the store, unless `local_paths`.
    """

    def __init__(self, store: ObjectStore, plan: FaultPlan, *, local_paths: bool = False) -> None:
        self._store = store
        self._plan = plan
        self._local_paths = local_paths
        self._explicit = dict(plan.at)
        self._lock = threading.Lock()
        self._number = 0
        self._crashed = False
        self._calls: Counter[str] = Counter()
        self._injected: Counter[Fate] = Counter()

    @property
    def url(self) -> str:
        return self._store.url

    @property
    def store(self) -> ObjectStore:
        """The store below, which always works."""
        return self._store

    @property
    def calls(self) -> Mapping[str, int]:
        """Method → how often it was called; only methods that the plan covers."""
        with self._lock:
            return dict(self._calls)

    @property
    def injected(self) -> Mapping[Fate, int]:
        """Fault → how many calls met it."""
        with self._lock:
            return dict(self._injected)

    def create(self, key: str, data: bytes) -> None:
        check_key(key)
        self._do("create", lambda: self._store.create(key, data))

    def create_from_file(
        self, key: str, path: Path, *, chunks: Sequence[str] = (), on_bytes: OnBytes = nobody_listens
    ) -> None:
        check_key(key)
        self._do("create_from_file", lambda: self._store.create_from_file(key, path, chunks=chunks, on_bytes=on_bytes))

    def put(self, key: str, data: bytes) -> None:
        check_key(key)
        self._do("put", lambda: self._store.put(key, data))

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        check_key(key)
        return self._do("read", lambda: self._store.read(key, start=start, length=length))

    def stream(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        check_key(key)
        return self._give("stream", lambda: self._store.stream(key, start=start, length=length))

    def download(self, key: str, path: Path) -> None:
        check_key(key)
        self._do("download", lambda: self._store.download(key, path), undo=path.unlink)

    def stat(self, key: str) -> ObjectInfo:
        check_key(key)
        return self._do("stat", lambda: self._store.stat(key))

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        return self._give("list", lambda: self._store.list(prefix, start_after=start_after))

    def folders(self, prefix: str) -> Iterator[str]:
        check_folder(prefix)
        return self._give("folders", lambda: self._store.folders(prefix))

    def delete(self, key: str) -> None:
        check_key(key)
        self._do("delete", lambda: self._store.delete(key))

    def local_path(self, key: str) -> Path | None:
        check_key(key)
        return self._store.local_path(key) if self._local_paths else None

    def leftovers(self, prefix: str) -> Iterator[Leftover]:
        check_prefix(prefix)
        return self._give("leftovers", lambda: self._store.leftovers(prefix))

    def remove_leftover(self, leftover: Leftover) -> None:
        self._do("remove_leftover", lambda: self._store.remove_leftover(leftover))

    def _do(self, method: str, call: Callable[[], T], *, undo: Callable[[], None] = lambda: None) -> T:
        """`undo` takes back, on this side, what an answered call left here that now isn't to be answered."""
        number, nth, fate = self._next(method)
        self._crash(number, "before")
        if (fault := _refusal(fate, method)) or (fate is Fate.CUT and method in _WRITES):
            raise fault or NoAnswer(f"{method}: the connection broke while it was sent, by plan")
        self._delay(fate, method, nth)
        try:
            answer = call()
            if fate is Fate.DUPLICATED:
                undo()
                answer = call()
        except (ObjectExists, ObjectMissing):
            if fate in (Fate.LOST, Fate.CUT):
                raise NoAnswer(f"{method}: the answer was lost, by plan") from None
            raise
        finally:
            self._crash(number, "after")
        if fate in (Fate.LOST, Fate.CUT):
            undo()
            raise NoAnswer(f"{method}: the answer was lost, by plan")
        return answer

    def _give(self, method: str, call: Callable[[], Iterator[T]]) -> Iterator[T]:
        number, nth, fate = self._next(method)
        self._crash(number, "before")
        return self._items(method, call, number, nth, fate)

    def _items(self, method: str, call: Callable[[], Iterator[T]], number: int, nth: int, fate: Fate) -> Iterator[T]:
        if fault := _refusal(fate, method):
            raise fault
        self._delay(fate, method, nth)
        items = call()
        if fate is Fate.DUPLICATED:
            next(items, None)
            items = call()
        if fate is Fate.LOST:
            next(items, None)
            raise NoAnswer(f"{method}: the answer was lost, by plan")
        if fate is Fate.CUT:
            items = _cut(items, self._random(method, nth).randrange(12), method)
        yield from items
        self._crash(number, "after")

    def _next(self, method: str) -> tuple[int, int, Fate]:
        """The call's number, its number among those of its method, and what it meets."""
        if method not in self._plan.methods:
            return 0, 0, Fate.NONE
        with self._lock:
            if self._crashed:
                raise Crash("this process is gone, by plan")
            self._number += 1
            self._calls[method] += 1
            number, nth = self._number, self._calls[method]
        fate = self._explicit.get(number) or self._plan.fate(method, nth)
        if fate is not Fate.NONE:
            with self._lock:
                self._injected[fate] += 1
        return number, nth, fate

    def _crash(self, number: int, when: str) -> None:
        crash = self._plan.crash
        if crash is None or (crash.call, crash.when) != (number, when):
            return
        if crash.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        self._crashed = True
        raise Crash(f"crash {when} call {number}, by plan")

    def _delay(self, fate: Fate, method: str, nth: int) -> None:
        if fate is Fate.DELAYED:
            time.sleep(self._random(method, nth).uniform(0, self._plan.delay_seconds))

    def _random(self, method: str, nth: int) -> random.Random:
        return random.Random(f"{self._plan.seed} {method} {nth} how")


def _refusal(fate: Fate, method: str) -> StoreBusy | Unavailable | None:
    if fate is Fate.BUSY:
        return StoreBusy(f"{method}: try again later, by plan")
    if fate is Fate.SILENT:
        return NoAnswer(f"{method}: no answer, by plan")
    if fate is Fate.UNAVAILABLE:
        return StoreDown(f"{method}: the store cannot be reached, by plan")
    return None


def _cut(items: Iterator[T], whole: int, method: str) -> Iterator[T]:
    """The first `whole` of `items`, or all there are; where the next are bytes, half of them too; then NoAnswer."""
    for number, item in enumerate(items):
        if number < whole:
            yield item
            continue
        if isinstance(item, bytes) and len(item) > 1:
            yield item[: len(item) // 2]  # type: ignore[misc]
        break
    raise NoAnswer(f"{method}: the connection broke in the midst of the answer, by plan")
