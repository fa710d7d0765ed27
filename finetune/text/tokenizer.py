"""What a word is: for vocabularies, for captions that are shown, for checks of data and, plain, for all scoring.

Takes a caption as its author wrote it. Gives words. Next: `finetune.text.tokenizers` (a vocabulary's own way to cut,
which starts from these words), `finetune.metrics.captions`.

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

Two options, for vocabularies that want them: `keep_case` leaves out lower case in step 2; `keep_punctuation` makes a
word of every visible character that step 5 would drop, emoji too. Even then each such word is one character (with its
marks), so that none equals a special token.

`tokenize(detokenize(words)) == words` for every list of words that `tokenize` gave, with the same options.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

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
# Punctuation that is kept: what stands without a space before it, and what without one after it.
_CLOSING = ".,;:!?%…)]}»”、。，．；：！？）」』】〉》｝］"
_OPENING = "([{«“¿¡（「『【〈《｛［"
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

    w letter or digit, s the letter s, m mark, c character of an unspaced script, ' and - themselves, p any other
    visible character, space the rest.
    """

    def __missing__(self, code: int) -> str:
        char = chr(code)
        major = unicodedata.category(char)[0]
        result = " "
        if char in "'-":
            result = char
        elif char in "sS":
            result = "s"
        elif major == "M":
            result = "m"
        elif major in "LN":
            result = "c" if any(first <= code <= last for first, last in _UNSPACED) else "w"
        elif major in "PS":
            result = "p"
        self[code] = result
        return result


_STEERING = _Steering()
_CLASSES = _Classes()
_JOINERS = str.maketrans(dict.fromkeys(_APOSTROPHES, "'") | dict.fromkeys(_HYPHENS, "-"))
_RUN = r"[ws][wsm]*"
_CLITIC = r"'s(?![wsm])"  # rule 3's 's
_PLAIN_WORD = rf"{_CLITIC}|cm*|{_RUN}(?:(?!{_CLITIC})['-]{_RUN})*"
_WORD = re.compile(_PLAIN_WORD)
_GRAPHEME = re.compile(r"[^m]m*|m+")
_WORD_OR_PUNCTUATION = re.compile(rf"{_PLAIN_WORD}|pm*|['-]")


def tokenize(text: str, *, keep_case: bool = False, keep_punctuation: bool = False) -> list[str]:
    """The words of a caption, by rule `words@1` of this module; [] when it holds none.

    Raises:
        NotText: `text` isn't a string (bytes and lists are the usual slips).
    """
    if not isinstance(text, str):
        raise NotText(f"a caption must be a string, got {type(text).__name__}: {text!r:.80}")
    plain = unicodedata.normalize("NFC", text.translate(_STEERING))
    plain = unicodedata.normalize("NFC", plain if keep_case else plain.lower()).translate(_JOINERS)
    found = (_WORD_OR_PUNCTUATION if keep_punctuation else _WORD).finditer(plain.translate(_CLASSES))
    return [plain[match.start() : match.end()] for match in found]


def detokenize(words: Sequence[str], *, keep_punctuation: bool = False) -> str:
    """Words as a line to show: joined by spaces, but none between unspaced scripts and before `'s`; with
    `keep_punctuation` none about punctuation either, as a reader expects it."""
    check_words(words)
    marks = [joining(word, keep_punctuation=keep_punctuation) for word in words]
    parts: list[str] = []
    for index, word in enumerate(words):
        if index and _needs_space(marks[index - 1], marks[index]):
            parts.append(" ")
        parts.append(word)
    return "".join(parts)


@dataclass(frozen=True)
class Joining:
    """What decides whether a space stands beside a word."""

    unspaced: bool  # of a script without spaces, or its punctuation
    clitic: bool  # 's
    closing: bool  # no space before it
    opening: bool  # no space after it


def joining(word: str, *, keep_punctuation: bool = False) -> Joining:
    """How a word that `tokenize` gave, or a special token, joins its neighbours."""
    first = word[:1]
    kind = first.translate(_CLASSES)
    if kind == "p" and not keep_punctuation:  # <unk>, or a word of a foreign vocabulary
        kind = "w"
    wide = "\u3000" <= first <= "\u303f" or "\uff00" <= first <= "\uffef"
    return Joining(
        unspaced=kind == "c" or (kind == "p" and wide),
        clitic=word in ("'s", "'S"),
        closing=kind == "p" and first in _CLOSING,
        opening=kind == "p" and first in _OPENING,
    )


def graphemes(line: str) -> list[str]:
    """A line of `detokenize` in characters, each with the marks that follow it; spaces are characters too."""
    return [line[match.start() : match.end()] for match in _GRAPHEME.finditer(line.translate(_CLASSES))]


def check_words(words: Sequence[str]) -> None:
    """Raises NotWords unless `words` is a sequence of strings: a string is one too, of letters, and means a slip."""
    if isinstance(words, str | bytes) or not isinstance(words, Sequence):
        raise NotWords(
            f"expected a list of words, got {type(words).__name__}: {words!r:.80}", hint="tokenize the caption first"
        )
    for word in words:
        if not isinstance(word, str):
            raise NotWords(f"expected a list of words, got {type(word).__name__} in it: {word!r:.80}")


def _needs_space(left: Joining, right: Joining) -> bool:
    """The same rule, over tensors, is in `finetune.export.caption_graph`."""
    if left.opening or right.closing:
        return False
    if right.clitic:
        return left.clitic or left.unspaced
    return not (left.unspaced and right.unspaced)
