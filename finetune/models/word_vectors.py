"""Pretrained word vectors: the text files of word2vec and GloVe, for a captioner's embeddings to begin with.

Takes a file and the vocabulary's words. Gives the vectors of those that the file has. No TensorFlow. Next:
`finetune.models.heads.captioner_layer`.

A line is a word and its numbers, with spaces between; word2vec's files begin with a line `WORDS SIZE`. A word is looked
for as it stands and, where the file hasn't that, in lower case of the file's spelling.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zoo.errors import InvalidArgument, NotFound

WORD_VECTORS = "word_vectors.npy"
WORD_VECTORS_ARGUMENT = "word_vectors"  # of a head: the file's path; a server allows those below its data roots


class NoSuchWordVectors(NotFound):
    """A file of word vectors that can't be opened."""


class InvalidWordVectors(InvalidArgument):
    """A file that holds no word vectors of the size that is wanted."""


@dataclass(frozen=True, kw_only=True)
class WordVectors:
    """`vectors` float32 [W, E], a row a word of the vocabulary, NaN where the file has none."""

    vectors: np.ndarray
    source: str

    @property
    def found(self) -> np.ndarray:
        """bool [W]."""
        return np.asarray(np.isfinite(self.vectors).all(axis=1))

    def summary(self) -> str:
        """For people."""
        found, words = int(self.found.sum()), len(self.vectors)
        rest = f"; the other {words - found} begin at random" if found < words else ""
        return f"word vectors: {found} of {words} words are in {self.source}{rest}"

    def to_bytes(self) -> bytes:
        with io.BytesIO() as out:
            np.save(out, self.vectors, allow_pickle=False)
            return out.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes) -> WordVectors:
        return cls(vectors=np.load(io.BytesIO(data), allow_pickle=False), source=WORD_VECTORS)


def read_word_vectors(path: Path, words: Sequence[str], *, size: int) -> WordVectors:
    """The vectors of `words`, each of `size` values.

    Raises:
        NoSuchWordVectors.
        InvalidWordVectors: another size, a line that is no vector, a number that isn't finite, or no word in common.
    """
    row_of = {word: row for row, word in enumerate(words)}
    vectors = np.full((len(words), size), np.nan, np.float32)
    exact = np.zeros(len(words), bool)
    for number, line in _lines(path):
        word, values = _parted(line, size, path, number)
        if values is None:
            continue
        row = row_of.get(word)
        certain = row is not None
        if row is None:
            row = row_of.get(word.lower())
        if row is None or exact[row] or (not certain and np.isfinite(vectors[row, 0])):
            continue
        vectors[row] = _numbers(values, word, path, number)
        exact[row] = certain
    found = WordVectors(vectors=vectors, source=path.name)
    if not found.found.any():
        raise InvalidWordVectors(f"{path}: none of the vocabulary's {len(words)} words has a vector there")
    return found


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8", errors="replace", newline="\n") as file:
            for number, line in enumerate(file, start=1):
                if text := line.rstrip("\r\n "):
                    yield number, text
    except (OSError, EOFError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise NoSuchWordVectors(f"word vectors {path}: {said}", path=str(path)) from None


def _parted(line: str, size: int, path: Path, number: int) -> tuple[str, list[str] | None]:
    """A word and its numbers as text; no numbers of word2vec's first line. Some words of GloVe's have spaces."""
    word, *values = line.rsplit(" ", size)
    head = line.split()
    longer = number == 1 and " " in word and _is_number(word.rpartition(" ")[2])
    if len(values) == size and word and not longer:
        return word, values
    if number == 1 and len(head) == 2 and all(part.isascii() and part.isdigit() for part in head):
        if int(head[1]) != size:
            raise _of_another_size(path, int(head[1]), size)
        return "", None
    if number == 1 and len(head) > 2:
        raise _of_another_size(path, len(head) - 1, size)
    raise InvalidWordVectors(f"{path}, line {number}: expected a word and {size} numbers, got {line[:60]!r}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _of_another_size(path: Path, has: int, size: int) -> InvalidWordVectors:
    return InvalidWordVectors(
        f"{path} has vectors of {has} values, the captioner's embeddings have {size}",
        hint=f"--set head.arguments.embedding={has}",
    )


def _numbers(values: Sequence[str], word: str, path: Path, number: int) -> np.ndarray:
    try:
        vector = np.array([float(value) for value in values], np.float32)
    except ValueError:
        vector = np.array([np.nan], np.float32)
    if not np.isfinite(vector).all():
        kind = "binary" if number == 1 else "text"
        raise InvalidWordVectors(
            f"{path}, line {number}: the vector of {word!r} holds something that is no finite number",
            hint="give the text format of word2vec or GloVe" if kind == "binary" else None,
        )
    return vector
