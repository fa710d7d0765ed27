"""Vocabularies in im2txt's layout: `word_counts.txt`, a word and its count a line.

Takes such a file, or a Vocabulary. Gives the other. Next: `finetune.cli.vocabulary`, `finetune.models.heads.captioner`.
"""

from __future__ import annotations

from pathlib import Path

from finetune.text.tokenizers import Tokenizer, WordTokenizer, kind_and_options
from finetune.text.vocabulary import Vocabulary
from zoo.atomic_file import replaced_file
from zoo.errors import FailedPrecondition
from zoo.im2txt_vocabulary import END, START, UNKNOWN, InvalidWordCounts, read_word_counts, word_counts_bytes


class NoWordCounts(FailedPrecondition):
    """A vocabulary that the layout can't hold."""


def read_vocabulary(path: Path, tokenizer: Tokenizer | None = None) -> Vocabulary:
    """The words of the file in its order, whatever their counts. Its `<S>`, `</S>` and `<UNK>` are not among them: they
    are tokens of every vocabulary.

    Raises MissingWordCounts; InvalidWordCounts: not such a file, no start or end token, or no word.
    """
    tokenizer = tokenizer or WordTokenizer()
    known = read_word_counts(path)
    pairs = [
        (word, count)
        for word, count in zip(known.words, known.counts, strict=True)
        if word not in (START, END, UNKNOWN)
    ]
    if not pairs:
        raise InvalidWordCounts(f"{path} lists no word besides {START} and {END}")
    return Vocabulary(
        words=tuple(word for word, _ in pairs),
        counts=tuple(count for _, count in pairs),
        min_count=max(1, min(count for _, count in pairs)),
        tokenizer=tokenizer.name,
        tokenizer_files=tokenizer.files,
    )


def write_vocabulary(path: Path, vocabulary: Vocabulary, *, captions: int = 0) -> None:
    """`captions`: how many the vocabulary was learnt from, the count of `<S>` and `</S>`; 0: nobody knows any more.

    Raises NoWordCounts for pieces, which mean nothing without their model.
    """
    if vocabulary.tokenizer_files:
        raise NoWordCounts(
            f"a vocabulary of {vocabulary.tokenizer!r} lists pieces, which mean nothing without their model",
            hint="zoo pull REF DIR writes both files",
        )
    data = word_counts_bytes(words=vocabulary.words, counts=vocabulary.counts, captions=captions)
    with replaced_file(path) as file:
        file.write(data)


def never_said(vocabulary: Vocabulary) -> list[str]:
    """Words that the vocabulary's tokenizer would never give, such as punctuation that it drops. Characters and pieces
    have their meaning in a line only, so that none is listed."""
    if kind_and_options(vocabulary.tokenizer)[0] != "words":
        return []
    return [word for word in vocabulary.words if vocabulary.cutter.tokenize(word) != [word]]
