"""What each command makes of a model's state: the changes that are committed, and those that are refused.

Takes a ModelState. Gives the Change to commit, or None when nothing needs to change. Next: `zoo.model_logs.commit`,
which asks again with the newer state after each lost race.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from zoo.errors import FailedPrecondition
from zoo.log import (
    UNDELETE_DAYS,
    AliasSet,
    Archived,
    CardUpdated,
    Change,
    Created,
    Deleted,
    ModelState,
    Unarchived,
    Undeleted,
    VersionEntry,
    VersionPublished,
)
from zoo.lookup import no_such_version, refuse_deleted
from zoo.names import Reference

Decision = Callable[[ModelState], Change | None]


class UndeleteExpired(FailedPrecondition):
    """The model was deleted too long ago."""


def creation(state: ModelState) -> Change | None:
    """The name is taken for a model that isn't there, or no longer."""
    return Created() if state.seq == 0 or state.undelete_expired(datetime.now(UTC)) else None


def publication(
    digest: str, *, again: bool, is_published: Callable[[ModelState], bool] = lambda state: False
) -> Decision:
    """`digest` becomes the next version, unless it is the newest (and not `again`), or it `is_published` for a reason
    of the caller's: that is asked of the very state that the event will follow, so no rival can slip in between."""

    def decide(state: ModelState) -> Change | None:
        refuse_deleted(state)
        if is_published(state):
            return None
        if not again and state.newest and state.newest.digest == digest:
            return None
        return VersionPublished(version=state.last_number + 1, digest=digest)

    return decide


def alias(alias: str, number: int) -> Decision:
    def decide(state: ModelState) -> Change | None:
        refuse_deleted(state)
        _entry(state, number)
        return None if state.aliases.get(alias) == number else AliasSet(alias=alias, version=number)

    return decide


def archiving(number: int, *, undo: bool) -> Decision:
    def decide(state: ModelState) -> Change | None:
        refuse_deleted(state)
        if _entry(state, number).archived is not undo:
            return None
        return Unarchived(version=number) if undo else Archived(version=number)

    return decide


def card(digest: str) -> Decision:
    def decide(state: ModelState) -> Change | None:
        refuse_deleted(state)
        return None if state.card and state.card.digest == digest else CardUpdated(digest=digest)

    return decide


def deletion(state: ModelState) -> Change | None:
    return None if state.deleted else Deleted()


def undeletion(state: ModelState) -> Change | None:
    if state.deleted is None:
        return None
    if state.undelete_expired(datetime.now(UTC)):
        raise UndeleteExpired(
            f"model {state.name!r} was deleted on {state.deleted:%Y-%m-%d %H:%M} UTC, "
            f"more than {UNDELETE_DAYS} days ago",
            hint="publish it again: its name is free, its version numbers go on",
            name=state.name,
        )
    return Undeleted()


def _entry(state: ModelState, number: int) -> VersionEntry:
    entry = state.version(number)
    if entry is None:
        raise no_such_version(Reference(name=state.name, version=number), state)
    return entry
