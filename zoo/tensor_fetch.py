"""Some tensors of a version alone: of a remote store, only the header and the chunks that hold them are fetched.

Takes a ModelVersion and names. Gives NumPy arrays. Next: `zoo.pull` writes them.

Two steps, so that what will be fetched is known before it is: `chosen_tensors` reads the headers, `fetch` the values.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from zoo.byte_count import ByteCount, OnBytes, nobody_listens
from zoo.catalog import Catalog, ModelVersion
from zoo.file_hash import CHUNK_BYTES
from zoo.tensor_header import LENGTH_BYTES, TensorPlace, header_length, parse_header
from zoo.tensors import UnknownTensor

_WILD = frozenset("*?[")
_NEAR = 3  # names that an error proposes


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Tensors of one component, by their places."""

    component: str
    size: int  # of the component, bytes
    places: tuple[TensorPlace, ...]

    @property
    def bytes(self) -> int:
        """What will be read: the chunks that hold the tensors."""
        return sum(min(last, self.size) - first for first, last in (_covered(run) for run in _runs(self.places)))


def chosen_tensors(
    catalog: Catalog, version: ModelVersion, patterns: Sequence[str], *, component: str | None = None
) -> list[Chosen]:
    """What `patterns` name, a Chosen for each component that has any.

    A pattern is a tensor's name, or has `*`, `?` or `[…]` in it; either may begin with the component's:
    `head/output/kernel`, `backbone/Mixed_7*`. `component`: only of this one.
    Raises UnknownTensor (near names are proposed), UnknownComponent, CorruptBlob, DamagedTensors, UnstorableTensor.
    """
    sizes: dict[str, int] = {each.name: each.bytes for each in version.manifest.components}
    names = [component] if component else list(sizes)
    places = {name: _places(catalog, version, name) for name in names}
    found: dict[str, set[str]] = {name: set() for name in names}
    for pattern in patterns:
        matched = False
        for name in names:
            of_this = _matching(pattern, name, places[name])
            found[name] |= of_this
            matched = matched or bool(of_this)
        if not matched:
            known = [f"{name}/{tensor}" for name in names for tensor in places[name]]
            raise _unknown(pattern, known, version)
    return [
        Chosen(
            component=name,
            size=sizes[name],
            places=tuple(sorted((places[name][tensor] for tensor in found[name]), key=lambda place: place.start)),
        )
        for name in names
        if found[name]
    ]


def fetch(
    catalog: Catalog, version: ModelVersion, chosen: Chosen, *, on_bytes: OnBytes = nobody_listens
) -> dict[str, np.ndarray]:
    """Name → value, verified; not to be written to. `on_bytes` is called with counts that add up to `chosen.bytes`.

    Takes as much memory as the chunks that hold the tensors. Raises CorruptBlob and the errors of the store.
    """
    values: dict[str, np.ndarray] = {}
    for run in _runs(chosen.places):
        start, end = run[0].start, run[-1].end
        first, last = _covered(run)
        share = ByteCount(min(last, chosen.size) - first, on_bytes)
        data = b""
        if start < end:  # tensors without values have a place, and no bytes there
            data = catalog.read_component(version, chosen.component, start, end - start, on_bytes=share.add)
        share.complete()
        values |= {place.info.name: place.value(data, start) for place in run}
    return dict(sorted(values.items()))


def _places(catalog: Catalog, version: ModelVersion, component: str) -> dict[str, TensorPlace]:
    part = version.manifest.component(component)
    size, where = part.bytes if part else 0, f"component {component} of {version.reference}"
    # One chunk is the least that can be verified; most headers lie in the first.
    first = catalog.read_component(version, component, 0, min(size, CHUNK_BYTES))
    end = LENGTH_BYTES + header_length(first, size, where)
    if end > len(first):
        first = catalog.read_component(version, component, 0, end)
    return parse_header(first[LENGTH_BYTES:end], size, where)


def _matching(pattern: str, component: str, places: dict[str, TensorPlace]) -> set[str]:
    inner = pattern.removeprefix(f"{component}/")
    exact = {name for name in (pattern, inner) if name in places}
    if exact or not _WILD & set(pattern):
        return exact
    return {n for n in places if fnmatchcase(n, pattern) or fnmatchcase(f"{component}/{n}", pattern)}


def _runs(places: Sequence[TensorPlace]) -> Iterator[list[TensorPlace]]:
    """Tensors that lie in the same or in neighbouring chunks, so that no chunk is read, or hashed, twice."""
    run: list[TensorPlace] = []
    for place in places:
        if run and place.start // CHUNK_BYTES > (run[-1].end - 1) // CHUNK_BYTES + 1:
            yield run
            run = []
        run.append(place)
    if run:
        yield run


def _covered(run: Sequence[TensorPlace]) -> tuple[int, int]:
    """From where to where the chunks reach that hold the run; the last may end with the file."""
    start, end = run[0].start, run[-1].end
    if start == end:
        return start, end
    return start // CHUNK_BYTES * CHUNK_BYTES, -(-end // CHUNK_BYTES) * CHUNK_BYTES


def _unknown(pattern: str, known: Sequence[str], version: ModelVersion) -> UnknownTensor:
    lower = {name.lower(): name for name in known}
    short = {name.partition("/")[2].lower(): name for name in known}
    near = [(lower | short)[match] for match in difflib.get_close_matches(pattern.lower(), [*lower, *short], n=_NEAR)]
    near += [name for name in known if pattern.lower() in name.lower()]
    some = list(dict.fromkeys(near))[:_NEAR] or list(known)[:_NEAR]
    says = "did you mean" if near else f"it has {len(known)}, such as"
    return UnknownTensor(
        f"{version.reference} has no tensor {pattern!r}: {says} {', '.join(some) or 'none'}",
        hint=f"zoo pull {version.reference} DIR --tensor '{some[0] if some else '*'}'",
        tensor=pattern,
    )
