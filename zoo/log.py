"""The log of one model: what happened to it, in order. Its fold is the model's state.

Takes events as stored. Gives a ModelState. Next: `zoo.model_logs`, which reads and commits.

Everything here is a pure function of its arguments, so that a folded state can stand for the events before it
(`zoo.snapshots`). Time is that of the events: how old a deletion is, is measured to the event after it.

A model that is deleted can be brought back for `UNDELETE_DAYS`. A CREATED later than that takes the name anew: the
older versions are gone, but their numbers stay used, so that `name@3` never means two things.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from zoo.errors import DataLoss, FailedPrecondition
from zoo.manifest import Digest, canonical_json
from zoo.names import InvalidName, check_alias

LOG_SCHEMA = 1
UNDELETE_DAYS = 30


class DamagedLog(DataLoss):
    """An event that can't be read, or a log with a hole in it.

    `before` is the state up to there, where a whole log was being read.
    """

    before: ModelState | None = None


class NewerLog(FailedPrecondition):
    """An event written by a later version of the zoo, whose meaning isn't known here.

    `before` is the state up to there, where a whole log was being read.
    """

    before: ModelState | None = None


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Created(_Value):
    """The model's name is taken; it has no version yet. Also of a name whose model was deleted long ago."""

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

    @field_validator("alias")
    @classmethod
    def _one_that_users_may_set(cls, alias: str) -> str:
        try:
            return check_alias(alias)
        except InvalidName as error:
            raise ValueError(error.message) from None


class Archived(_Value):
    """The version is kept and served, but no longer meant for new work."""

    type: Literal["ARCHIVED"] = "ARCHIVED"
    version: Annotated[int, Field(ge=1)]


class Unarchived(_Value):
    type: Literal["UNARCHIVED"] = "UNARCHIVED"
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


Change = Created | VersionPublished | AliasSet | Archived | Unarchived | Deleted | Undeleted | CardUpdated
_TYPES = frozenset(kind.model_fields["type"].default for kind in Change.__args__)


class Event(_Value):
    """One committed change. `id` is random: by it a writer whose answer was lost recognises its own event."""

    schema_version: Literal[1] = 1
    seq: Annotated[int, Field(ge=1)]
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    time: AwareDatetime  # by the writer's clock; UTC
    change: Annotated[Change, Field(discriminator="type")]

    @field_validator("time")
    @classmethod
    def _in_utc(cls, time: datetime) -> datetime:
        return time.astimezone(UTC)

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
class CardEntry:
    seq: int  # of the event that set it
    digest: str  # of the blob with its text
    time: datetime  # UTC


@dataclass(frozen=True, kw_only=True)
class ModelState:
    """A model after its first `seq` events. `versions[i]` has the number `purged + i + 1`."""

    name: str
    seq: int = 0
    head: str | None = None  # the id of event `seq`, by which a log that was replaced shows
    versions: tuple[VersionEntry, ...] = ()
    aliases: MappingProxyType[str, int] = field(default_factory=lambda: MappingProxyType({}))
    cards: tuple[CardEntry, ...] = ()  # the model card's texts, oldest first
    deleted: datetime | None = None  # since when; UTC
    purged: int = 0  # versions of models that had the name before; their numbers stay used

    @property
    def newest(self) -> VersionEntry | None:
        return self.versions[-1] if self.versions else None

    @property
    def card(self) -> CardEntry | None:
        return self.cards[-1] if self.cards else None

    @property
    def last_number(self) -> int:
        """The highest number that was ever given to a version of this name."""
        return self.purged + len(self.versions)

    def version(self, number: int) -> VersionEntry | None:
        return self.versions[number - self.purged - 1] if self.purged < number <= self.last_number else None

    def aliases_of(self, number: int) -> tuple[str, ...]:
        return tuple(sorted(alias for alias, meant in self.aliases.items() if meant == number))

    def undelete_expired(self, now: datetime) -> bool:
        """Whether the model was deleted so long ago that its name is free."""
        return self.deleted is not None and now - self.deleted > timedelta(days=UNDELETE_DAYS)


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
        message = f"{key} is no readable event: {where}: {first['msg']}"
        raise DamagedLog(message, hint="zoo verify", key=key, field=where) from None


def _is_newer(data: bytes) -> bool:
    try:
        value: Any = json.loads(data)
        return int(value["schema_version"]) > LOG_SCHEMA or value["change"]["type"] not in _TYPES
    except (ValueError, TypeError, LookupError, RecursionError):
        return False


def fold(state: ModelState, events: Iterable[Event]) -> ModelState:
    """The state after `events`. Raises DamagedLog when they don't follow on each other.

    Whatever reading an event or folding it raises of DamagedLog and NewerLog has the state before it.
    """
    folding = _Folding(state)
    try:
        for event in events:
            folding.add(event)
    except (DamagedLog, NewerLog) as error:
        error.before = folding.state()
        raise
    return folding.state()


class _Folding:
    """A state while events are added to it: lists, since a new tuple for each event would take quadratic time."""

    def __init__(self, state: ModelState) -> None:
        self._start = state
        self._seq, self._head = state.seq, state.head
        self._versions, self._aliases, self._cards = list(state.versions), dict(state.aliases), list(state.cards)
        self._deleted, self._purged = state.deleted, state.purged

    def state(self) -> ModelState:
        if self._seq == self._start.seq:
            return self._start
        return ModelState(
            name=self._start.name,
            seq=self._seq,
            head=self._head,
            versions=tuple(self._versions),
            aliases=MappingProxyType(self._aliases.copy()),
            cards=tuple(self._cards),
            deleted=self._deleted,
            purged=self._purged,
        )

    def add(self, event: Event) -> None:
        if event.seq != self._seq + 1:
            raise DamagedLog(
                f"the log of model {self._start.name!r} has a hole: after event {self._seq} comes {event.seq}",
                hint="zoo verify",
            )
        change = event.change
        if isinstance(change, VersionPublished):
            self._publish(event, change)
        elif isinstance(change, AliasSet):
            self._entry(event, change.version)
            self._aliases[change.alias] = change.version
        elif isinstance(change, Archived | Unarchived):
            index, entry = self._entry(event, change.version)
            self._versions[index] = replace(entry, archived=isinstance(change, Archived))
        elif isinstance(change, CardUpdated):
            self._cards.append(CardEntry(seq=event.seq, digest=change.digest, time=event.time))
        elif isinstance(change, Deleted):
            self._deleted = event.time
        elif isinstance(change, Undeleted):
            self._deleted = None
        elif self._seq:
            self._create_again(event)
        self._seq, self._head = event.seq, event.id

    def _publish(self, event: Event, change: VersionPublished) -> None:
        last = self._purged + len(self._versions)
        if change.version != last + 1:
            raise self._impossible(event, f"version {change.version} follows {last}")
        self._versions.append(VersionEntry(number=change.version, digest=change.digest, created=event.time))

    def _create_again(self, event: Event) -> None:
        if self._deleted is None:
            raise self._impossible(event, "the model was created before")
        if event.time - self._deleted <= timedelta(days=UNDELETE_DAYS):
            raise self._impossible(event, f"the model was deleted less than {UNDELETE_DAYS} days before")
        self._purged += len(self._versions)
        self._versions, self._aliases, self._cards, self._deleted = [], {}, [], None

    def _entry(self, event: Event, number: int) -> tuple[int, VersionEntry]:
        index = number - self._purged - 1
        if index < 0:
            raise self._impossible(event, f"version {number} is gone")
        if index >= len(self._versions):
            raise self._impossible(event, f"there is no version {number} yet")
        return index, self._versions[index]

    def _impossible(self, event: Event, why: str) -> DamagedLog:
        return DamagedLog(
            f"the log of model {self._start.name!r} cannot be: event {event.seq} {event.change.type}: {why}",
            hint="zoo verify",
        )
