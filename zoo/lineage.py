"""Lineage as a tree: where a version came from, up to the root, and every version that came from it.

Takes a reference. Gives a Family. Next: `zoo.cli.lineage`, which prints it.

Parents are what the manifests say (`lineage.parent`), so up costs a read a generation; down goes by the search index.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from zoo.catalog import Catalog, ModelVersion
from zoo.describe import describe
from zoo.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound
from zoo.search.index import CatalogIndex

MAX_DEPTH = 100  # generations, up or down
MAX_DESCENDANTS = 1000


class InvalidDepth(InvalidArgument):
    """A depth of no generation, or of more than there may be."""


@dataclass(frozen=True, kw_only=True)
class Descendant:
    version: ModelVersion
    descendants: tuple[Descendant, ...]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """Where the tree goes on and isn't followed, or can't be."""

    reference: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Family:
    version: ModelVersion
    ancestors: tuple[ModelVersion, ...]  # nearest first
    missing: str | None  # the ancestor that is named and can't be read: not there, deleted or damaged
    descendants: tuple[Descendant, ...]  # of the version; by name and version
    cuts: tuple[Cut, ...]

    def to_json(self) -> dict[str, Any]:
        """`children` and `missing_parent` are the older names of the first generation and of `missing_ancestor`."""
        return _facts(self.version) | {
            "ancestors": [_facts(ancestor) for ancestor in self.ancestors],
            "missing_ancestor": self.missing,
            "missing_parent": self.missing,
            "children": [_facts(child.version) for child in self.descendants],
            "descendants": [_tree(child) for child in self.descendants],
            "cuts": [{"reference": cut.reference, "reason": cut.reason} for cut in self.cuts],
        }


def family(catalog: Catalog, index: CatalogIndex, reference: str, *, depth: int = MAX_DEPTH) -> Family:
    """The tree around a version, at most `depth` generations up and down and 1,000 descendants; what is cut is said.

    Cycles, which only manifests made by hand can have, are cut. Raises InvalidDepth, and as `Catalog.get` for
    `reference` itself only.
    """
    if not 1 <= depth <= MAX_DEPTH:
        raise InvalidDepth(f"a depth of {depth} generations, expected 1 to {MAX_DEPTH}")
    version = catalog.get(reference)
    cuts: list[Cut] = []
    ancestors, missing = _ancestors(catalog, version, depth, cuts)
    index.catch_up()
    seen = {version.reference}  # not the ancestors: a version that a cycle leads to twice shows where it closes
    descendants = _Descent(index, seen, cuts).below(version.reference, depth)
    return Family(
        version=version, ancestors=tuple(ancestors), missing=missing, descendants=descendants, cuts=tuple(cuts)
    )


def _ancestors(
    catalog: Catalog, version: ModelVersion, depth: int, cuts: list[Cut]
) -> tuple[list[ModelVersion], str | None]:
    found: list[ModelVersion] = []
    seen = {version.reference}
    while parent := version.manifest.lineage.parent:
        if len(found) == depth:
            cuts.append(Cut(reference=parent, reason=f"more than {depth} generations up"))
            break
        try:
            version = catalog.get(parent)
        except (NotFound, FailedPrecondition, DataLoss, InvalidArgument) as error:
            cuts.append(Cut(reference=parent, reason=error.message))
            return found, parent
        if version.reference in seen:
            cuts.append(Cut(reference=version.reference, reason="its own ancestor: the circle is cut here"))
            break
        seen.add(version.reference)
        found.append(version)
    return found, None


class _Descent:
    """Everything below a version, each once."""

    def __init__(self, index: CatalogIndex, seen: set[str], cuts: list[Cut]) -> None:
        self._index = index
        self._seen = seen
        self._cuts = cuts
        self._count = 0

    def below(self, reference: str, depth: int) -> tuple[Descendant, ...]:
        rows = self._index.children(reference)
        if rows and depth == 0:
            self._cut(reference, "its descendants are beyond the depth asked for")
            return ()
        found = []
        for row in rows:
            if row.reference in self._seen:
                self._cut(row.reference, "its own ancestor: the circle is cut here")
                continue
            if self._count == MAX_DESCENDANTS:
                self._cut(reference, f"more than {MAX_DESCENDANTS} descendants: the rest is left out")
                break
            self._seen.add(row.reference)
            self._count += 1
            try:
                version = self._index.load(row)
            except (DataLoss, FailedPrecondition) as error:
                self._cut(row.reference, error.message)
                continue
            found.append(Descendant(version=version, descendants=self.below(row.reference, depth - 1)))
        return tuple(found)

    def _cut(self, reference: str, reason: str) -> None:
        self._cuts.append(Cut(reference=reference, reason=reason))


def lines(tree: Family) -> Iterator[tuple[str, ModelVersion | None]]:
    """The tree from its root down, a version a line: what stands before it (`├─ `), and it; None: what is missing."""
    path: list[ModelVersion | None] = [*reversed(tree.ancestors), tree.version]
    if tree.missing:
        path.insert(0, None)
    for level, version in enumerate(path):
        yield ("   " * (level - 1) + "└─ " if level else ""), version
    yield from _branches(tree.descendants, "   " * (len(path) - 1))


def _branches(descendants: tuple[Descendant, ...], before: str) -> Iterator[tuple[str, ModelVersion]]:
    for child in descendants:
        last = child is descendants[-1]
        yield before + ("└─ " if last else "├─ "), child.version
        yield from _branches(child.descendants, before + ("   " if last else "│  "))


def _tree(node: Descendant) -> dict[str, Any]:
    return _facts(node.version) | {"descendants": [_tree(child) for child in node.descendants]}


def _facts(version: ModelVersion) -> dict[str, Any]:
    model = describe(version)
    return {key: model[key] for key in ("reference", "digest", "architecture", "lineage", "created")}
