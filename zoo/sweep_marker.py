"""Sweep markers: what a running `zoo gc` is about to delete, said before it does so.

Takes digests. Gives markers with an age by the store's clock. Next: `zoo.gc` writes them, `zoo.intents` waits for them.

A marker lives for a quarter of an hour. Whoever wrote it deletes nothing after half of that; whoever meets it needn't
wait longer than the whole. So no clock but the store's and the processes' own stop-watches counts, which go on while a
machine sleeps.

The limit of that: between the look at the watch and the delete's arrival lies one request. A process that is stopped
right there for more than the other half, 7.5 minutes, and then goes on, still deletes; S3 has no delete that depends on
anything but the bytes, which are the same when a publish has sent them again. It finds out when the delete returns
(`is_over`), and tells of versions that have lost something.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zoo.manifest import Digest, canonical_json
from zoo.stopwatch import stopwatch
from zoo.store.object_store import ObjectMissing, ObjectStore
from zoo.transfer import create_same

MARKERS = "gc/"
LIFE = 900.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Marker:
    """One found in a store. `digests` is None for one that can't be read, which may condemn anything."""

    key: str
    modified: float  # seconds since the epoch, by the store's clock
    lifetime: float  # seconds
    digests: frozenset[str] | None

    def condemns(self, digests: frozenset[str]) -> bool:
        return self.digests is None or not digests.isdisjoint(self.digests)

    def is_expired(self, now: float) -> bool:
        return now > self.modified + self.lifetime


@dataclass(frozen=True, kw_only=True)
class OwnMarker:
    key: str
    started: float  # by the stopwatch, before it was written

    def is_past_half(self) -> bool:
        return stopwatch() - self.started > LIFE / 2

    def is_over(self) -> bool:
        """Whether a publish may have stopped waiting for it."""
        return stopwatch() - self.started > LIFE


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    lifetime: Annotated[float, Field(gt=0, le=86_400)]  # seconds
    digests: frozenset[Digest]


def write_marker(store: ObjectStore, digests: Iterable[str]) -> OwnMarker:
    key, started = f"{MARKERS}{secrets.token_hex(16)}.json", stopwatch()
    value = {"schema_version": 1, "lifetime": LIFE, "digests": sorted(digests)}
    create_same(store, key, canonical_json(value))
    return OwnMarker(key=key, started=started)


def markers(store: ObjectStore) -> Iterator[Marker]:
    """Every marker that is there, expired ones too."""
    for info in store.list(MARKERS):
        lifetime, digests = LIFE, None
        try:
            stored = _Stored.model_validate_json(store.read(info.key))
            lifetime, digests = stored.lifetime, frozenset(stored.digests)
        except ObjectMissing:
            continue  # its sweep has just ended
        except ValidationError:
            pass  # a later version's, or damaged: what it condemns isn't known
        yield Marker(key=info.key, modified=info.modified, lifetime=lifetime, digests=digests)
