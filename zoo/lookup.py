"""What to say when a reference means nothing: what there is instead, and the next command to try."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from datetime import UTC, datetime

from zoo.errors import FailedPrecondition, NotFound
from zoo.log import UNDELETE_DAYS, ModelState, VersionEntry
from zoo.names import Reference

_SOME = 10  # names or versions that a message lists
_COMPARED = 2_000  # names that are compared letter by letter, which takes some 50 µs each


class UnknownModel(NotFound):
    """No model of that name has a version."""


class UnknownVersion(NotFound):
    """The model is there, that version, alias or digest of it isn't."""


class DeletedModel(FailedPrecondition):
    """The model was deleted; its name and versions are kept until it is undeleted or collected."""


def refuse_deleted(state: ModelState) -> None:
    if state.deleted:
        when, hint = f"on {state.deleted:%Y-%m-%d %H:%M} UTC", f"zoo undelete {state.name}"
        if state.undelete_expired(datetime.now(UTC)):
            when += f", more than {UNDELETE_DAYS} days ago"
            hint = "publish it again: its name is free, its version numbers go on"
        raise DeletedModel(f"model {state.name!r} was deleted {when}", hint=hint, name=state.name)


def meant_entry(state: ModelState, reference: Reference) -> VersionEntry:
    """The version of the model that a reference means. Raises UnknownVersion."""
    entry: VersionEntry | None = state.newest
    if reference.version is not None:
        entry = state.version(reference.version)
    elif reference.alias is not None:
        entry = state.version(state.aliases.get(reference.alias, 0))
    elif reference.digest is not None:
        entry = next((v for v in reversed(state.versions) if v.digest == reference.digest), None)
    if entry is None:
        raise no_such_version(reference, state)
    return entry


def no_such_model(name: str, known: Sequence[str], url: str) -> UnknownModel:
    """`known`: the other models, sorted."""
    if not known:
        what = f"the catalogue at {url} is empty"
        return UnknownModel(f"unknown model {name!r}: {what}", hint="zoo import KIND SOURCE NAME", name=name)
    lower = name.lower()
    folded = {other.lower(): other for other in known}
    compared = list(folded)
    if len(folded) > _COMPARED:  # those of about that length that begin alike
        compared = [o for o in folded if o[:1] == lower[:1] and abs(len(o) - len(lower)) <= 2][:_COMPARED]
    near = [folded[match] for match in difflib.get_close_matches(lower, compared, n=3)]
    near += [other for other in known if lower in other.lower() and other not in near][: 3 - len(near)]
    what = f"did you mean {' or '.join(near)}?" if near else f"the catalogue at {url} has {_some(known)}"
    return UnknownModel(f"unknown model {name!r}: {what}", hint="zoo list", name=name)


def no_such_version(reference: Reference, state: ModelState) -> UnknownVersion:
    first, last = state.purged + 1, state.last_number
    versions = f"version {last}" if first == last else f"versions {first} to {last}"
    versions = versions if state.versions else "no version"
    aliases = ", ".join(f"{alias} (= {number})" for alias, number in sorted(state.aliases.items()))
    gone = f"; those up to {state.purged} were deleted with an earlier model of that name" if state.purged else ""
    return UnknownVersion(
        f"unknown reference {str(reference)!r}: model {state.name!r} has {versions} "
        f"and {'the aliases ' + aliases if aliases else 'no alias'}{gone}",
        hint=f"zoo history {state.name}",
        reference=str(reference),
    )


def _some(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _SOME} more" if len(names) > _SOME else ""
    return ", ".join(names[:_SOME]) + rest
