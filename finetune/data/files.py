"""Reading image files and caption files from a disk, for every source that lies there."""

from __future__ import annotations

from pathlib import Path

from finetune.data.image_header import UnreadableImage
from zoo.errors import InvalidArgument, NotFound, PermissionDenied


class NoData(NotFound):
    """A DATA location that holds nothing of its kind; the message says what was looked for."""


class MalformedData(InvalidArgument):
    """A caption or label file that cannot be read; the message names file and line."""


def existing_folder(kind: str, location: str) -> Path:
    """The absolute path of a data folder. Raises NoData."""
    if not location:
        raise NoData(f"{kind}: needs a folder, as in {kind}:PATH")
    root = Path(location).expanduser().resolve()
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise NoData(f"{kind}:{location}: looked for a folder at {root}; it {what}")
    return root


def read_image(path: Path, identity: str) -> bytes:
    """The bytes of one image file. Raises UnreadableImage naming the example, e.g. when the file has gone."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImage(
            f"cannot read image {identity!r}: {error.strerror or error}", cause="unreadable"
        ) from None


def utf8_lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file, cut at `\\n` and `\\r\\n` only.

    Not str.splitlines, nor text mode: both also cut at `\\r`, U+2028 and others that occur inside captions, and every
    following line would then belong to the wrong image. Raises MalformedData naming the line that is not UTF-8.
    """
    try:
        data = path.read_bytes()
    except PermissionError:
        raise PermissionDenied(f"{path} may not be read by this user") from None
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    texts = []
    for number, line in enumerate(lines, start=1):
        try:
            texts.append(line.removesuffix(b"\r").decode())
        except UnicodeDecodeError as error:
            raise MalformedData(
                f"{path}, line {number}: not UTF-8 (byte {line[error.start]:#04x} at column {error.start + 1})",
                hint="convert the file, e.g. iconv -f latin1 -t utf-8",
            ) from None
    return texts
