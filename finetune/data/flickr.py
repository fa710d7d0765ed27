"""`flickr:PATH`: a folder of photos with several captions each, as Flickr8k and its kin are handed round.

Takes a folder with `captions.txt` (CSV: image,caption), `Flickr8k.token.txt` or `results_20130124.token` (name.jpg#0,
tab, caption) or `results.csv` (name.jpg| 0| caption), and the photos in `images/`, `Images/` or one of the older names.
Gives Examples and bytes. Next: `finetune.data.splits`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from finetune.data.example_table import ExampleTable
from finetune.data.source import BadRecord, Example
from finetune.data.trees import open_tree
from finetune.data.trees.tree import FileTree, MalformedData, NoData, utf8_lines
from finetune.text.tokenizer import tokenize

CAPTION_FILES = ("captions.txt", "Flickr8k.token.txt", "results_20130124.token", "results.csv")  # 8k, 8k, 30k, 30k
IMAGE_FOLDERS = (
    "images",
    "Images",
    "Flicker8k_Dataset",  # no slip: as its authors named it
    "Flickr8k_Dataset",
    "flickr30k-images",
    "flickr30k_images",
)
_TOKEN_LINE = re.compile(r"(?P<image>[^\t]+)#\d+\t(?P<caption>.*)\Z", re.DOTALL)
_BAR_HEADER = re.compile(r"image_name *\| *comment_number *\| *comment *\Z")
_BAR_LINE = re.compile(r"(?P<image>[^|]+?) *\| *\d+ *\| *(?P<caption>.*)\Z", re.DOTALL)
_RECORD = re.compile(r"[^,\"]+\.(?:jpe?g|png|gif|bmp|webp),", re.IGNORECASE)
_MAX_LINES = 50  # in one caption; bounds the search for a closing quote
_QUOTED = re.compile(r'"(?P<text>(?:[^"]|"")*)"[ \t]*\Z', re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class FlickrSource:
    """An ExampleSource. Ids are the photos' file names; `notes` says what was left aside without being bad."""

    location: str
    tree: FileTree
    folder: str  # of the photos, in the tree
    examples: Sequence[Example]
    bad_records: Sequence[BadRecord]
    notes: tuple[str, ...] = ()
    classes: tuple[str, ...] | None = None

    @classmethod
    def open(cls, location: str) -> FlickrSource:
        """Reads the captions and lists the photos; no photo is opened.

        Raises NoData: no such folder, caption file or image folder; MalformedData: a line that is not UTF-8, a header
        other than `image,caption`.
        """
        tree = open_tree("flickr", location)
        file = _first(tree, CAPTION_FILES, "caption file", tree.has)
        folder = _first(tree, IMAGE_FOLDERS, "image folder", tree.has_folder)
        walk = tree.walk(folder)
        below = (name.removeprefix(f"{folder}/") for name in walk)
        names = {name for name in below if "/" not in name}
        bad: list[BadRecord] = []
        captions, wordless = _collect(_records(tree, file, bad), file, names, bad)
        mentioned = captions.keys() | wordless | {record.id for record in bad}
        bad += [BadRecord(id=name, reason=f"no caption in {file}") for name in sorted(names - mentioned)]
        return cls(
            location=f"flickr:{tree.url}",
            tree=tree,
            folder=folder,
            examples=ExampleTable(Example(id=name, captions=tuple(captions[name])) for name in sorted(captions)),
            bad_records=tuple(bad),
            notes=(f"{walk.hidden} hidden files in {folder}/ ignored",) if walk.hidden else (),
        )

    def read(self, index: int) -> bytes:
        name = self.examples[index].id
        return self.tree.read(f"{self.folder}/{name}")


def _first(tree: FileTree, names: Sequence[str], what: str, fits: Callable[[str], bool]) -> str:
    for name in names:
        if fits(name):
            return name
    raise NoData(f"flickr:{tree.url}: no {what}; looked for {', '.join(names)}")


@dataclass(frozen=True, kw_only=True)
class _Record:
    line: int
    image: str
    caption: str


def _records(tree: FileTree, file: str, bad: list[BadRecord]) -> list[_Record]:
    where = f"{tree.url}/{file}"
    lines = utf8_lines(tree.read_index(file), where)
    first = next((line for line in lines if line.strip()), "")
    if _TOKEN_LINE.match(first):
        return _token_records(file, lines, bad)
    if _BAR_HEADER.match(first):
        return _bar_records(file, lines, bad)
    if first.strip().lower().replace(" ", "") not in ("image,caption", '"image","caption"') and not _RECORD.match(
        first
    ):
        raise MalformedData(
            f"{where}, line 1: expected the header 'image,caption' or lines 'name.jpg#0<tab>caption', "
            f"got {first[:80]!r}"
        )
    return _csv_records(file, lines, bad)


def _token_records(file: str, lines: Sequence[str], bad: list[BadRecord]) -> list[_Record]:
    records = []
    for number, line in enumerate(lines, start=1):
        match = _TOKEN_LINE.match(line)
        if match:
            records.append(_Record(line=number, image=match["image"], caption=match["caption"]))
        elif line.strip():
            bad.append(BadRecord(id=f"{file}:{number}", reason=f"expected name.jpg#0<tab>caption, got {line[:80]!r}"))
    return records


def _bar_records(file: str, lines: Sequence[str], bad: list[BadRecord]) -> list[_Record]:
    """Flickr30k's results.csv. One of its lines has lost the bar before the caption; it is reported."""
    records = []
    for number, line in enumerate(lines[1:], start=2):
        match = _BAR_LINE.match(line)
        if match:
            records.append(_Record(line=number, image=match["image"], caption=match["caption"]))
        elif line.strip():
            bad.append(BadRecord(id=f"{file}:{number}", reason=f"expected name.jpg| 0| caption, got {line[:80]!r}"))
    return records


def _csv_records(file: str, lines: Sequence[str], bad: list[BadRecord]) -> list[_Record]:
    """CSV as it is met: captions with commas and quotes in quotes, or without. Python's csv module is not used: it
    refuses a bare `\\r` in a field, and after one quote that is never closed it swallows the records that follow."""
    records = []
    number = 0 if _RECORD.match(next((line for line in lines if line.strip()), "")) else 1
    while number < len(lines):
        start, line = number + 1, lines[number]
        number += 1
        if not line.strip():
            continue
        image, comma, caption = _image_field(line)
        if not comma:
            bad.append(BadRecord(id=f"{file}:{start}", reason=f"expected image,caption, got {line[:80]!r}"))
            continue
        if caption.startswith('"'):
            whole, taken = _quoted(caption, lines, number)
            if whole is None:
                bad.append(BadRecord(id=image, reason=f"{file}, line {start}: a quote is opened and never closed"))
                continue
            caption, number = whole, number + taken
        records.append(_Record(line=start, image=image, caption=caption))
    return records


def _image_field(line: str) -> tuple[str, str, str]:
    if line.startswith('"'):
        image, quote, rest = line[1:].partition('"')
        return (image, ",", rest[1:]) if quote and rest.startswith(",") else (line, "", "")
    image, comma, caption = line.partition(",")
    return image.strip(), comma, caption


def _quoted(caption: str, lines: Sequence[str], after: int) -> tuple[str | None, int]:
    """The text of a quoted caption, and how many lines after its own it takes (a caption may hold line ends)."""
    whole = caption
    for taken in range(min(len(lines) - after, _MAX_LINES) + 1):
        match = _QUOTED.match(whole)
        if match:
            return match["text"].replace('""', '"'), taken
        if whole.count('"') % 2 == 0:
            return whole, taken  # quotes inside, none around: the caption as it stands
        if after + taken == len(lines) or _RECORD.match(lines[after + taken]):
            return None, 0
        whole += "\n" + lines[after + taken]
    return None, 0


def _collect(
    records: Sequence[_Record], file: str, names: set[str], bad: list[BadRecord]
) -> tuple[dict[str, list[str]], set[str]]:
    """Captions by photo, in the file's order, and the photos with a caption that says nothing.

    What cannot be used goes to `bad`: a missing photo once, a caption without words by its line, so that the photo
    keeps its other captions.
    """
    composed = {unicodedata.normalize("NFC", name): name for name in names}  # macOS archives decompose accents
    captions: dict[str, list[str]] = {}
    missing: dict[str, list[int]] = {}
    wordless: set[str] = set()
    for record in records:
        name = record.image if record.image in names else composed.get(unicodedata.normalize("NFC", record.image))
        if name is None:
            missing.setdefault(record.image, []).append(record.line)
        elif not tokenize(record.caption):
            what = "has no word" if record.caption.strip() else "is empty"
            bad.append(BadRecord(id=f"{file}:{record.line}", reason=f"the caption of {name} {what}"))
            wordless.add(name)
        else:
            captions.setdefault(name, []).append(record.caption.strip(" \t"))
    bad += [BadRecord(id=image, reason=f"the image is missing; {_lines(at)}") for image, at in missing.items()]
    return captions, wordless


def _lines(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"line {numbers[0]} describes it"
    return f"line {numbers[0]} and {len(numbers) - 1} more describe it"
