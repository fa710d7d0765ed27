"""`folder:PATH`: a folder per class, images anywhere below it.

Takes a folder of class folders. Gives labelled Examples and bytes. Next: `finetune.data.splits`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.data.files import NoData, existing_folder, read_image
from finetune.data.source import BadRecord, Example

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp"}


@dataclass(frozen=True, kw_only=True)
class FolderSource:
    """An ExampleSource. A class is named exactly as its folder; ids are `class/…/file` with `/`.

    Every file below a class folder counts as an image, whatever its name ends in: content is sniffed when it is read.
    `notes` says what was left aside without being a bad record.
    """

    location: str
    folder: Path
    examples: Sequence[Example]
    bad_records: Sequence[BadRecord]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def open(cls, location: str) -> FolderSource:
        """Lists the files, opens none. Raises NoData: no such folder, no class folder, no image in any."""
        root = existing_folder("folder", location)
        walk = _Walk(root=root)
        labelled = walk.classes()
        if not labelled:
            raise NoData(f"folder:{root}: looked for a folder per class; there is none in it")
        examples = [Example(id=identity, label=label) for label, files in labelled.items() for identity in files]
        if not examples:
            raise NoData(f"folder:{root}: its {len(labelled)} class folders hold no files")
        return cls(
            location=f"folder:{root}",
            folder=root,
            examples=tuple(sorted(examples, key=lambda example: example.id)),
            bad_records=tuple(walk.bad),
            classes=tuple(sorted(label for label, files in labelled.items() if files)),
            notes=tuple(walk.notes()),
        )

    def read(self, index: int) -> bytes:
        identity = self.examples[index].id
        return read_image(self.folder / identity, identity)


class _Walk:
    """One listing of the tree, and what it met besides images."""

    def __init__(self, *, root: Path) -> None:
        self.root = root
        self.bad: list[BadRecord] = []
        self.hidden = 0
        self.beside: list[str] = []
        self.loops: list[str] = []

    def classes(self) -> dict[str, list[str]]:
        labelled: dict[str, list[str]] = {}
        above = frozenset({_identity(self.root)})
        for entry in self._entries(self.root, ""):
            if entry.is_dir():
                files = list(self._files(Path(entry.path), f"{entry.name}/", above))
                labelled[entry.name] = files
                if not files:
                    self.bad.append(BadRecord(id=f"{entry.name}/", reason="the class folder holds no files"))
            elif Path(entry.name).suffix.lower() in _IMAGE_SUFFIXES:
                self.bad.append(BadRecord(id=entry.name, reason="the image lies in no class folder"))
            else:
                self.beside.append(entry.name)
        return labelled

    def _files(self, folder: Path, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[str]:
        """Ids of the files below `folder`. Links to folders are followed, except back to one it lies in."""
        here = _identity(folder)
        if here in above:
            self.loops.append(prefix)
            return
        for entry in self._entries(folder, prefix):
            if entry.is_dir():
                yield from self._files(Path(entry.path), f"{prefix}{entry.name}/", above | {here})
            elif entry.is_file():
                yield f"{prefix}{entry.name}"
            else:
                self.bad.append(BadRecord(id=f"{prefix}{entry.name}", reason="a link to nothing, or no ordinary file"))

    def _entries(self, folder: Path, prefix: str) -> Iterator[os.DirEntry[str]]:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            if entry.name.startswith("."):
                self.hidden += 1
            elif not entry.name.isprintable() and _undecodable(entry.name):
                readable = (prefix + entry.name).encode("utf-8", "backslashreplace").decode()
                self.bad.append(BadRecord(id=readable, reason="the file name is not UTF-8"))
            else:
                yield entry

    def notes(self) -> Iterator[str]:
        if self.hidden:
            yield f"{self.hidden} hidden files and folders ignored"
        if self.beside:
            yield f"{len(self.beside)} files beside the class folders ignored: {', '.join(self.beside[:5])}"
        for loop in self.loops:
            yield f"{loop} links back to a folder it lies in; not followed"


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _undecodable(name: str) -> bool:
    """Whether the name holds bytes that are not UTF-8 (kept by Python as lone surrogates)."""
    return any("\ud800" <= letter <= "\udfff" for letter in name)
