"""The words of an im2txt captioner, as the file `word_counts.txt` of its data preparation lists them.

Takes the file and the number of outputs. Gives words by im2txt's numbers. Next: `zoo.im2txt`.

A line is `word count`, its number from 0 is the word's. The start and end tokens `<S>` and `</S>` are words among them;
the unknown word `<UNK>` has the number after the last, unless the file lists it. Under Python 3 the preparation wrote
words as `b'…'`. A network may have more outputs than that (im2txt makes 12,000 whatever the file has).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from zoo.errors import InvalidArgument, NotFound
from zoo.vocabulary_file import SPECIALS

START, END, UNKNOWN = "<S>", "</S>", "<UNK>"
_MAX_BYTES = 256 << 20
_LINE = re.compile(r"(?P<word>[^ \t]+)(?:[ \t]+(?P<count>\d{1,15}))?[ \t]*")
# Values that no word was ever trained with are spread evenly, as im2txt initialises them: their largest is √3 times
# their root mean square. Trained ones have tails; a normal distribution of this many has a ratio beyond 2.7.
_EVEN_AT_MOST, _EVEN_FROM = 2.0, 256


class InvalidWordCounts(InvalidArgument):
    """A file that isn't a list of words and counts, or one that doesn't fit the captioner."""


class MissingWordCounts(NotFound):
    """The file of words is not there, or was not named."""


@dataclass(frozen=True, kw_only=True)
class WordCounts:
    """Words and counts by im2txt's numbers, `<S>` and `</S>` among them and `<UNK>` too, the last unless listed."""

    words: tuple[str, ...]
    counts: tuple[int, ...]
    lines: int

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        return {word: number for number, word in enumerate(self.words)}


def read_word_counts(path: Path) -> WordCounts:
    """Raises MissingWordCounts; InvalidWordCounts naming the line, or the token that is missing."""
    if not path.is_file():
        raise MissingWordCounts(f"there is no vocabulary file at {path}")
    if path.stat().st_size > _MAX_BYTES:
        raise InvalidWordCounts(f"{path} has {path.stat().st_size} bytes, a vocabulary file has at most {_MAX_BYTES}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidWordCounts(f"{path} is not UTF-8 text: {error}") from None
    # Not splitlines(), which also splits at U+2028, a character that a word may hold.
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    found = [_LINE.fullmatch(line) for line in lines]
    bad = next((place for place, match in enumerate(found) if match is None), None)
    if bad is not None:
        raise InvalidWordCounts(f"{path}, line {bad + 1}: {lines[bad]!r:.80} is not a word and its count")
    matches = [match for match in found if match is not None]
    words = _decoded(path, [match["word"] for match in matches])
    _check(path, words)
    counts = [int(match["count"] or 0) for match in matches]
    if UNKNOWN not in words:
        words, counts = [*words, UNKNOWN], [*counts, 0]
    return WordCounts(words=tuple(words), counts=tuple(counts), lines=len(lines))


def word_counts_bytes(*, words: Sequence[str], counts: Sequence[int], captions: int = 0) -> bytes:
    """The file as im2txt's data preparation lists words: each with its count, by falling count, the start and end
    tokens among them, which stand in every caption. im2txt reads the order alone; `captions` may be 0, unknown."""
    counted = [(START, captions), (END, captions), *zip(words, counts, strict=True)]
    if captions:
        counted.sort(key=lambda pair: -pair[1])
    return "".join(f"{word} {count}\n" for word, count in counted).encode()


def check_outputs(known: WordCounts, embedding_VE: np.ndarray, where: str) -> int:
    """The number of outputs beyond the last word, which no caption of the training held.

    Raises InvalidWordCounts when there are fewer outputs than words, or when what lies beyond the last word has been
    trained: then the file is another one's.
    """
    outputs, words = len(embedding_VE), len(known.words)
    has = f"{where} lists {known.lines} words{'' if words == known.lines else f' (with {UNKNOWN} {words})'}"
    if words > outputs:
        raise InvalidWordCounts(
            f"{has}, too many: the captioner has {outputs} outputs", hint="name the file that it was trained with"
        )
    spare = embedding_VE[words:].astype(np.float64)
    rms = float(np.sqrt(np.mean(spare**2))) if spare.size else 0.0
    if spare.size >= _EVEN_FROM and rms and float(np.abs(spare).max()) > _EVEN_AT_MOST * rms:
        raise InvalidWordCounts(
            f"{has}, too few: the captioner has {outputs} outputs, and those from number {words} on have been trained",
            hint="name the file that it was trained with; spare outputs of another initialiser want a line each in it",
        )
    return outputs - words


def _decoded(path: Path, words: list[str]) -> list[str]:
    """`b'word'` → `word`, where the file's start token is written so."""
    if not {repr(START.encode()), f'b"{START}"'} & set(words):
        return words
    result = []
    for line, word in enumerate(words, start=1):
        try:
            value = ast.literal_eval(word)
            result.append(value.decode())
        except (ValueError, SyntaxError, AttributeError):
            raise InvalidWordCounts(
                f"{path}, line {line}: {word!r:.80} is not written as b'…', which the file's start token is"
            ) from None
    return result


def _check(path: Path, words: list[str]) -> None:
    missing = [token for token in (START, END) if token not in words]
    if missing:
        raise InvalidWordCounts(
            f"{path} has {len(words)} words, but not {' and '.join(missing)}: captions of im2txt begin with the word "
            f"{START} and end with {END}"
        )
    first: dict[str, int] = {}
    for line, word in enumerate(words, start=1):
        if word in first:
            raise InvalidWordCounts(f"{path}: {word!r:.80} is listed twice, in lines {first[word]} and {line}")
        first[word] = line
    taken = [word for word in SPECIALS if word in first]
    if taken:
        raise InvalidWordCounts(f"{path} lists {', '.join(taken)}, which stand for something else here")
