"""Vocabulary: the words a captioner can say, and their numbers.

Takes the training split's captions. Gives a Vocabulary, kept as the asset `vocabulary.json` with the files of its
tokenizer beside it. Next: `finetune.models.heads.captioner`.

A word here is a token: what the vocabulary's tokenizer (`finetune.text.tokenizers`) cuts captions into, be it a word, a
character or a piece of a word.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from finetune.text.tokenizer import TOKENIZER, check_words
from finetune.text.tokenizers import OtherTokenizer as OtherTokenizer
from finetune.text.tokenizers import Tokenizer, WordTokenizer, check_tokenizer_name, open_tokenizer
from zoo.errors import DataLoss, InvalidArgument
from zoo.vocabulary_file import END, FORMAT, PAD, SPECIALS, START, UNKNOWN, VOCABULARY_FILE, vocabulary_bytes


class EmptyCaption(InvalidArgument):
    """A caption without a word in it."""


class NoCaptions(InvalidArgument):
    """Nothing to learn a vocabulary from."""


class DamagedVocabulary(DataLoss):
    """`vocabulary.json` isn't one."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Words by number. Numbers 0 to 3 are `<pad>`, `<s>`, `</s>`, `<unk>`, always, and never what a caption says.

    Word i has number 4 + i. `counts[i]` is how often the training split holds it; words come by falling count, then by
    code points, so equal captions give equal bytes. `tokenizer_files`: what the tokenizer learnt.
    """

    words: tuple[str, ...]
    counts: tuple[int, ...]
    min_count: int
    tokenizer: str = TOKENIZER
    tokenizer_files: Mapping[str, bytes] = field(default_factory=dict, repr=False, hash=False)

    def __post_init__(self) -> None:
        check_tokenizer_name(self.tokenizer)
        if len(self.words) != len(self.counts):
            raise DamagedVocabulary(f"the vocabulary has {len(self.words)} words but {len(self.counts)} counts")
        if len(set(self.words)) != len(self.words):
            twice = [word for word, count in Counter(self.words).items() if count > 1]
            raise DamagedVocabulary(f"the vocabulary holds words twice: {twice[:5]}")
        if not self.words or not all(self.words) or set(self.words) & set(SPECIALS):
            raise DamagedVocabulary("the vocabulary holds no word, an empty word or a special token among its words")

    @classmethod
    def learn(cls, captions: Iterable[str], min_count: int = 1, *, tokenizer: Tokenizer | None = None) -> Vocabulary:
        """Words seen `min_count` times or more in `captions`, which must come from the training split only.

        `tokenizer`: `words@1` by default.

        Raises:
            EmptyCaption: a caption without a word.
            NoCaptions: no caption, or no word seen so often.
            NotText: something else than a string among the captions, or one string for all of them.
        """
        if isinstance(captions, str):
            raise InvalidArgument(f"expected a list of captions, got one string: {captions!r:.80}")
        tokenizer = tokenizer or WordTokenizer()
        seen: Counter[str] = Counter()
        number = 0
        for number, caption in enumerate(captions, start=1):
            seen.update(words_of(caption, where=f"caption {number}", tokenizer=tokenizer))
        if not seen:
            raise NoCaptions("no caption to learn a vocabulary from")
        kept = sorted((word for word, count in seen.items() if count >= min_count), key=lambda w: (-seen[w], w))
        if not kept:
            raise NoCaptions(
                f"no word is seen min_count = {min_count} times in {number} captions; the most frequent, "
                f"{seen.most_common(1)[0][0]!r}, {max(seen.values())} times",
                hint="--set head.arguments.min_count=1",
            )
        return cls(
            words=tuple(kept),
            counts=tuple(seen[word] for word in kept),
            min_count=min_count,
            tokenizer=tokenizer.name,
            tokenizer_files=tokenizer.files,
        )

    @cached_property
    def cutter(self) -> Tokenizer:
        """The tokenizer itself. Raises what `open_tokenizer` raises."""
        return open_tokenizer(self.tokenizer, self.tokenizer_files)

    def words_of(self, caption: str, *, where: str) -> list[str]:
        """The caption's words; `where` (an image's id, a line) is named in the error. Raises EmptyCaption, NotText."""
        return words_of(caption, where=where, tokenizer=self.cutter)

    def text(self, numbers: Iterable[int]) -> str:
        """The line to show of word numbers, up to the first END. Raises InvalidArgument for a number out of range."""
        return self.cutter.detokenize(self.decode(numbers))

    def __len__(self) -> int:
        """Specials included: the number of logits."""
        return len(SPECIALS) + len(self.words)

    @cached_property
    def numbers(self) -> Mapping[str, int]:
        return {word: number for number, word in enumerate(self.words, start=len(SPECIALS))}

    def encode(self, words: Sequence[str]) -> list[int]:
        """Numbers of words, without start and end; words that aren't in the vocabulary are UNKNOWN.

        Raises NotWords for a string: a caption must be tokenized first.
        """
        check_words(words)
        return [self.numbers.get(word, UNKNOWN) for word in words]

    def decode(self, numbers: Iterable[int]) -> list[str]:
        """Words up to the first END; PAD and START give none. Raises InvalidArgument for a number out of range."""
        words: list[str] = []
        for number in numbers:
            if number == END:
                break
            if number in (PAD, START):
                continue
            if not 0 <= number < len(self):
                raise InvalidArgument(f"word number {number} is out of range: the vocabulary has {len(self)}")
            words.append(SPECIALS[UNKNOWN] if number == UNKNOWN else self.words[number - len(SPECIALS)])
        return words

    def to_files(self) -> dict[str, bytes]:
        """The vocabulary as a version's assets; the same vocabulary gives the same bytes."""
        data = vocabulary_bytes(
            words=self.words,
            counts=self.counts,
            min_count=self.min_count,
            tokenizer=self.tokenizer,
            files=self.tokenizer_files,
        )
        return {VOCABULARY_FILE: data, **self.tokenizer_files}

    def to_bytes(self) -> bytes:
        """UTF-8 JSON, `vocabulary.json` alone."""
        return self.to_files()[VOCABULARY_FILE]

    @classmethod
    def from_files(cls, files: Mapping[str, bytes]) -> Vocabulary:
        """What `to_files` gave, among other files or alone. Raises DamagedVocabulary, OtherTokenizer."""
        if VOCABULARY_FILE not in files:
            raise DamagedVocabulary(f"there is no {VOCABULARY_FILE} among {', '.join(sorted(files)) or 'no files'}")
        return cls.from_bytes(files[VOCABULARY_FILE], files=files)

    @classmethod
    def from_bytes(cls, data: bytes, *, files: Mapping[str, bytes] = MappingProxyType({})) -> Vocabulary:
        """What `to_bytes` wrote; `files`: where the tokenizer's are found. Raises DamagedVocabulary, OtherTokenizer."""
        try:
            value = json.loads(data.decode())
            known = value["format"], tuple(value["specials"])
            words, counts = tuple(value["words"]), tuple(value["counts"])
            min_count, tokenizer = value["min_count"], value["tokenizer"]
            hashes = dict(value.get("files", {}))
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise DamagedVocabulary(f"{VOCABULARY_FILE} is damaged: {type(error).__name__}: {error}") from None
        if known != (FORMAT, SPECIALS):
            raise DamagedVocabulary(
                f"{VOCABULARY_FILE} has format {known[0]!r} and special tokens {list(known[1])}; "
                f"known: {FORMAT} and {list(SPECIALS)}"
            )
        if not all(isinstance(word, str) for word in words):
            raise DamagedVocabulary(f"{VOCABULARY_FILE} is damaged: not every word is a string")
        return cls(
            words=words,
            counts=counts,
            min_count=min_count,
            tokenizer=tokenizer,
            tokenizer_files={name: _tokenizer_file(name, digest, files) for name, digest in hashes.items()},
        )


def words_of(caption: str, *, where: str, tokenizer: Tokenizer) -> list[str]:
    """The caption's words; `where` (an image's id, a line) is named in the error. Raises EmptyCaption, NotText."""
    words = tokenizer.tokenize(caption)
    if not words:
        raise EmptyCaption(f"{where}: the caption {caption!r:.80} holds no word")
    return words


def _tokenizer_file(name: str, digest: str, files: Mapping[str, bytes]) -> bytes:
    """Raises DamagedVocabulary unless the file is there and the one that the vocabulary was learnt with."""
    if name not in files:
        raise DamagedVocabulary(f"{VOCABULARY_FILE} was learnt with {name}, which isn't beside it")
    found = hashlib.sha256(files[name]).hexdigest()
    if found != digest:
        raise DamagedVocabulary(
            f"{name} is another vocabulary's: its SHA-256 is {found[:12]}…, {VOCABULARY_FILE} has {digest!s:.12}…"
        )
    return files[name]
