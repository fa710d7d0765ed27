"""Head kind `captioner`: Show and Tell (Vinyals et al. 2015, arXiv:1411.4555), without its weights.

Takes captions of a split. Gives a vocabulary and target rows, one a caption. Next:
`finetune.models.heads.captioner_layer`, which is imported only to build (this module needs no TensorFlow).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from finetune.data.source import Example
from finetune.models.decoding_options import MAX_NGRAM
from finetune.models.feature_row import FeatureRow
from finetune.models.heads.head import Assets, TargetTable
from finetune.models.word_vectors import WORD_VECTORS, WORD_VECTORS_ARGUMENT, WordVectors, read_word_vectors
from finetune.text.tokenizers import Tokenizer, TokenizerKind, WordOptions, kind_and_options, learn_tokenizer
from finetune.text.vocabulary import END, PAD, Vocabulary, words_of
from finetune.text.word_counts import never_said, read_vocabulary
from zoo.errors import FailedPrecondition, InvalidArgument
from zoo.vocabulary_file import TOKENIZER

if TYPE_CHECKING:
    from finetune.models.heads.captioner_layer import CaptionerLayer
    from finetune.spec import JobSpec

FILE_ARGUMENTS = (WORD_VECTORS_ARGUMENT, "word_counts")  # paths; a server takes those below its data roots

_log = logging.getLogger(__name__)
_Share = Annotated[float, Field(ge=0, lt=1)]


class NoCaption(InvalidArgument):
    """An image without a caption where one is needed."""


class AnotherVocabulary(FailedPrecondition):
    """A vocabulary that isn't the one which the head was made for."""


class CaptionerArguments(BaseModel):
    """What decides a captioner. The defaults are the recipe for a few thousand captions (flickr1k)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    embedding: Annotated[int, Field(ge=1)] = 384  # size of word and image embeddings
    units: Annotated[int, Field(ge=1)] = 512  # size of the LSTM's state
    normalise_features: Literal["none", "l2", "standard"] = "standard"  # of each feature vector by itself
    feature_dropout: _Share = 0.0  # this and the next five act in training only
    embedding_dropout: _Share = 0.3  # on the LSTM's inputs, image and words
    output_dropout: _Share = 0.3  # on the LSTM's outputs
    word_dropout: _Share = 0.0  # share of input words that the LSTM sees as <unk>
    label_smoothing: _Share = 0.0
    # Weight of a second loss: the image embedding alone predicts the caption's words, in any order. Without it the
    # decoder learns to do without the image first: after 800 steps on flickr1k, one caption served eight photos.
    word_bag: Annotated[float, Field(ge=0)] = 0.5
    # The decoder (finetune.models.decoders). These defaults are Show and Tell's.
    cell: Literal["lstm", "gru"] = "lstm"
    layer_norm: bool = False  # in the cells (arXiv:1607.06450)
    image_as: Literal["first_input", "initial_state"] = "first_input"  # before <s>, or what a state begins with
    attention: Literal["none", "soft", "top_down"] = "none"  # over the feature map (arXiv:1502.03044, 1707.07998)
    attention_units: Annotated[int, Field(ge=1)] = 256
    attention_regulariser: Annotated[float, Field(ge=0)] = 1.0  # weight of looking at every place in the end
    # Every kernel and embedding is drawn from ± this (Show and Tell's authors: 0.08); None: each layer's own way.
    initial_scale: Annotated[float, Field(gt=0)] | None = None
    tie_embeddings: bool = False  # logits by the words' input embeddings (arXiv:1608.05859)
    # A file of pretrained vectors for words to begin with, in the text format of word2vec or GloVe.
    word_vectors: Annotated[str, Field(min_length=1)] | None = None
    scheduled_sampling: _Share = 0.0  # greatest share of input words that are the decoder's own (arXiv:1506.03099)
    scheduled_sampling_steps: Annotated[int, Field(ge=1)] = 1000  # the share grows linearly until then
    min_count: Annotated[int, Field(ge=1)] = 4  # rarer words of the training split become <unk>
    # Self-critical training (arXiv:1612.00563): from this step on captions are drawn and rewarded. None: never.
    self_critical_from: Annotated[int, Field(ge=0)] | None = None
    self_critical_samples: Annotated[int, Field(ge=2, le=64)] = 5  # captions that are drawn of a row's image
    self_critical_bleu: Annotated[float, Field(ge=0)] = 0.0  # weight of BLEU-4 in the reward, beside CIDEr
    max_words: Annotated[int, Field(ge=1, le=200)] = 30  # longest caption in tokens, in training and when captioning
    # What a token is (finetune.text.tokenizers). None: words, or what the head to start from has. A recipe chooses
    # characters for languages without spaces.
    tokenizer: TokenizerKind | None = None
    keep_case: bool = False
    keep_punctuation: bool = False
    word_counts: Annotated[str, Field(min_length=1)] | None = None  # file of words, im2txt's; None: learn them
    pieces: Annotated[int, Field(ge=8, le=100_000)] = 4000  # of a SentencePiece model, at most
    beam_size: Annotated[int, Field(ge=1, le=64)] = 3
    length_penalty: Annotated[float, Field(ge=0, le=2)] = 0.7  # α: captions are ranked by log_prob / length^α
    # What else decides how captions are found (finetune.models.decoding_options); a caller may ask otherwise.
    min_words: Annotated[int, Field(ge=0, le=200)] = 0
    coverage: Annotated[float, Field(ge=0, le=10)] = 0.0  # β; wants attention
    no_repeat_ngram: Annotated[int, Field(ge=0, le=MAX_NGRAM)] = 0
    beam_groups: Annotated[int, Field(ge=1, le=64)] = 1
    diversity: Annotated[float, Field(ge=0, le=100)] = 0.5  # of groups, where there are several

    @model_validator(mode="after")
    def _agree(self) -> CaptionerArguments:
        if self.min_words > self.max_words:
            raise ValueError(f"min_words is {self.min_words}, more than max_words, {self.max_words}")
        if self.beam_size % self.beam_groups:
            raise ValueError(f"beam_size, {self.beam_size}, can't be dealt to {self.beam_groups} groups of one size")
        if self.coverage and self.attention == "none":
            raise ValueError("coverage counts what attention has looked at: it wants attention=soft or top_down")
        if self.word_counts is not None and self.tokenizer == "sentencepiece":
            raise ValueError("word_counts lists words; the pieces of tokenizer=sentencepiece are those of its model")
        return self


class CaptionerKind:
    """The HeadKind of captioners (finetune.models.heads.head)."""

    kind = "captioner"
    Arguments: type[BaseModel] = CaptionerArguments

    def learn_assets(self, examples: Sequence[Example], arguments: CaptionerArguments) -> Assets:
        """The vocabulary of a training split, or of the file that `word_counts` names.

        Raises EmptyCaption naming the image, NoCaptions when there is nothing to learn; what `read_vocabulary` raises.
        """
        captions = [caption for example in examples for caption in example.captions]
        tokenizer = learn_tokenizer(
            arguments.tokenizer or "words",
            WordOptions(keep_case=arguments.keep_case, keep_punctuation=arguments.keep_punctuation),
            captions,
            pieces=arguments.pieces,
        )
        for example in examples:
            for caption in example.captions:
                words_of(caption, where=example.id, tokenizer=tokenizer)
        if arguments.word_counts is None:
            vocabulary = Vocabulary.learn(captions, arguments.min_count, tokenizer=tokenizer)
        else:
            vocabulary = _listed(Path(arguments.word_counts).expanduser(), tokenizer)
        initial: dict[str, bytes] = {}
        if arguments.word_vectors is not None:
            vectors = read_word_vectors(Path(arguments.word_vectors), vocabulary.words, size=arguments.embedding)
            print(vectors.summary(), file=sys.stderr, flush=True)
            initial[WORD_VECTORS] = vectors.to_bytes()
        return Assets(
            files=vocabulary.to_files(),
            vocabulary_size=len(vocabulary),
            tokenizer=vocabulary.tokenizer,
            initial=initial,
        )

    def targets(self, examples: Sequence[Example], arguments: CaptionerArguments, assets: Assets) -> TargetTable:
        """One row a caption: `tokens` int32 [N, max_words + 1] = its words' numbers, END, then PAD.

        A caption of more than `max_words` words is cut and has no END: the model must not learn to stop there.

        Raises:
            NoCaption: an image without captions.
            EmptyCaption: a caption without a word.
            AnotherVocabulary: `arguments` ask for another tokenizer than the vocabulary has.
        """
        vocabulary = _vocabulary(arguments, assets)
        images: list[int] = []
        rows: list[list[int]] = []
        cut = 0
        for index, example in enumerate(examples):
            if not example.captions:
                raise NoCaption(f"{example.id}: the image has no caption; a captioner needs one of every image")
            for caption in example.captions:
                numbers = [*vocabulary.encode(vocabulary.words_of(caption, where=example.id)), END]
                cut += len(numbers) > arguments.max_words + 1
                images.append(index)
                rows.append(numbers[: arguments.max_words] if len(numbers) > arguments.max_words + 1 else numbers)
        if cut:
            _log.warning(
                "%d of %d captions are longer than max_words = %d and were cut", cut, len(rows), arguments.max_words
            )
        tokens_NT = np.full((len(rows), arguments.max_words + 1), PAD, np.int32)
        for row, numbers in enumerate(rows):
            tokens_NT[row, : len(numbers)] = numbers
        image_N = np.asarray(images, np.int32)
        drawn = {} if arguments.self_critical_from is None else {"image": image_N}  # whose captions a row is judged by
        return TargetTable(image_index=image_N, arrays={"tokens": tokens_NT, **drawn})

    def reads_feature_map(self, arguments: CaptionerArguments) -> bool:
        """Whether it looks at places of the image."""
        return arguments.attention != "none"

    def build(
        self,
        *,
        arguments: CaptionerArguments,
        feature_dim: int,
        assets: Assets,
        seed: int,
        feature_map_shape: tuple[int, int, int] | None = None,
    ) -> CaptionerLayer:
        """A built layer with fresh weights, decided by `seed` and by pretrained word vectors, if there are.

        Args:
            feature_dim: D, values of a feature vector.
            feature_map_shape: (H, W, C), where it attends.
        """
        from finetune.models.heads.captioner_layer import CaptionerLayer

        layer = CaptionerLayer(
            arguments=arguments,
            vocabulary=_vocabulary(arguments, assets),
            row=FeatureRow(vector_size=feature_dim, map_shape=feature_map_shape),
            seed=seed,
            name="captioner",
        )
        layer.build((None, feature_dim))
        if WORD_VECTORS in assets.initial:
            layer.start_from_word_vectors(WordVectors.from_bytes(assets.initial[WORD_VECTORS]))
        return layer

    def plan_warnings(self, examples: Sequence[Example], arguments: CaptionerArguments, spec: JobSpec) -> list[str]:
        """Says what a plan asks for in vain."""
        start, said = spec.start_from, []
        if arguments.word_vectors is not None and start is not None:
            said.append(f"word_vectors are not read: the words' embeddings are those of {start}")
        if arguments.word_counts is not None and start is not None:
            said.append(f"word_counts is not read: the words are those of {start}")
        begins = arguments.self_critical_from
        if begins is not None and begins >= spec.train.steps:
            said.append(f"self_critical_from is {begins}, train.steps {spec.train.steps}: no caption is drawn")
        return said

    def resolved(self, arguments: CaptionerArguments, assets: Assets) -> dict[str, Any]:
        """Every argument, defaults included. The vocabulary isn't one: it is an asset of the version. Nor are the
        files of words and of word vectors, which decided what the version has."""
        kind, options = kind_and_options(assets.tokenizer or TOKENIZER)
        found = {"tokenizer": kind, **asdict(options), **dict.fromkeys(FILE_ARGUMENTS)}
        return arguments.model_dump(mode="json") | found


def _listed(path: Path, tokenizer: Tokenizer) -> Vocabulary:
    """The vocabulary of a file; says on stderr which of its words no caption will ever have."""
    vocabulary = read_vocabulary(path, tokenizer)
    odd = never_said(vocabulary)
    if odd:
        print(
            f"warning: {len(odd)} of the {len(vocabulary.words)} words of {path} are none to {vocabulary.tokenizer}: "
            f"{', '.join(map(repr, odd[:5]))}, …",
            file=sys.stderr,
            flush=True,
        )
    return vocabulary


def _vocabulary(arguments: CaptionerArguments, assets: Assets) -> Vocabulary:
    """Raises AnotherVocabulary; DamagedVocabulary, OtherTokenizer."""
    vocabulary = Vocabulary.from_files(assets.files)
    kind, options = kind_and_options(vocabulary.tokenizer)
    asked = arguments.model_dump(include={"tokenizer", *asdict(options)}, exclude_defaults=True)
    has = {"tokenizer": kind, **asdict(options)}
    other = {name: value for name, value in asked.items() if value != has[name]}
    if other:
        raise AnotherVocabulary(
            f"the vocabulary was learnt with the tokenizer {vocabulary.tokenizer!r}, the head's arguments ask for "
            + ", ".join(f"{name}={value}" for name, value in other.items()),
            hint="leave these out to go on with the vocabulary that there is",
        )
    if len(vocabulary) != (assets.vocabulary_size or len(vocabulary)):
        raise AnotherVocabulary(
            f"the vocabulary has {len(vocabulary)} words, the model was made for {assets.vocabulary_size}: "
            "it is another model's"
        )
    return vocabulary


CAPTIONER = CaptionerKind()
