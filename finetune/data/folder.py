"""`folder:PATH`: a folder per class, images anywhere below it.

Takes a folder of class folders. Gives labelled Examples and bytes. Next: `finetune.data.splits`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from finetune.data.example_table import ExampleTable
from finetune.data.source import BadRecord, Example
from finetune.data.trees import open_tree
from finetune.data.trees.tree import FileTree, NoData, Walk

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp", ".webp"}


@dataclass(frozen=True, kw_only=True)
class FolderSource:
    """An ExampleSource. A class is named exactly as its folder; ids are `class/…/file` with `/`.

    Every file below a class folder counts as an image, whatever its name ends in: content is sniffed when it is read.
    `notes` says what was left aside without being a bad record.
    """

    location: str
    tree: FileTree
    examples: Sequence[Example]
    bad_records: Sequence[BadRecord]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def open(cls, location: str) -> FolderSource:
        """Lists the files, opens none. Raises NoData: no such folder, no class folder, no image in any; MalformedData:
        a damaged archive; the store's errors."""
        tree = open_tree("folder", location)
        walk = tree.walk()
        beside: list[str] = []
        classes: set[str] = set()
        examples = ExampleTable(_labelled(walk, classes, beside))
        empty = sorted(name.rstrip("/") for name in walk.empty if name.count("/") == 1)
        if not classes and not empty:
            raise NoData(f"folder:{tree.url}: looked for a folder per class; there is none in it")
        if not examples:
            raise NoData(f"folder:{tree.url}: its {len(empty)} class folders hold no files")
        bad = [BadRecord(id=f"{name}/", reason="the class folder holds no files") for name in empty]
        images = [name for name in beside if PurePosixPath(name).suffix.lower() in _IMAGE_SUFFIXES]
        bad += [BadRecord(id=name, reason="the image lies in no class folder") for name in images]
        others = sorted(set(beside) - set(images))
        notes = [*walk.notes()]
        if others:
            notes.append(f"{len(others)} files beside the class folders ignored: {', '.join(others[:5])}")
        return cls(
            location=f"folder:{tree.url}",
            tree=tree,
            examples=examples,
            bad_records=tuple(sorted([*bad, *walk.bad], key=lambda record: record.id)),
            classes=tuple(sorted(classes)),
            notes=tuple(notes),
        )

    def read(self, index: int) -> bytes:
        return self.tree.read(self.examples[index].id)


def _labelled(walk: Walk, classes: set[str], beside: list[str]) -> Iterator[Example]:
    for name in walk:
        label, slash, _ = name.partition("/")
        if slash:
            classes.add(label)
            yield Example(id=name, label=label)
        else:
            beside.append(name)
