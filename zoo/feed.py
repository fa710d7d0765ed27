"""The feed: a hint after each commit, so that catching up needn't list every key of every log.

Takes committed events. Gives Hints by hour. Next: `zoo.search`, which reads the logs that the hints name.

A hint is written after its event and on a best-effort basis, so one may be missing: only the logs are complete. Hours
are those of the writers' clocks; whoever reads from an hour on reckons with clocks that differ. `zoo gc` removes hours
older than 7 days.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zoo.log import Event
from zoo.manifest import canonical_json
from zoo.names import InvalidName, check_model_name
from zoo.store.object_store import ObjectMissing, ObjectStore

FEED = "feed/"
KEPT_DAYS = 7
_HOUR = "%Y%m%d%H"
_KEY = re.compile(r"feed/(?P<hour>[0-9]{10})/(?P<id>[0-9a-f]{32})\.json\Z")


@dataclass(frozen=True, kw_only=True)
class Hint:
    """Event `seq` was committed to the log of model `name`."""

    name: str
    seq: int
    event_id: str
    hour: str  # YYYYMMDDHH, UTC


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")  # a later version may say more; what is said here holds

    schema_version: Literal[1] = 1
    name: str
    seq: Annotated[int, Field(ge=1)]


def write_hint(store: ObjectStore, name: str, event: Event) -> None:
    """Raises the store's errors, ObjectExists too: the caller, whose commit is done, passes over them."""
    stored = _Stored(name=name, seq=event.seq)
    store.create(f"{FEED}{hour_of(event.time)}/{event.id}.json", canonical_json(stored.model_dump(mode="json")))


def hints(store: ObjectStore, since: datetime, *, seen: Container[str] = ()) -> Iterator[Hint]:
    """The hints from the hour of `since` on, by hour; those of `seen` event ids aren't read.

    A hint that can't be read is passed over: the listing of the logs, not the feed, is what is complete.
    """
    for hour in store.folders(FEED):
        if hour < hour_of(since):
            continue
        for info in store.list(f"{FEED}{hour}/"):
            match = _KEY.match(info.key)
            if match is None or match["id"] in seen:
                continue
            try:
                stored = _Stored.model_validate_json(store.read(info.key))
                check_model_name(stored.name)
            except (ObjectMissing, ValidationError, InvalidName):
                continue
            yield Hint(name=stored.name, seq=stored.seq, event_id=match["id"], hour=hour)


def hour_of(time: datetime) -> str:
    return time.astimezone(UTC).strftime(_HOUR)
