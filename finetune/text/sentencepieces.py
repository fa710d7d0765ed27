"""Tokenizer `sentencepiece@1`: pieces of words by a unigram language model (Kudo 2018, arXiv:1804.10959).

Takes captions of a training split, or the model file that was learnt from them. Gives a Tokenizer. Next:
`finetune.text.vocabulary`.

The model is a protocol buffer of pieces and their scores: data, which the library reads and nothing executes. It cuts
what `finetune.text.tokenizer` left of a caption, and adds no rule of its own (`identity`); a piece never crosses a
space or the border of two scripts, so that no piece of a caption holding the text `<unk>` is that text.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune.text.tokenizer import check_words
from finetune.text.tokenizers import WordOptions
from zoo.errors import DataLoss, FailedPrecondition, InvalidArgument
from zoo.vocabulary_file import PIECES_FILE, SPACE

_MAX_BYTES = 16 << 20  # of a model; 32,000 pieces take less than one MB
_LONGEST_LINE = 1 << 16  # bytes; the library leaves longer ones out of its training in silence
_INSTALL = "pip install 'modelzoo[sentencepiece]'"


class NoSentencePiece(FailedPrecondition):
    """The library isn't installed."""


class DamagedPieces(DataLoss):
    """The model file isn't one, or is missing."""


class CannotLearnPieces(InvalidArgument):
    """Captions from which no model of pieces can be learnt."""


@dataclass(frozen=True, kw_only=True)
class SentencePieceTokenizer:
    options: WordOptions
    files: Mapping[str, bytes]
    model: Any  # sentencepiece.SentencePieceProcessor

    @classmethod
    def open(cls, options: WordOptions, files: Mapping[str, bytes]) -> SentencePieceTokenizer:
        """Raises DamagedPieces, NoSentencePiece."""
        data = files.get(PIECES_FILE)
        if not data:
            raise DamagedPieces(f"the vocabulary's tokenizer needs {PIECES_FILE}, which is missing or empty")
        if len(data) > _MAX_BYTES:
            raise DamagedPieces(f"{PIECES_FILE} has {len(data)} bytes, a model of pieces at most {_MAX_BYTES}")
        model = _library().SentencePieceProcessor()
        try:
            model.LoadFromSerializedProto(data)
        except (RuntimeError, OSError) as error:
            raise DamagedPieces(f"{PIECES_FILE} is damaged: {error}") from None
        return cls(options=options, files={PIECES_FILE: data}, model=model)

    @classmethod
    def learn(cls, options: WordOptions, captions: Iterable[str], *, pieces: int) -> SentencePieceTokenizer:
        """A model of at most `pieces` pieces, fewer where the captions don't give so many. The same captions in the
        same order give the same bytes.

        Raises CannotLearnPieces, NoSentencePiece, NotText.
        """
        written = io.BytesIO()
        lines = [line for line in map(options.line, captions) if line]
        longest = max((len(line.encode()) for line in lines), default=0)
        if not lines or longest > _LONGEST_LINE:
            what = f"a caption of {longest} bytes, of at most {_LONGEST_LINE}" if lines else "no caption with a word"
            raise CannotLearnPieces(f"no pieces can be learnt: {what}")
        try:
            _library().SentencePieceTrainer.Train(
                sentence_iterator=iter(lines),
                model_writer=written,
                model_type="unigram",
                vocab_size=pieces,
                hard_vocab_limit=False,
                character_coverage=1.0,  # rare characters are pieces too: the vocabulary decides what is <unk>
                normalization_rule_name="identity",
                split_by_unicode_script=True,
                max_sentence_length=_LONGEST_LINE + 1,
                num_threads=1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise CannotLearnPieces(f"no {pieces} pieces can be learnt from {len(lines)} captions: {error}") from None
        return cls.open(options, {PIECES_FILE: written.getvalue()})

    @property
    def name(self) -> str:
        return f"sentencepiece@1{self.options.suffix}"

    def tokenize(self, text: str) -> list[str]:
        line = self.options.line(text.replace(SPACE, " ") if isinstance(text, str) else text)
        return [str(piece) for piece in self.model.EncodeAsPieces(line)]

    def detokenize(self, tokens: Sequence[str]) -> str:
        check_words(tokens)
        return "".join(tokens).replace(SPACE, " ").strip(" ")


def _library() -> Any:
    try:
        import sentencepiece
    except ImportError:
        raise NoSentencePiece("cutting words into pieces needs the library sentencepiece", hint=_INSTALL) from None
    return sentencepiece
