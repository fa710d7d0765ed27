"""`csv:PATH`: a table with a column `image` (a path beside the file) and `label`, `labels` or `caption`.

Takes a .csv file with commas, UTF-8, a header line. Gives Examples and bytes. Next: `finetune.data.splits`.
`labels` holds class names with `;` between them, and may be empty: an image may show several classes or none. Several
lines of one image add up. Other columns are ignored, and named in `notes`.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finetune.data.example_table import ExampleTable
from finetune.data.listed import Facts, ListedImages, caption_texts, image_name, label_names
from finetune.data.source import BadRecord, Example
from finetune.data.trees import open_beside
from finetune.data.trees.tree import FileTree, MalformedData, utf8_lines

# Column → other names that it is met under.
_COLUMNS = {
    "image": ("image", "filename", "file_name", "file", "path", "image_path"),
    "label": ("label", "class", "class_name"),
    "labels": ("labels", "classes", "tags"),
    "caption": ("caption", "text"),
}


@dataclass(frozen=True, kw_only=True)
class CsvSource:
    """An ExampleSource. Ids are the `image` paths; `notes` says what was left aside without being a bad record."""

    location: str
    tree: FileTree
    examples: Sequence[Example]
    bad_records: Sequence[BadRecord]
    classes: tuple[str, ...] | None
    notes: tuple[str, ...] = ()

    @classmethod
    def open(cls, location: str) -> CsvSource:
        """Reads the file, opens no image. Raises NoData; MalformedData: not UTF-8, or a header without the columns."""
        tree, name = open_beside("csv", location)
        where = f"{tree.url}/{name}"
        lines = utf8_lines(tree.read_index(name), where)
        columns, ignored = _columns(lines[0] if lines else "", where)
        listed, bad = _read(tree, name, lines, columns)
        notes = [f"columns ignored: {', '.join(ignored)}"] if ignored else []
        return cls(
            location=f"csv:{where}",
            tree=tree,
            examples=ExampleTable(listed.examples(None, notes)),
            bad_records=tuple(bad),
            classes=listed.classes,
            notes=tuple(notes),
        )

    def read(self, index: int) -> bytes:
        return self.tree.read(self.examples[index].id)


def _columns(header: str, where: str) -> tuple[dict[str, int], list[str]]:
    """Our column → its place; and the names of the others."""
    names = [name.strip() for name in _fields(header)]
    found: dict[str, int] = {}
    for place, name in enumerate(names):
        ours = next((column for column, known in _COLUMNS.items() if name.lower() in known), None)
        if ours in found:
            raise MalformedData(f"{where}, line 1: two columns mean {ours}: {names[found[ours]]!r} and {name!r}")
        if ours is not None:
            found[ours] = place
    if "image" not in found or len(found) < 2:
        raise MalformedData(
            f"{where}, line 1: expected a header with image and label, labels or caption, got {header[:80]!r}",
            hint="e.g. image,label",
        )
    return found, [name for place, name in enumerate(names) if place not in found.values()]


def _read(
    tree: FileTree, file: str, lines: Sequence[str], columns: Mapping[str, int]
) -> tuple[ListedImages, list[BadRecord]]:
    """A line a record: a quoted field may hold commas, not line ends, or one quote never closed would swallow the
    rest."""
    listed = ListedImages()
    bad: list[BadRecord] = []
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        identity = f"{file}:{number}"
        try:
            fields = _fields(line)
            if len(fields) <= max(columns.values()):
                raise ValueError(f"{len(fields)} fields, expected at least {max(columns.values()) + 1}: {line[:80]!r}")
            identity = image = image_name(fields[columns["image"]].strip())
            facts = _facts({column: fields[place] for column, place in columns.items()})
            if not tree.has(image):
                raise ValueError("the image is missing")
            listed.add(image, facts)
        except (ValueError, csv.Error) as error:
            bad.append(BadRecord(id=identity, reason=f"line {number}: {error}"))
    return listed, bad


def _fields(line: str) -> list[str]:
    return next(csv.reader([line.replace("\r", " ")], strict=True), [])


def _facts(values: Mapping[str, str]) -> Facts:
    facts = Facts()
    if "label" in values:
        if not values["label"].strip():
            raise ValueError("the label is empty")
        facts.label = values["label"].strip()
    if "labels" in values:
        facts.labels = label_names([name.strip() for name in values["labels"].split(";") if name.strip()])
    if "caption" in values:
        facts.captions = caption_texts(values["caption"].strip(" \t"))
    return facts
