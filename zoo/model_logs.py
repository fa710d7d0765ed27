"""ModelLogs: the logs of all models in one store; reads their states and commits changes.

Takes a change that depends on the state. Gives the state after its commit. Next: `zoo.catalog`.

A change is committed by creating event seq+1 of the model's log, which exactly one writer can. A lost race: read what
the winner did, check again, retry; somebody always wins, so there is always progress. A lost answer: read the key; our
random event id inside means committed.
"""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Iterator

from zoo.errors import Aborted, DataLoss, DeadlineExceeded, Internal, Unavailable, ZooError
from zoo.log import Change, DamagedLog, Event, ModelState, decode_event, encode_event, fold
from zoo.store.object_store import ObjectExists, ObjectMissing, ObjectStore

_TRIES = 6  # while the outcome of a create is unknown
_FIRST_PAUSE = 0.05  # seconds, doubled each time
_UNKNOWN_OUTCOMES = (Unavailable, DeadlineExceeded, Aborted, Internal, OSError)
_EVENT_KEY = re.compile(r"models/(?P<name>[^/]+)/log/(?P<seq>[0-9]{20})\.json\Z")


class UnknownOutcome(Unavailable):
    """The store answers neither whether an event was written nor with the event itself."""


class BrokenStore(DataLoss):
    """A store that breaks its promises: it holds an event that it doesn't list."""


class ModelLogs:
    """Safe to share between threads; any number of processes may use one store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def events(self, name: str) -> Iterator[Event]:
        """Every event of a model in order; none when there is no such model. Raises DamagedLog, NewerLog."""
        for info in self._store.list(_log_prefix(name)):
            _check_key(info.key)
            yield self._event(info.key)

    def state(self, name: str) -> ModelState:
        """The model's state now; seq 0 when there is no such model."""
        return fold(ModelState(name=name), self.events(name))

    def states(self) -> Iterator[ModelState]:
        """The state of every model, by name."""
        for name in sorted(self.names()):
            yield self.state(name)

    def names(self) -> list[str]:
        """The names of all models that have a log, deleted ones and those without a version included."""
        keys = (_EVENT_KEY.match(info.key) for info in self._store.list("models/"))
        return sorted({match["name"].replace("%2F", "/") for match in keys if match})

    def commit(self, name: str, change: Callable[[ModelState], Change | None]) -> tuple[ModelState, Event | None]:
        """Commits what `change` makes of the newest state; None means that nothing needs to change.

        `change` is called again with the newer state after each lost race, and may raise to give up.
        Returns the state that holds the event (or needed none), and the event.
        Raises UnknownOutcome when the store stays silent: the change may or may not have been made.
        """
        lost = 0  # the last seq that somebody else's event took
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
                return after, event
            lost = event.seq

    def _create(self, name: str, event: Event) -> bool:
        """True when `event` is in the log, False when another event has its place."""
        key, data = _event_key(name, event.seq), encode_event(event)
        for attempt in itertools.count(1):
            try:
                self._store.create(key, data)
                return True
            except ObjectExists:
                # Not yet proof that we lost: a store that sends again after a lost answer meets its own first write.
                if (found := self._find(key)) is not None:
                    return found.id == event.id
            except _UNKNOWN_OUTCOMES as error:
                if (found := self._find(key)) is not None:
                    return found.id == event.id
                if attempt >= _TRIES:
                    raise UnknownOutcome(
                        f"{self._store.url} does not answer whether event {event.seq} of model {name!r} "
                        f"({event.change.type}) was written: {error}",
                        hint=f"zoo history {name}",
                    ) from error
            except ZooError:  # refused (no space, no access, …): but it may have been written before
                if (found := self._find(key)) is not None and found.id == event.id:
                    return True
                raise
            # Absent so far. The same event with the same id goes out again: should the first one still arrive, it is
            # recognised as ours.
            time.sleep(_FIRST_PAUSE * 2 ** min(attempt, 10))
        raise AssertionError("unreachable")

    def _find(self, key: str) -> Event | None:
        """The event at `key`, or None when there is none or the store doesn't answer."""
        try:
            return self._event(key)
        except (ObjectMissing, *_UNKNOWN_OUTCOMES):
            return None

    def _event(self, key: str) -> Event:
        event = decode_event(self._store.read(key), key)
        if key.rpartition("/")[2] != f"{event.seq:020}.json":
            raise DamagedLog(f"{key} holds event {event.seq}", key=key)
        return event


def _log_prefix(name: str) -> str:
    return f"models/{name.replace('/', '%2F')}/log/"


def _event_key(name: str, seq: int) -> str:
    return f"{_log_prefix(name)}{seq:020}.json"


def _check_key(key: str) -> None:
    if not _EVENT_KEY.match(key):
        raise DamagedLog(f"{key} is in the log, but its name is not that of an event", key=key)
