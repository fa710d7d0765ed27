"""The door to HDF5 for Keras' files: groups, lists of names and values, and nothing that leads out of the file.

Takes a file. Gives an OpenH5. Next: `zoo.readers.keras_legacy` and `zoo.readers.keras_v3`, which know the layouts.

HDF5 lets a file point at other files, link a group into itself, and claim arrays of which it stores nothing. All three
are refused before a value is read. Against a file made to crash the HDF5 library itself nothing helps but another
process: `zoo.readers.keras_process`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from zoo.readers.checkpoint import DamagedCheckpoint, NotACheckpoint, UnsafeCheckpoint

_FREE_CLAIM = 64 << 20  # bytes that a file may claim whatever its size
_MAX_EXPANSION = 20  # claimed bytes over bytes of the file, above that: floats compress by less
_MAX_GROUPS = 200_000
_MAX_DEPTH = 40


@dataclass(frozen=True, kw_only=True)
class StoredValue:
    """An array in this machine's order of bytes; `type` is what it was on disk, e.g. "bfloat16" of a float32 array."""

    array: np.ndarray
    type: str


@dataclass(frozen=True, kw_only=True)
class ValueGroup:
    """A group of the file that has values itself, or a title.

    Attributes:
        path: names of the groups from the root to it.
        title: its attribute `name`, which Keras writes since 3.6; None where there is none.
        keys: names of the values.
    """

    path: tuple[str, ...]
    title: str | None
    keys: tuple[str, ...]


@dataclass(kw_only=True)
class OpenH5:
    """An open file. `label` names it in messages."""

    label: str
    root: Any
    size: int
    claimed: int = field(default=0)

    def names(self, group: Any, attribute: str) -> list[str]:
        """An attribute that lists names; Keras cuts lists above HDF5's 64 kB into `<attribute>0`, `<attribute>1`, …"""
        keys = [attribute] if attribute in group.attrs else []
        if not keys:
            keys = [f"{attribute}{n}" for n in range(len(group.attrs)) if f"{attribute}{n}" in group.attrs]
        values = [name for key in keys for name in np.ravel(group.attrs[key])]
        return [name.decode() if isinstance(name, bytes) else str(name) for name in values]

    def text(self, group: Any, attribute: str) -> str | None:
        """A text attribute; None where it isn't there or isn't text."""
        value = group.attrs.get(attribute)
        if isinstance(value, bytes):
            return value.decode()
        return value if isinstance(value, str) else None

    def group(self, parent: Any, name: str) -> Any:
        """Raises UnsafeCheckpoint on a link, DamagedCheckpoint where there is no such group."""
        import h5py

        self._refuse_links(parent, name)
        group = parent.get(name)
        if not isinstance(group, h5py.Group):
            raise DamagedCheckpoint(f"{self.label}: group {name!r} is listed and not there")
        return group

    def value(self, parent: Any, name: str) -> StoredValue:
        """Raises UnsafeCheckpoint: bytes in another file, or more claimed than stored; DamagedCheckpoint: not there;
        NotACheckpoint: no numbers."""
        import h5py

        self._refuse_links(parent, name)
        dataset = parent.get(name)
        what = f"{self.label}: weight {name!r}"
        if not isinstance(dataset, h5py.Dataset):
            raise DamagedCheckpoint(f"{what} is listed and not there")
        if dataset.external or dataset.is_virtual:
            raise UnsafeCheckpoint(f"{self.label}: the bytes of weight {name!r} lie in another file")
        # h5py writes ml_dtypes' bfloat16 as two opaque bytes; Keras says beside it what they are.
        brain = dataset.dtype == np.dtype("V2") and dataset.attrs.get("dtype") == "bfloat16"
        if not brain and dataset.dtype.kind not in "fiub":
            raise NotACheckpoint(f"{what} has the type {dataset.dtype}, expected numbers")
        stored = dataset.nbytes if dataset.chunks is None else dataset.id.get_storage_size()
        if dataset.nbytes > max(1 << 20, 1000 * max(stored, 1)):  # never more than compression could give
            raise UnsafeCheckpoint(f"{what} claims {dataset.nbytes} bytes of {stored} stored ones")
        self.claimed += dataset.nbytes
        if self.claimed > max(_FREE_CLAIM, _MAX_EXPANSION * self.size):
            raise UnsafeCheckpoint(f"{self.label}: its weights claim {self.claimed} bytes, the file has {self.size}")
        value = np.asarray(dataset[()])
        if brain:  # the upper half of a float32's bits
            bits = np.frombuffer(value.tobytes(), "<u2").astype(np.uint32) << 16
            return StoredValue(array=bits.view(np.float32).reshape(value.shape), type="bfloat16")
        native = value.astype(value.dtype.newbyteorder("="), copy=False)  # HDF5 keeps either byte order
        return StoredValue(array=native, type=native.dtype.name)

    def value_groups(self) -> Iterator[ValueGroup]:
        """Every group that has values or a title, in the order of the paths' names."""
        import h5py

        todo: list[tuple[tuple[str, ...], Any]] = [((), self.root)]
        seen: set[Any] = set()
        while todo:
            path, group = todo.pop()
            place = h5py.h5o.get_info(group.id)
            if (place.fileno, place.addr) in seen or len(seen) > _MAX_GROUPS or len(path) > _MAX_DEPTH:
                raise UnsafeCheckpoint(f"{self.label}: group {'/'.join(path)!r} is linked twice, or there is no end")
            seen.add((place.fileno, place.addr))
            keys: list[str] = []
            inner: list[tuple[tuple[str, ...], Any]] = []
            for name in group:
                self._refuse_links(group, name)
                kind = group.get(name, getclass=True)
                if kind is h5py.Group:
                    inner.append(((*path, name), group[name]))
                elif kind is h5py.Dataset:
                    keys.append(name)
            todo.extend(reversed(inner))
            title = self.text(group, "name")
            if keys or title is not None:
                yield ValueGroup(path=path, title=title, keys=tuple(keys))

    def _refuse_links(self, parent: Any, name: str) -> None:
        """Raises UnsafeCheckpoint when a step on the way to `name` isn't a plain link."""
        import h5py

        at = parent
        for step in name.split("/"):
            link = at.get(step, getlink=True) if isinstance(at, h5py.Group) and step in at else None
            if link is not None and not isinstance(link, h5py.HardLink):
                raise UnsafeCheckpoint(f"{self.label}: {name!r} is a link to elsewhere, not a weight")
            at = at.get(step) if isinstance(at, h5py.Group) else None
            if at is None:
                return


@contextmanager
def opened_h5(path: Path, label: str) -> Iterator[OpenH5]:
    """Opens `path` for reading. Raises NotACheckpoint, and DamagedCheckpoint for what HDF5 trips over on the way."""
    import h5py

    if not h5py.is_hdf5(path):
        raise NotACheckpoint(f"{label} is not an HDF5 file")
    try:
        with h5py.File(path, "r") as file:
            yield OpenH5(label=label, root=file, size=path.stat().st_size)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, MemoryError, OverflowError) as error:  # h5py's
        raise DamagedCheckpoint(f"{label} cannot be read as HDF5: {error}") from None
