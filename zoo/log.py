"""The log of one model: what happened to it, in order. Its fold is the model's state.

Takes events as stored. Gives a ModelState. Next: `zoo.catalog`, which reads, checks and commits.
Everything here is a pure function of its arguments, so that a folded state can stand for the events before it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zoo.errors import DataLoss, FailedPrecondition
from zoo.manifest import Digest, canonical_json

LOG_SCHEMA = 1


class DamagedLog(DataLoss):
    """An event that can't be read, or a log with a hole in it."""


class NewerLog(FailedPrecondition):
    """An event written by a later version of the zoo, whose meaning isn't known here."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Created(_Value):
    """The model's name is taken; it has no version yet."""

    type: Literal["CREATED"] = "CREATED"


class VersionPublished(_Value):
    """`digest` is that of the version's Manifest."""

    type: Literal["PUBLISHED"] = "PUBLISHED"
    version: Annotated[int, Field(ge=1)]
    digest: Digest


class AliasSet(_Value):
    """`alias` now means `version`, whatever it meant before."""

    type: Literal["ALIAS_SET"] = "ALIAS_SET"
    alias: str
    version: Annotated[int, Field(ge=1)]


class Archived(_Value):
    """The version is kept and served, but no longer meant for new work."""

    type: Literal["ARCHIVED"] = "ARCHIVED"
    version: Annotated[int, Field(ge=1)]


class Deleted(_Value):
    """The whole model is hidden, until UNDELETED."""

    type: Literal["DELETED"] = "DELETED"


class Undeleted(_Value):
    type: Literal["UNDELETED"] = "UNDELETED"


class CardUpdated(_Value):
    """`digest` is that of the blob with the model card's text."""

    type: Literal["CARD_UPDATED"] = "CARD_UPDATED"
    digest: Digest


Change = Created | VersionPublished | AliasSet | Archived | Deleted | Undeleted | CardUpdated
_TYPES = frozenset(kind.model_fields["type"].default for kind in Change.__args__)


class Event(_Value):
    """One committed change. `id` is random: by it a writer whose answer was lost recognises its own event."""

    schema_version: Literal[1] = 1
    seq: Annotated[int, Field(ge=1)]
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    time: datetime
    change: Annotated[Change, Field(discriminator="type")]

    @classmethod
    def new(cls, *, seq: int, change: Change) -> Event:
        return cls(seq=seq, id=secrets.token_hex(16), time=datetime.now(UTC), change=change)


@dataclass(frozen=True, kw_only=True)
class VersionEntry:
    number: int
    digest: str  # of the Manifest
    created: datetime  # UTC
    archived: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelState:
    """A model after its first `seq` events. `versions[i]` has the number i + 1."""

    name: str
    seq: int = 0
    versions: tuple[VersionEntry, ...] = ()
    aliases: MappingProxyType[str, int] = field(default_factory=lambda: MappingProxyType({}))
    deleted: bool = False
    card: str | None = None  # digest of the card's blob

    @property
    def newest(self) -> VersionEntry | None:
        return self.versions[-1] if self.versions else None

    def aliases_of(self, number: int) -> tuple[str, ...]:
        return tuple(sorted(alias for alias, meant in self.aliases.items() if meant == number))


def encode_event(event: Event) -> bytes:
    return canonical_json(event.model_dump(mode="json"))


def decode_event(data: bytes, key: str) -> Event:
    """Reads the event stored at `key`. Raises DamagedLog, NewerLog."""
    try:
        return Event.model_validate_json(data)
    except ValidationError as error:
        if _is_newer(data):
            raise NewerLog(
                f"{key} was written by a newer version of the zoo (this one knows log schema {LOG_SCHEMA} and the "
                f"events {', '.join(sorted(_TYPES))})",
                hint="upgrade modelzoo",
                key=key,
            ) from None
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise DamagedLog(f"{key} is no readable event: {where}: {first['msg']}", key=key) from None


def _is_newer(data: bytes) -> bool:
    import json

    try:
        value: Any = json.loads(data)
        return int(value["schema_version"]) > LOG_SCHEMA or value["change"]["type"] not in _TYPES
    except (ValueError, TypeError, LookupError):
        return False


def fold(state: ModelState, events: Iterable[Event]) -> ModelState:
    """The state after `events`. Raises DamagedLog when they don't follow on each other."""
    for event in events:
        if event.seq != state.seq + 1:
            raise DamagedLog(f"the log of model {state.name!r} has a hole: after event {state.seq} comes {event.seq}")
        state = replace(_after(state, event), seq=event.seq)
    return state


def _after(state: ModelState, event: Event) -> ModelState:
    change = event.change
    if isinstance(change, VersionPublished):
        if change.version != len(state.versions) + 1:
            raise _impossible(state, event, f"version {change.version} follows {len(state.versions)}")
        entry = VersionEntry(number=change.version, digest=change.digest, created=event.time)
        return replace(state, versions=(*state.versions, entry))
    if isinstance(change, AliasSet | Archived):
        if change.version > len(state.versions):
            raise _impossible(state, event, f"there is no version {change.version} yet")
        if isinstance(change, AliasSet):
            return replace(state, aliases=MappingProxyType({**state.aliases, change.alias: change.version}))
        versions = tuple(replace(v, archived=True) if v.number == change.version else v for v in state.versions)
        return replace(state, versions=versions)
    if isinstance(change, CardUpdated):
        return replace(state, card=change.digest)
    if isinstance(change, Deleted | Undeleted):
        return replace(state, deleted=isinstance(change, Deleted))
    if state.seq:
        raise _impossible(state, event, "the model was created before")
    return state


def _impossible(state: ModelState, event: Event, why: str) -> DamagedLog:
    return DamagedLog(f"the log of model {state.name!r} cannot be: event {event.seq} {event.change.type}: {why}")
