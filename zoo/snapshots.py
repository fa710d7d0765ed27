"""Snapshots: a model's folded state every 100 events, so that reading a long log begins near its end.

Takes a ModelState. Gives its JSON, and the state back. Next: `zoo.model_logs`, which reads and writes them.

A snapshot is derived: the log alone counts, and any snapshot may be deleted. One that can't be read, was changed
(it holds the hash of its own state) or belongs to another log (it holds the id of the event it ends with) is passed
over, and `zoo verify` names it.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from zoo.errors import DataLoss, FailedPrecondition
from zoo.log import CardEntry, ModelState, VersionEntry
from zoo.manifest import Digest, canonical_json

EVERY = 100  # events
KEPT = 2  # snapshots of a model that `zoo gc` leaves
SNAPSHOT_SCHEMA = 1


class DamagedSnapshot(DataLoss):
    """A snapshot that isn't what was written."""


class NewerSnapshot(FailedPrecondition):
    """A snapshot written by a later version of the zoo."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Version(_Value):
    digest: Digest
    created: AwareDatetime
    archived: bool = False


class _Card(_Value):
    seq: int
    digest: Digest
    time: AwareDatetime


class _State(_Value):
    name: str
    seq: Annotated[int, Field(ge=1)]
    head: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    purged: Annotated[int, Field(ge=0)]
    versions: tuple[_Version, ...]
    aliases: dict[str, int]
    cards: tuple[_Card, ...]
    deleted: AwareDatetime | None


class _Snapshot(_Value):
    schema_version: Literal[1] = 1
    digest: Digest  # of the state's canonical JSON
    state: _State


def encode_snapshot(state: ModelState) -> bytes:
    """Canonical JSON: equal states have equal bytes."""
    value = _State(
        name=state.name,
        seq=state.seq,
        head=state.head or "",
        purged=state.purged,
        versions=tuple(_Version(digest=v.digest, created=v.created, archived=v.archived) for v in state.versions),
        aliases=dict(state.aliases),
        cards=tuple(_Card(seq=card.seq, digest=card.digest, time=card.time) for card in state.cards),
        deleted=state.deleted,
    ).model_dump(mode="json")
    return canonical_json({"schema_version": SNAPSHOT_SCHEMA, "digest": _digest(value), "state": value})


def decode_snapshot(data: bytes, key: str) -> ModelState:
    """Reads the snapshot stored at `key`. Raises DamagedSnapshot, NewerSnapshot."""
    import json

    try:
        value: Any = json.loads(data)
        newer = isinstance(value, dict) and int(value.get("schema_version", 0)) > SNAPSHOT_SCHEMA
    except (ValueError, TypeError, RecursionError):
        raise DamagedSnapshot(f"{key} is no JSON", key=key) from None
    if newer:
        raise NewerSnapshot(f"{key} was written by a newer version of the zoo", hint="upgrade modelzoo", key=key)
    try:
        snapshot = _Snapshot.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole"
        raise DamagedSnapshot(f"{key} is no readable snapshot: {where}: {first['msg']}", key=key) from None
    found = _digest(value["state"])
    if found != snapshot.digest:
        raise DamagedSnapshot(f"{key}: its state has the digest {found}, it says {snapshot.digest}", key=key)
    state = snapshot.state
    return ModelState(
        name=state.name,
        seq=state.seq,
        head=state.head,
        versions=tuple(
            VersionEntry(number=number, digest=v.digest, created=_utc(v.created), archived=v.archived)
            for number, v in enumerate(state.versions, start=state.purged + 1)
        ),
        aliases=MappingProxyType(dict(state.aliases)),
        cards=tuple(CardEntry(seq=card.seq, digest=card.digest, time=_utc(card.time)) for card in state.cards),
        deleted=None if state.deleted is None else _utc(state.deleted),
        purged=state.purged,
    )


def _digest(state: Any) -> str:
    return "sha256:" + hashlib.sha256(canonical_json(state)).hexdigest()


def _utc(time: datetime) -> datetime:
    return time.astimezone(UTC)
