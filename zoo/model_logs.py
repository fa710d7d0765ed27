"""ModelLogs: the logs of all models in one store; reads their states and commits changes.

Takes a change that depends on the state. Gives the state after its commit. Next: `zoo.catalog`.

A change is committed by creating event seq+1 of the model's log, which exactly one writer can. That has three ends
besides the good one, kept apart in `_create`:
- lost the race (ObjectExists, and the event there isn't ours): read what the winner did, check again, retry after a
  short pause; somebody always wins, so there is always progress;
- told "conflict" or "try again" (StoreBusy): nothing was written, the same event goes out again;
- no answer: only the key tells. Our random event id inside means committed. An absent one may still arrive, so the
  same event with the same id goes out again, and is recognised as ours should both arrive.

Reading begins from what this process has folded already, else from the newest good snapshot, else from event 1.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from zoo import feed
from zoo.errors import Aborted, DataLoss, DeadlineExceeded, Internal, Unavailable, ZooError
from zoo.log import Change, DamagedLog, Event, ModelState, NewerLog, decode_event, encode_event, fold
from zoo.log_keys import (
    MODELS,
    event_key,
    log_prefix,
    model_prefix,
    name_of_folder,
    parse_log_key,
    snapshot_key,
    snapshot_prefix,
)
from zoo.pauses import Pauses
from zoo.snapshots import EVERY, DamagedSnapshot, NewerSnapshot, decode_snapshot, encode_snapshot
from zoo.store.object_store import ObjectExists, ObjectMissing, ObjectStore, StoreBusy

_TRIES = 8  # of one event while the store doesn't say what became of it
_FIRST_PAUSE = 0.05  # seconds, after no answer or "try again"; doubled each time
_RACE_PAUSE = 0.002  # seconds, after the first lost race; doubled each time
_LONGEST_PAUSE = 2.0  # seconds
_LONGEST_RACE_PAUSE = 0.1  # seconds
_UNKNOWN_OUTCOMES = (Unavailable, DeadlineExceeded, Aborted, Internal, OSError)
_THREADS = 8  # events of one log fetched at once from a remote store
_BATCH = 64  # of them before the next ones are asked for
_CACHED_EVENTS = 200_000  # versions and cards in the states that are kept in memory, about 250 bytes each


class UnknownOutcome(Unavailable):
    """The store answers neither whether an event was written nor with the event itself."""


class BrokenStore(DataLoss):
    """A store that breaks its promises: it holds an event that it doesn't list."""


@dataclass(frozen=True, kw_only=True)
class LogCounts:
    """What was left undone after commits, which are good without it."""

    hints_failed: int
    snapshots_failed: int


class ModelLogs:
    """Safe to share between threads; any number of processes may use one store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._states = _States(_CACHED_EVENTS)
        self._lock = threading.Lock()
        self._failed = {"hint": 0, "snapshot": 0}

    @property
    def counts(self) -> LogCounts:
        with self._lock:
            return LogCounts(hints_failed=self._failed["hint"], snapshots_failed=self._failed["snapshot"])

    def events(self, name: str, after: int = 0) -> Iterator[Event]:
        """The events of a model that follow on event `after`, in order; none when there is no such model.

        Raises DamagedLog, NewerLog.
        """
        start = event_key(name, after) if after else ""
        keys = (info.key for info in self._store.list(log_prefix(name), start_after=start))
        return self._read(self._without_gaps(name, after, keys))

    def state(self, name: str) -> ModelState:
        """The model's state now; seq 0 when there is no such model.

        Raises DamagedLog and NewerLog, which have the state before what can't be read.
        """
        known = self._states.get(name)
        fresh = None if known is None else self._caught_up(known)
        state = self._from_snapshot(name) if fresh is None else fresh
        self._states.put(state)
        return state

    def states(self, on_problem: Callable[[str, ZooError], None] | None = None) -> Iterator[ModelState]:
        """The state of every model that has a log, by name.

        on_problem: called with the name and the error for a log that can't be read, which then doesn't keep the others
            from being read; without it the error is raised.
        """
        for name in self.names():
            try:
                state = self.state(name)
            except (DamagedLog, NewerLog) as error:
                if on_problem is None:
                    raise
                on_problem(name, error)
                continue
            if state.seq:
                yield state

    def names(self) -> list[str]:
        """The names of all models that have a log, deleted ones and those without a version included, sorted.

        What lies under `models/` and belongs to no model is left out here; `strange_keys` has it.
        """
        return sorted(name for name in map(name_of_folder, self._store.folders(MODELS)) if name is not None)

    def strange_keys(self) -> list[str]:
        """Keys under `models/` that belong to no model's log; every key there is listed."""
        return [info.key for info in self._store.list(MODELS) if parse_log_key(info.key) is None]

    def check(self, name: str) -> list[str]:
        """What is wrong with a model's log: holes, unreadable events, snapshots that differ from the log, strange keys.

        Reads every event and snapshot; nothing that is kept in memory is trusted.
        """
        problems = [
            f"{info.key}: no key of a model's log"
            for info in self._store.list(model_prefix(name))
            if parse_log_key(info.key) is None
        ]
        snapshots = [info.key for info in self._store.list(snapshot_prefix(name)) if parse_log_key(info.key)]
        state, unfolded = ModelState(name=name), []
        try:
            for event in self.events(name):
                unfolded.append(event)
                if (key := snapshot_key(name, event.seq)) in snapshots:
                    state, unfolded = fold(state, unfolded), []
                    snapshots.remove(key)
                    problems += self._snapshot_faults(key, state)
            fold(state, unfolded)
        except (DamagedLog, NewerLog) as error:
            problems.append(error.message)
        problems += [f"{key}: a snapshot of an event that cannot be read or is not there" for key in snapshots]
        return problems

    def commit(self, name: str, change: Callable[[ModelState], Change | None]) -> tuple[ModelState, Event | None]:
        """Commits what `change` makes of the newest state; None means that nothing needs to change.

        `change` is called again with the newer state after each lost race, and may raise to give up.
        Returns the state that holds the event (or needed none), and the event.
        Raises UnknownOutcome when the store stays silent: the change may or may not have been made; StoreBusy when it
        keeps saying "try again": it wasn't; DamagedLog and NewerLog for a log that can't be read to its end.
        """
        lost = 0  # the last seq that somebody else's event took
        pauses = Pauses(first=_RACE_PAUSE, longest=_LONGEST_RACE_PAUSE)
        while True:
            state = self.state(name)
            if state.seq < lost:
                raise BrokenStore(f"{self._store.url} holds event {lost} of model {name!r} but lists only {state.seq}")
            wanted = change(state)
            if wanted is None:
                return state, None
            event = Event.new(seq=state.seq + 1, change=wanted)
            after = fold(state, [event])  # before it is written: an impossible event would make the log unreadable
            if self._create(name, event):
                self._states.put(after)
                self._tell(after, event)
                return after, event
            lost = event.seq
            pauses.wait()

    def _tell(self, state: ModelState, event: Event) -> None:
        """What makes reading quicker for others; the commit is done and good without it."""
        try:
            feed.write_hint(self._store, state.name, event)
        except (ZooError, OSError):
            self._count("hint")
        if state.seq % EVERY == 0:
            try:
                self._store.create(snapshot_key(state.name, state.seq), encode_snapshot(state))
            except (ZooError, OSError):
                self._count("snapshot")

    def _count(self, what: str) -> None:
        with self._lock:
            self._failed[what] += 1

    def _caught_up(self, known: ModelState) -> ModelState | None:
        """`known` and the events after it; None when the log isn't the one that it was folded from."""
        events = self._probed(known) if self._is_local() else self._listed(known)
        return None if events is None else fold(known, events)

    def _probed(self, known: ModelState) -> Iterator[Event] | None:
        """On a disk one look at a name is cheaper than to list a log of thousands of them."""
        if not self._is_head(known):
            return None
        return self._following(known.name, known.seq)

    def _following(self, name: str, seq: int) -> Iterator[Event]:
        while True:
            seq += 1
            try:
                yield self._event(event_key(name, seq))
            except ObjectMissing:
                return

    def _listed(self, known: ModelState) -> Iterator[Event] | None:
        """One listing shows what came, and that the event that `known` ends with is still there."""
        keys = self._store.list(log_prefix(known.name), start_after=event_key(known.name, known.seq - 1))
        first = next(keys, None)
        if first is None or first.key != event_key(known.name, known.seq):
            return None
        return self._read(self._without_gaps(known.name, known.seq, (info.key for info in keys)))

    def _without_gaps(self, name: str, after: int, keys: Iterable[str]) -> Iterator[str]:
        """`keys` and those that a listing beside running commits passed over: a disk's may show the later of two files
        that were made meanwhile and not the earlier. What is missing for good is a hole, which folding finds."""
        for key in keys:
            seq = _check_key(key)
            for passed_over in range(after + 1, seq):
                if not self._is_there(event_key(name, passed_over)):
                    break
                yield event_key(name, passed_over)
            yield key
            after = seq

    def _is_there(self, key: str) -> bool:
        try:
            self._store.stat(key)
        except ObjectMissing:
            return False
        return True

    def _read(self, keys: Iterable[str]) -> Iterator[Event]:
        """The events at `keys`, in order; those of a remote store are fetched some at a time."""
        if self._is_local():
            yield from map(self._event, keys)
            return
        remaining = iter(keys)
        while batch := list(itertools.islice(remaining, _BATCH)):
            if len(batch) == 1:
                yield self._event(batch[0])
                continue
            with ThreadPoolExecutor(min(len(batch), _THREADS), thread_name_prefix="log") as pool:
                yield from pool.map(self._event, batch)

    def _is_local(self) -> bool:
        return self._store.local_path(MODELS + "x") is not None

    def _is_head(self, state: ModelState) -> bool:
        """Whether the event that `state` ends with is in the log."""
        try:
            return self._event(event_key(state.name, state.seq)).id == state.head
        except (ObjectMissing, DamagedLog, NewerLog):
            return False

    def _from_snapshot(self, name: str) -> ModelState:
        keys = [info.key for info in self._store.list(snapshot_prefix(name))]
        for key in reversed(keys):
            with suppress(DamagedSnapshot, NewerSnapshot, ObjectMissing):  # `check` names them
                state = self._snapshot(key)
                if state.name == name and snapshot_key(name, state.seq) == key and self._is_head(state):
                    return fold(state, self.events(name, state.seq))
        return fold(ModelState(name=name), self.events(name))

    def _snapshot(self, key: str) -> ModelState:
        return decode_snapshot(self._store.read(key), key)

    def _snapshot_faults(self, key: str, expected: ModelState) -> list[str]:
        try:
            found = self._snapshot(key)
        except (DamagedSnapshot, NewerSnapshot, ObjectMissing) as error:
            return [error.message]
        return [] if found == expected else [f"{key}: the snapshot differs from what the log says"]

    def _create(self, name: str, event: Event) -> bool:
        """True when `event` is in the log, False when another event has its place."""
        key, data = event_key(name, event.seq), encode_event(event)
        pauses = Pauses(first=_FIRST_PAUSE, longest=_LONGEST_PAUSE)
        unsure: Exception | None = None  # set once a try may have written it
        while True:
            try:
                self._store.create(key, data)
                return True
            except ObjectExists:
                # Not yet proof that we lost: a store that sends again after a lost answer meets its own first write.
                if (found := self._find(key)) is not None:
                    return found.id == event.id
                unsure = unsure or _unreadable(key)
            except StoreBusy as error:
                if pauses.made + 1 >= _TRIES and unsure is None:
                    raise StoreBusy(
                        f"{error.message}; event {event.seq} of model {name!r} was not written", hint=error.hint
                    ) from error
            except _UNKNOWN_OUTCOMES as error:
                unsure = error
                if (found := self._find(key)) is not None:
                    return found.id == event.id
            except ZooError as error:  # refused (no space, no access, …): but it may have been written before
                if (found := self._find(key)) is not None and found.id == event.id:
                    return True
                if unsure is None:
                    raise
                raise self._unknown(name, event, error) from error
            if pauses.made + 1 >= _TRIES and unsure is not None:
                raise self._unknown(name, event, unsure) from unsure
            pauses.wait()

    def _unknown(self, name: str, event: Event, error: Exception) -> UnknownOutcome:
        return UnknownOutcome(
            f"{self._store.url} does not answer whether event {event.seq} of model {name!r} "
            f"({event.change.type}) was written: {error}",
            hint=f"zoo history {name}",
        )

    def _find(self, key: str) -> Event | None:
        """The event at `key`, or None when there is none or the store doesn't answer."""
        try:
            return self._event(key)
        except (ObjectMissing, *_UNKNOWN_OUTCOMES):
            return None

    def _event(self, key: str) -> Event:
        event = decode_event(self._store.read(key), key)
        if key.rpartition("/")[2] != f"{event.seq:020}.json":
            raise DamagedLog(f"{key} holds event {event.seq}", hint="zoo verify", key=key)
        return event


class _States:
    """Folded states by name, those used last; bounded by what they hold."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._states: OrderedDict[str, ModelState] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str) -> ModelState | None:
        with self._lock:
            state = self._states.get(name)
            if state is not None:
                self._states.move_to_end(name)
            return state

    def put(self, state: ModelState) -> None:
        with self._lock:
            if (old := self._states.pop(state.name, None)) is not None:
                self._held -= _weight(old)
            if state.seq == 0:
                return
            self._states[state.name] = state
            self._held += _weight(state)
            while self._held > self._limit and len(self._states) > 1:
                self._held -= _weight(self._states.popitem(last=False)[1])


def _weight(state: ModelState) -> int:
    return 8 + len(state.versions) + len(state.cards) + len(state.aliases)  # 8: the rest of a state


def _unreadable(key: str) -> Exception:
    return Unavailable(f"{key} is taken, and cannot be read")


def _check_key(key: str) -> int:
    """The number of the event that lies at a key in the log."""
    found = parse_log_key(key)
    if found is None or found.kind != "log":
        raise DamagedLog(f"{key} is in the log, but its name is not that of an event", hint="zoo verify", key=key)
    return found.seq
