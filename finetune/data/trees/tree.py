"""FileTree: a folder of files, wherever it lies. Implemented for a disk, an archive and a bucket.

Takes a location. Gives names and bytes. Next: the ExampleSources, which know what the files mean.

A name is the path below the tree's root, with `/`. Hidden files (a leading dot, macOS' `__MACOSX`) don't exist in a
tree; it counts them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from finetune.data.image_header import UnreadableImage
from finetune.data.source import BadRecord
from finetune.data.trees.ranges import Ranges
from zoo.errors import InvalidArgument, NotFound


class NoData(NotFound):
    """A DATA location that holds nothing of its kind; the message says what was looked for."""


class MalformedData(InvalidArgument):
    """A caption, label or archive file that cannot be read; the message names file and line."""


class Walk:
    """The names below a folder, each once, as an iterator; and what was met besides them, whole once that has ended.

    Attributes:
        bad: what looks like a file and can't be one: a link to nothing, a name that isn't UTF-8.
        empty: folders without a file in or below them, with `/` at the end; archives and buckets know few.
        hidden: how many names were passed over. loops: links back to a folder that they lie in.
    """

    def __init__(self, walk: Callable[[Walk], Iterator[str]]) -> None:
        self.bad: list[BadRecord] = []
        self.empty: list[str] = []
        self.hidden = 0
        self.loops: list[str] = []
        self._names = walk(self)

    def __iter__(self) -> Iterator[str]:
        return self._names

    def notes(self) -> Iterator[str]:
        if self.hidden:
            yield f"{self.hidden} hidden files and folders ignored"
        for loop in self.loops:
            yield f"{loop} links back to a folder it lies in; not followed"


class FileTree(Protocol):
    """Safe to read from many threads."""

    @property
    def url(self) -> str:
        """The absolute location, from which `open_tree` makes the same tree."""

    def walk(self, below: str = "") -> Walk:
        """The names below the folder `below`, as the tree's own names; in no promised order."""

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""

    def has_folder(self, name: str) -> bool:
        """Whether there is a file below `name/`, or on a disk such a folder."""

    def read(self, name: str) -> bytes:
        """One file whole. Raises UnreadableImage naming it, e.g. when it has gone."""

    def ranges(self, name: str) -> Ranges:
        """A file to be read in parts. Raises NoData, MalformedData (one that is compressed in an archive), the store's
        errors."""

    def read_index(self, name: str) -> bytes:
        """As `read` for a caption or label file, which no run can do without. Raises NoData, MalformedData,
        PermissionDenied, the store's errors."""


def hidden(name: str) -> bool:
    """Whether a single part of a path is passed over."""
    return name.startswith(".") or name == "__MACOSX"


def unreadable(name: str, reason: object) -> UnreadableImage:
    return UnreadableImage(f"cannot read image {name!r}: {reason}", cause="unreadable")


def utf8_lines(data: bytes, where: str) -> list[str]:
    """The lines of a UTF-8 file, cut at `\\n` and `\\r\\n` only.

    Not str.splitlines, nor text mode: both also cut at `\\r`, U+2028 and others that occur inside captions, and every
    following line would then belong to the wrong image. Raises MalformedData naming the line that is not UTF-8.
    """
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    texts = []
    for number, line in enumerate(lines, start=1):
        try:
            texts.append(line.removesuffix(b"\r").decode())
        except UnicodeDecodeError as error:
            raise MalformedData(
                f"{where}, line {number}: not UTF-8 (byte {line[error.start]:#04x} at column {error.start + 1})",
                hint="convert the file, e.g. iconv -f latin1 -t utf-8",
            ) from None
    return texts
