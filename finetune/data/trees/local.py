"""A FileTree on a disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from finetune.data.source import BadRecord
from finetune.data.trees.ranges import FileRanges, Ranges
from finetune.data.trees.tree import NoData, Walk, hidden, unreadable
from zoo.errors import PermissionDenied


@dataclass(frozen=True)
class LocalTree:
    root: Path  # absolute

    @property
    def url(self) -> str:
        return str(self.root)

    def walk(self, below: str = "") -> Walk:
        """In order within each folder. Links to folders are followed, except back to one they lie in."""
        top = self.root / below if below else self.root
        prefix = f"{below}/" if below else ""
        return Walk(lambda walk: self._names(walk, top, prefix, frozenset()))

    def has(self, name: str) -> bool:
        return (self.root / name).is_file()

    def has_folder(self, name: str) -> bool:
        return (self.root / name).is_dir()

    def read(self, name: str) -> bytes:
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise unreadable(name, error.strerror or error) from None

    def ranges(self, name: str) -> Ranges:
        path = self.root / name
        try:
            return FileRanges(path)
        except PermissionError:
            raise PermissionDenied(f"{path} may not be read by this user") from None
        except OSError as error:
            raise NoData(f"{path} cannot be read: {error.strerror or error}") from None

    def read_index(self, name: str) -> bytes:
        path = self.root / name
        try:
            return path.read_bytes()
        except PermissionError:
            raise PermissionDenied(f"{path} may not be read by this user") from None
        except OSError as error:
            raise NoData(f"{path} cannot be read: {error.strerror or error}") from None

    def _names(self, walk: Walk, folder: Path, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
        here = _identity(folder)
        if here in above:
            walk.loops.append(prefix)
            return
        found = False
        for entry in self._entries(walk, folder, prefix):
            name = prefix + entry.name
            if entry.is_dir():
                for below in self._names(walk, Path(entry.path), f"{name}/", above | {here}):
                    found = True
                    yield below
            elif entry.is_file():
                found = True
                yield name
            else:
                walk.bad.append(BadRecord(id=name, reason="a link to nothing, or no ordinary file"))
        if not found:
            walk.empty.append(prefix)

    def _entries(self, walk: Walk, folder: Path, prefix: str) -> Iterator[os.DirEntry[str]]:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            if hidden(entry.name):
                walk.hidden += 1
            elif not entry.name.isprintable() and _undecodable(entry.name):
                readable = (prefix + entry.name).encode("utf-8", "backslashreplace").decode()
                walk.bad.append(BadRecord(id=readable, reason="the file name is not UTF-8"))
            else:
                yield entry


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _undecodable(name: str) -> bool:
    """Whether the name holds bytes that are not UTF-8 (kept by Python as lone surrogates)."""
    return any("\ud800" <= letter <= "\udfff" for letter in name)
