"""Finds out which network a foreign checkpoint belongs to.

Takes a ForeignCheckpoint, and what the user says of it. Gives the one Match that is meant. Next: `zoo.importer`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from zoo.architectures import ARCHITECTURES, architecture_facts
from zoo.architectures.facts import ArchitectureFacts
from zoo.architectures.matching import Match, match
from zoo.errors import InvalidArgument
from zoo.readers.checkpoint import ForeignCheckpoint

_LISTED = 6  # of some fifty architectures and name maps, in an error message


class UnknownSource(InvalidArgument):
    """A checkpoint that no architecture here, or more than one, has the names of."""


class NothingExcluded(InvalidArgument):
    """An `exclude` entry that no tensor's name begins with."""


def choose(
    checkpoint: ForeignCheckpoint, source: str | Path, architecture: str | None, excluded: Mapping[str, str]
) -> Match:
    """The one architecture and name map that fit; failing that the one that is clearly meant, for its report.

    Raises UnknownSource listing the candidates.
    """
    asked = list(ARCHITECTURES.values()) if architecture is None else [architecture_facts(architecture)]
    matches = [m for facts in asked for m in _matches(checkpoint, facts, excluded)]
    if not matches:
        known = ", ".join(f"{facts.name}: {' '.join(facts.name_maps)}" for facts in asked)
        raise UnknownSource(f"{source}: no name map for files of {'/'.join(checkpoint.frameworks)} names ({known})")
    complete = [found for found in matches if found.report.complete]
    if len(complete) == 1:
        return complete[0]
    matches.sort(key=_closeness, reverse=True)
    rivals = [found for found in matches if found.facts.name != matches[0].facts.name]  # not its own other names
    clearly = not rivals or _closeness(matches[0]) > _closeness(rivals[0])
    if not complete and clearly and matches[0].coverage > (0 if architecture else 0.5):
        return matches[0]
    best = {found.facts.name: found for found in reversed(matches)}  # of each architecture
    candidates = complete or sorted(best.values(), key=_closeness, reverse=True)
    listed = ", ".join(f"{found.label} {found.coverage:.0%} of its names" for found in candidates[:_LISTED])
    if len(candidates) > _LISTED:
        listed += f", and {len(candidates) - _LISTED} others no nearer"
    some = ", ".join(list(checkpoint.tensors)[:3])
    what = "fits several architectures" if complete else "has the names of no architecture here"
    raise UnknownSource(
        f"{source} {what}: {listed}; it holds {len(checkpoint.tensors)} tensors such as {some}",
        hint=_hint(checkpoint, architecture, excluded),
    )


def _hint(checkpoint: ForeignCheckpoint, architecture: str | None, excluded: Mapping[str, str]) -> str:
    """Whose names they are, where the user has named another network."""
    if architecture is not None:
        every = [m for facts in ARCHITECTURES.values() for m in _matches(checkpoint, facts, excluded)]
        meant = max(every, key=_closeness, default=None)
        if meant is not None and meant.coverage > 0.5:
            return f"these are the names of {meant.label}: --architecture {meant.facts.name}"
    return "say which it is with --architecture; see zoo architectures"


def _closeness(found: Match) -> tuple[float, int]:
    """Coverage first; of maps that cover as much (one with gammas and one without) the one with fewer faults."""
    report = found.report
    return found.coverage, -len(report.missing) - len(report.unexplained) - len(report.mismatched)


def excluded_tensors(checkpoint: ForeignCheckpoint, exclude: Iterable[str]) -> dict[str, str]:
    """Stored name → the entry that leaves it out. A scope ends at `/` (TensorFlow's) or `.` (PyTorch's)."""
    excluded: dict[str, str] = {}
    for entry in exclude:
        scope = entry.rstrip("/.")
        hits = [n for n in checkpoint.tensors if n == scope or n.startswith((f"{scope}/", f"{scope}."))]
        if not hits or not scope:
            near = difflib.get_close_matches(scope, _scopes(checkpoint.tensors), n=4, cutoff=0.4)
            meant = f"did you mean {', '.join(near)}?" if near else "no name is like it"
            raise NothingExcluded(f"--exclude {entry!r} matches none of {len(checkpoint.tensors)} tensors; {meant}")
        excluded |= dict.fromkeys(hits, f"excluded by {entry!r}")
    return excluded


def _scopes(names: Iterable[str]) -> list[str]:
    scopes: dict[str, None] = {}
    for name in names:
        scopes |= {name[:place]: None for place, letter in enumerate(name) if letter in "/."} | {name: None}
    return list(scopes)


def _matches(checkpoint: ForeignCheckpoint, facts: ArchitectureFacts, excluded: Mapping[str, str]) -> list[Match]:
    layouts = [layout for layout, each in facts.name_maps.items() if each.framework in checkpoint.frameworks]
    return [match(checkpoint, facts, layout, excluded) for layout in layouts]


def check_epsilon(checkpoint: ForeignCheckpoint, found: Match) -> None:
    """The one constant of the network that a topology may contradict without any shape showing it."""
    wanted = float(str(found.arguments.get("batch_norm_epsilon", found.facts.batch_norm_epsilon)))
    others = sorted(e for e in checkpoint.batch_norm_epsilons if not math.isclose(e, wanted, rel_tol=1e-5))
    if others:
        raise UnknownSource(
            f"the checkpoint's BatchNorm has the epsilon {others[0]:g}, {found.facts.name} has {wanted:g}: "
            "the network that these weights belong to is another one"
        )


def check_types(checkpoint: ForeignCheckpoint, found: Match, source: str | Path) -> None:
    odd = {stored: checkpoint.tensors[stored].dtype for stored in found.targets}
    wrong = [f"{stored} is {dtype}" for stored, dtype in odd.items() if dtype != np.float32]
    if wrong:
        raise UnknownSource(f"{source}: {len(wrong)} weights are no floating-point numbers: {', '.join(wrong[:5])}")
