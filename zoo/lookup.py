"""What to say when a reference means nothing: what there is instead, and the next command to try."""

from __future__ import annotations

import difflib

from zoo.errors import FailedPrecondition, NotFound
from zoo.log import ModelState
from zoo.names import Reference

_SOME = 10  # names or versions that a message lists


class UnknownModel(NotFound):
    """No model of that name has a version."""


class UnknownVersion(NotFound):
    """The model is there, that version, alias or digest of it isn't."""


class DeletedModel(FailedPrecondition):
    """The model was deleted; its name and versions are kept until it is undeleted or collected."""


def refuse_deleted(state: ModelState) -> None:
    if state.deleted:
        raise DeletedModel(f"model {state.name!r} was deleted", hint=f"zoo undelete {state.name}", name=state.name)


def no_such_model(name: str, known: list[str], url: str) -> UnknownModel:
    """`known`: the other models."""
    if not known:
        what = f"the catalogue at {url} is empty"
        return UnknownModel(f"unknown model {name!r}: {what}", hint="zoo import KIND SOURCE NAME", name=name)
    folded = {other.lower(): other for other in known}
    near = [folded[match] for match in difflib.get_close_matches(name.lower(), folded, n=3)]
    near += [other for other in known if name.lower() in other.lower() and other not in near][: 3 - len(near)]
    what = f"did you mean {' or '.join(near)}?" if near else f"the catalogue at {url} has {_some(known)}"
    return UnknownModel(f"unknown model {name!r}: {what}", hint="zoo list", name=name)


def no_such_version(reference: Reference, state: ModelState) -> UnknownVersion:
    last = len(state.versions)
    versions = "version 1" if last == 1 else f"versions 1 to {last}"
    aliases = ", ".join(f"{alias} (= {number})" for alias, number in sorted(state.aliases.items()))
    return UnknownVersion(
        f"unknown reference {str(reference)!r}: model {state.name!r} has {versions} "
        f"and {'the aliases ' + aliases if aliases else 'no alias'}",
        hint=f"zoo history {state.name}",
        reference=str(reference),
    )


def _some(names: list[str]) -> str:
    rest = f" and {len(names) - _SOME} more" if len(names) > _SOME else ""
    return ", ".join(names[:_SOME]) + rest
