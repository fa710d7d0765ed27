"""Tokenizers: how a vocabulary cuts captions into tokens and puts them together again.

Takes a tokenizer's name, as a vocabulary keeps it, and its model file if it has one. Gives a Tokenizer. Next:
`finetune.text.vocabulary`.

A name is a rule with its version and options: `words@1`, `characters@1+case`, `sentencepiece@1+case+punctuation`. All
begin with the words of `finetune.text.tokenizer` and are as one on what a caption says; they differ in what a token is:

- `words`: a word; in scripts without spaces a character.
- `characters`: a character of the caption as it would be shown, with its marks; a space is the token `▁`.
- `sentencepiece`: a piece that a SentencePiece model (Kudo and Richardson 2018) learnt from the training split.

`tokenizer.tokenize(tokenizer.detokenize(tokens)) == tokens` for words and characters. Pieces may be cut otherwise when
a caption that a model put together is cut again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from finetune.text.tokenizer import check_words, detokenize, graphemes, tokenize
from zoo.errors import FailedPrecondition
from zoo.vocabulary_file import SPACE

TokenizerKind = Literal["words", "characters", "sentencepiece"]
# Languages that are written without spaces between words, by the first part of their tags.
UNSPACED_LANGUAGES = ("bo", "dz", "ja", "km", "lo", "lzh", "my", "nan", "th", "wuu", "yue", "zh")


class OtherTokenizer(FailedPrecondition):
    """A vocabulary that was made with a tokenizer which this code doesn't have."""


class Tokenizer(Protocol):
    """Whatever it is given, no token is empty or equal to a special one such as `<unk>`."""

    @property
    def name(self) -> str: ...

    def tokenize(self, text: str) -> list[str]:
        """[] for a text without a word. Raises NotText."""

    def detokenize(self, tokens: Sequence[str]) -> str:
        """A line to show; the special token `<unk>` may be among the tokens. Raises NotWords."""

    @property
    def files(self) -> Mapping[str, bytes]:
        """What it learnt, to be kept beside the vocabulary under these names."""


@dataclass(frozen=True, kw_only=True)
class WordOptions:
    """What of a caption becomes words."""

    keep_case: bool = False
    keep_punctuation: bool = False

    @property
    def suffix(self) -> str:
        return "+case" * self.keep_case + "+punctuation" * self.keep_punctuation

    def words(self, text: str) -> list[str]:
        return tokenize(text, keep_case=self.keep_case, keep_punctuation=self.keep_punctuation)

    def line(self, text: str) -> str:
        """The text as its words are shown: what sub-word tokenizers cut."""
        return self.joined(self.words(text))

    def joined(self, words: Sequence[str]) -> str:
        return detokenize(words, keep_punctuation=self.keep_punctuation)


@dataclass(frozen=True, kw_only=True)
class WordTokenizer:
    """Tokenizer `words@1`: the only one of vocabularies made before there were others."""

    options: WordOptions = WordOptions()
    files: Mapping[str, bytes] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        return f"words@1{self.options.suffix}"

    def tokenize(self, text: str) -> list[str]:
        return self.options.words(text)

    def detokenize(self, tokens: Sequence[str]) -> str:
        return self.options.joined(tokens)


@dataclass(frozen=True, kw_only=True)
class CharacterTokenizer:
    """Tokenizer `characters@1`."""

    options: WordOptions = WordOptions()
    files: Mapping[str, bytes] = field(default_factory=dict, hash=False)

    @property
    def name(self) -> str:
        return f"characters@1{self.options.suffix}"

    def tokenize(self, text: str) -> list[str]:
        # A caption's own U+2581 is a visible character as good as any other, but it would come back as a space.
        line = self.options.line(text.replace(SPACE, " ") if isinstance(text, str) else text)
        return [SPACE if token == " " else token for token in graphemes(line)]

    def detokenize(self, tokens: Sequence[str]) -> str:
        check_words(tokens)
        return "".join(" " if token == SPACE else token for token in tokens)


def _words(options: WordOptions, files: Mapping[str, bytes]) -> Tokenizer:
    return WordTokenizer(options=options)


def _characters(options: WordOptions, files: Mapping[str, bytes]) -> Tokenizer:
    return CharacterTokenizer(options=options)


def _sentencepiece(options: WordOptions, files: Mapping[str, bytes]) -> Tokenizer:
    from finetune.text.sentencepieces import SentencePieceTokenizer

    return SentencePieceTokenizer.open(options, files)


_OPENERS: dict[TokenizerKind, Callable[[WordOptions, Mapping[str, bytes]], Tokenizer]] = {
    "words": _words,
    "characters": _characters,
    "sentencepiece": _sentencepiece,
}
_OPTIONS = [WordOptions(keep_case=case, keep_punctuation=kept) for case in (False, True) for kept in (False, True)]
_NAMES = {f"{kind}@1{options.suffix}": (kind, options) for kind in _OPENERS for options in _OPTIONS}


def check_tokenizer_name(name: str) -> None:
    """Raises OtherTokenizer for a name that `open_tokenizer` doesn't know."""
    if name not in _NAMES:
        raise OtherTokenizer(
            f"the vocabulary was made with the tokenizer {name!r}, this version has "
            f"{', '.join(name for name in _NAMES if '+' not in name)} and those with +case, +punctuation",
            hint="train the captioner anew, or use the version of the tool that made it",
        )


def open_tokenizer(name: str, files: Mapping[str, bytes]) -> Tokenizer:
    """The tokenizer of a vocabulary: its name and the files that were kept beside it.

    Raises OtherTokenizer; for `sentencepiece@1` what `finetune.text.sentencepieces` raises.
    """
    kind, options = kind_and_options(name)
    return _OPENERS[kind](options, files)


def learn_tokenizer(kind: TokenizerKind, options: WordOptions, captions: Iterable[str], *, pieces: int) -> Tokenizer:
    """A tokenizer for the captions of a training split; `pieces`: how many a SentencePiece model may have at most."""
    if kind == "sentencepiece":
        from finetune.text.sentencepieces import SentencePieceTokenizer

        return SentencePieceTokenizer.learn(options, captions, pieces=pieces)
    return CharacterTokenizer(options=options) if kind == "characters" else WordTokenizer(options=options)


def kind_and_options(name: str) -> tuple[TokenizerKind, WordOptions]:
    """Of a tokenizer's name. Raises OtherTokenizer."""
    check_tokenizer_name(name)
    return _NAMES[name]


def kind_for_language(language: str | None) -> TokenizerKind:
    """What a captioner of a language (a tag such as `ja`, `zh-Hant`) uses where nothing else is asked for."""
    primary = (language or "").replace("_", "-").lower().partition("-")[0]
    return "characters" if primary in UNSPACED_LANGUAGES else "words"
