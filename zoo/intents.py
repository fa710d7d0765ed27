"""Intents: what a running publish relies on, said before it looks what is there, so that `zoo gc` leaves it alone.

Takes the digests of blobs and a manifest. Gives a held intent. Next: `zoo.catalog` publishes under one; `zoo.gc` reads
them.

A publish skips sending a blob that is there; a sweep deletes a blob that nothing names. Side by side:

    publish                                       sweep
    1 write intents/<id>                          a list what nothing names and what is old
    2 list gc/: wait while a live marker          b write gc/<id>, which condemns it
      condemns what I need                        c read the intents, then the logs again; spare what is named now
    3 look which blobs are there                  d delete the rest, up to half of the marker's life
    4 send the others, then the manifest          e remove gc/<id>
    5 commit to the log
    6 remove intents/<id>

Either 1 comes before c reads the intents, and the sweep finds the intent, or, if 6 was before that, the commit, since
it reads the logs after the intents. Or 1 comes after, so b was before 2: the publish meets the marker and waits, or
the marker is gone and with it the sweep, and then 3 sees what it has left. A publish waits for a marker that condemns
what it is going to send, too: a delete that is sent twice might hit what was sent in between.

An intent lives for a day, by the store's clock; a publish that is past half of it at step 5 writes a new one and goes
back to 2. One that a killed process left behind expires. (What is left of that argument where a sweep's process is
stopped for minutes within its step d: `zoo.sweep_marker`.)
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from zoo.errors import Unavailable, ZooError
from zoo.manifest import Digest, canonical_json
from zoo.model_logs import UnknownOutcome
from zoo.stopwatch import stopwatch
from zoo.store.object_store import ObjectMissing, ObjectStore
from zoo.sweep_marker import LIFE as MARKER_LIFE
from zoo.sweep_marker import Marker, markers
from zoo.transfer import create_same

INTENTS = "intents/"
LIFE = 24 * 3600.0  # seconds
_POLL = 0.5  # seconds between looks whether a sweep has ended


class SweepUnderway(Unavailable):
    """`zoo gc` is about to delete what this publish needs, and doesn't come to an end."""


@dataclass(frozen=True, kw_only=True)
class Intent:
    """One found in a store. `digests` is None for one that can't be read."""

    key: str
    digests: frozenset[str] | None
    expires: float  # seconds since the epoch, by the store's clock


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    digests: frozenset[Digest]
    created: AwareDatetime  # by the writer's clock; only the difference counts
    expires: AwareDatetime


def intents(store: ObjectStore) -> Iterator[Intent]:
    """Every intent that is there, expired ones too."""
    for info in store.list(INTENTS):
        digests, life = None, LIFE
        try:
            stored = _Stored.model_validate_json(store.read(info.key))
            digests, life = frozenset(stored.digests), (stored.expires - stored.created).total_seconds()
        except ObjectMissing:
            continue  # its publish has just ended
        except ValidationError:
            pass
        yield Intent(key=info.key, digests=digests, expires=info.modified + life)


class HeldIntent:
    """This process's intent, from `held_intent`."""

    def __init__(self, store: ObjectStore, digests: frozenset[str]) -> None:
        self._store = store
        self._digests = digests
        self._keys: list[str] = []
        self.renew()

    def renew(self) -> None:
        """Writes it anew, for another day; `wait_for_sweeps` has to follow."""
        self._started = stopwatch()
        key, now = f"{INTENTS}{secrets.token_hex(16)}.json", datetime.now(UTC)
        stored = _Stored(digests=self._digests, created=now, expires=now + timedelta(seconds=LIFE))
        create_same(
            self._store, key, canonical_json(stored.model_dump(mode="json") | {"digests": sorted(self._digests)})
        )
        self._keys.append(key)

    def is_past_half(self) -> bool:
        return stopwatch() - self._started > LIFE / 2

    def wait_for_sweeps(self) -> None:
        """Returns when no live sweep marker condemns what this intent names. Raises SweepUnderway."""
        written = self._started
        offset: float | None = None  # the store's clock minus our stop-watch
        began = stopwatch()
        while condemning := [marker for marker in markers(self._store) if marker.condemns(self._digests)]:
            if offset is None:
                offset = self._store.stat(self._keys[-1]).modified - written
            now = stopwatch() + offset
            live = [marker for marker in condemning if not marker.is_expired(now)]
            if not live:
                return
            if stopwatch() - began > 2 * MARKER_LIFE:
                raise _underway(live[0], self._store.url)
            time.sleep(_POLL)

    def release(self) -> None:
        """Best effort: what stays behind expires."""
        for key in self._keys:
            with suppress(ZooError, OSError):
                self._store.delete(key)


@contextmanager
def held_intent(store: ObjectStore, digests: frozenset[str]) -> Iterator[HeldIntent]:
    """An intent for the time of the block.

    It stays behind when the block ends by something from which it doesn't follow that nothing more will happen: an
    UnknownOutcome, Ctrl-C, a crash.
    """
    intent = HeldIntent(store, digests)
    try:
        yield intent
    except UnknownOutcome:
        raise
    except ZooError:
        intent.release()
        raise
    intent.release()


def _underway(marker: Marker, url: str) -> SweepUnderway:
    return SweepUnderway(
        f"`zoo gc` is deleting what this publish needs: {marker.key} in {url} does not go away",
        hint="try again when `zoo gc` has ended",
    )
