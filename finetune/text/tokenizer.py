"""The one tokenizer: for building a vocabulary, for training targets, for captions that are shown and for scoring.

Takes a caption as its author wrote it. Gives words. Next: `finetune.text.vocabulary`, `finetune.metrics.captions`.

Rule `words@1`, in this order:

1. Characters that only steer display (zero width joiners, direction marks, soft hyphens, variation selectors) go; line
   ends of every kind, controls, zero width spaces and U+2063 count as spaces.
2. Unicode NFC, lower case, NFC again. Typographic apostrophes and hyphens become `'` and `-`.
3. A word is a run of letters and digits of any script with the marks that follow them. One apostrophe or hyphen between
   two such runs stays inside (`don't`, `t-shirt`); the English `'s` is a word of its own, as in Penn Treebank and as
   Flickr8k's authors wrote it (`man 's`), wherever it stands.
4. Scripts written without spaces (Han, kana, Thai, Lao, Khmer, Myanmar) give one word a character, with its marks.
5. Everything else separates words and is dropped. So `<`, `>` and `/` are in no word, and no word equals a special
   token such as `<unk>`.

`tokenize(detokenize(words)) == words` for every list of words that `tokenize` gave.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from zoo.errors import InvalidArgument
from zoo.vocabulary_file import TOKENIZER as TOKENIZER  # a part of the file's format; what it means is here

# Blocks of the scripts of rule 4: first and last code point.
_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),  # iteration mark, ideographic zero
    (0x3021, 0x3029),  # Hangzhou numerals
    (0x3031, 0x30FF),  # kana
    (0x31F0, 0x31FF),  # small katakana
    (0x3400, 0x4DBF),  # Han, extension A
    (0x4E00, 0x9FFF),  # Han
    (0xAA60, 0xAA7F),  # Myanmar, extended
    (0xF900, 0xFAFF),  # Han, compatibility
    (0xFF66, 0xFF9F),  # half-width katakana
    (0x1B000, 0x1B16F),  # kana, supplement
    (0x20000, 0x3FFFF),  # Han, extensions B and on
)
_APOSTROPHES = "'’‘ʼ＇"
_HYPHENS = "-‐‑"
_SPACING_FORMAT = "\u200b\u2060\u2061\u2062\u2063\u2064\ufeff"  # Cf, but they stand between words


class NotText(InvalidArgument):
    """Something else where a caption was wanted."""


class NotWords(InvalidArgument):
    """A string, or a list with something else in it, where a list of words was wanted."""


class _Steering(dict[int, str | None]):
    """For `str.translate`, filled as characters come up: None drops one, a space separates (rule 1)."""

    def __missing__(self, code: int) -> str | None:
        char = chr(code)
        category = unicodedata.category(char)
        result: str | None = char
        if char in _SPACING_FORMAT or category in ("Cc", "Zl", "Zp", "Zs", "Cs", "Co", "Cn"):
            result = " "
        elif category == "Cf" or 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF:
            result = None
        self[code] = result
        return result


class _Classes(dict[int, str]):
    """For `str.translate`: one letter a character, so that words are found by a pattern over classes.

    w letter or digit, s the letter s, m mark, c character of an unspaced script, ' and - themselves, space the rest.
    """

    def __missing__(self, code: int) -> str:
        char = chr(code)
        major = unicodedata.category(char)[0]
        result = " "
        if char in "'-":
            result = char
        elif char == "s":
            result = "s"
        elif major == "M":
            result = "m"
        elif major in "LN":
            result = "c" if any(first <= code <= last for first, last in _UNSPACED) else "w"
        self[code] = result
        return result


_STEERING = _Steering()
_CLASSES = _Classes()
_JOINERS = str.maketrans(dict.fromkeys(_APOSTROPHES, "'") | dict.fromkeys(_HYPHENS, "-"))
_RUN = r"[ws][wsm]*"
_CLITIC = r"'s(?![wsm])"  # rule 3's 's
_WORD = re.compile(rf"{_CLITIC}|cm*|{_RUN}(?:(?!{_CLITIC})['-]{_RUN})*")


def tokenize(text: str) -> list[str]:
    """The words of a caption, by rule `words@1` of this module; [] when it holds none.

    Raises:
        NotText: `text` isn't a string (bytes and lists are the usual slips).
    """
    if not isinstance(text, str):
        raise NotText(f"a caption must be a string, got {type(text).__name__}: {text!r:.80}")
    plain = unicodedata.normalize("NFC", text.translate(_STEERING))
    plain = unicodedata.normalize("NFC", plain.lower()).translate(_JOINERS)
    return [plain[match.start() : match.end()] for match in _WORD.finditer(plain.translate(_CLASSES))]


def detokenize(words: Sequence[str]) -> str:
    """Words as a line to show: joined by spaces, without one between unspaced scripts and before `'s`."""
    check_words(words)
    parts: list[str] = []
    for index, word in enumerate(words):
        if index and _needs_space(words[index - 1], word):
            parts.append(" ")
        parts.append(word)
    return "".join(parts)


def check_words(words: Sequence[str]) -> None:
    """Raises NotWords unless `words` is a sequence of strings: a string is one too, of letters, and means a slip."""
    if isinstance(words, str | bytes) or not isinstance(words, Sequence):
        raise NotWords(
            f"expected a list of words, got {type(words).__name__}: {words!r:.80}", hint="tokenize the caption first"
        )
    for word in words:
        if not isinstance(word, str):
            raise NotWords(f"expected a list of words, got {type(word).__name__} in it: {word!r:.80}")


def _needs_space(left: str, right: str) -> bool:
    if right == "'s":
        return left == "'s" or left[:1].translate(_CLASSES) == "c"
    return not (left[:1].translate(_CLASSES) == "c" and right[:1].translate(_CLASSES) == "c")
