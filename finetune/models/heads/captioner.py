"""Head kind `captioner`: Show and Tell (Vinyals et al. 2015, arXiv:1411.4555), without its weights.

Takes captions of a split. Gives a vocabulary and target rows, one a caption. Next:
`finetune.models.heads.captioner_layer`, which is imported only to build (this module needs no TensorFlow).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from finetune.data.source import Example
from finetune.models.heads.head import Assets, TargetTable
from finetune.text.tokenizer import TOKENIZER
from finetune.text.vocabulary import END, PAD, VOCABULARY_FILE, Vocabulary, words_of
from zoo.errors import InvalidArgument

if TYPE_CHECKING:
    from finetune.models.heads.captioner_layer import CaptionerLayer

_log = logging.getLogger(__name__)
_Share = Annotated[float, Field(ge=0, lt=1)]


class NoCaption(InvalidArgument):
    """An image without a caption where one is needed."""


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
    min_count: Annotated[int, Field(ge=1)] = 4  # rarer words of the training split become <unk>
    max_words: Annotated[int, Field(ge=1, le=200)] = 30  # longest caption, in training and when captioning
    beam_size: Annotated[int, Field(ge=1, le=64)] = 3
    length_penalty: Annotated[float, Field(ge=0, le=2)] = 0.7  # α: captions are ranked by log_prob / length^α


class CaptionerKind:
    """The HeadKind of captioners (finetune.models.heads.head)."""

    kind = "captioner"
    Arguments: type[BaseModel] = CaptionerArguments

    def learn_assets(self, examples: Sequence[Example], arguments: CaptionerArguments) -> Assets:
        """The vocabulary of a training split.

        Raises EmptyCaption naming the image, NoCaptions when there is nothing to learn.
        """
        for example in examples:
            for caption in example.captions:
                words_of(caption, where=example.id)
        vocabulary = Vocabulary.learn((c for e in examples for c in e.captions), arguments.min_count)
        return Assets(
            files={VOCABULARY_FILE: vocabulary.to_bytes()}, vocabulary_size=len(vocabulary), tokenizer=TOKENIZER
        )

    def targets(self, examples: Sequence[Example], arguments: CaptionerArguments, assets: Assets) -> TargetTable:
        """One row a caption: `tokens` int32 [N, max_words + 1] = its words' numbers, END, then PAD.

        A caption of more than `max_words` words is cut and has no END: the model must not learn to stop there.

        Raises:
            NoCaption: an image without captions.
            EmptyCaption: a caption without a word.
        """
        vocabulary = Vocabulary.from_bytes(assets.files[VOCABULARY_FILE])
        images: list[int] = []
        rows: list[list[int]] = []
        cut = 0
        for index, example in enumerate(examples):
            if not example.captions:
                raise NoCaption(f"{example.id}: the image has no caption; a captioner needs one of every image")
            for caption in example.captions:
                numbers = [*vocabulary.encode(words_of(caption, where=example.id)), END]
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
        return TargetTable(image_index=np.asarray(images, np.int32), arrays={"tokens": tokens_NT})

    def build(self, *, arguments: CaptionerArguments, feature_dim: int, assets: Assets, seed: int) -> CaptionerLayer:
        """A built layer with fresh weights, decided by `seed`, for feature vectors of `feature_dim` values."""
        from finetune.models.heads.captioner_layer import CaptionerLayer

        vocabulary = Vocabulary.from_bytes(assets.files[VOCABULARY_FILE])
        layer = CaptionerLayer(arguments=arguments, vocabulary=vocabulary, seed=seed, name="captioner")
        layer.build((None, feature_dim))
        return layer

    def resolved(self, arguments: CaptionerArguments, assets: Assets) -> dict[str, Any]:
        """Every argument, defaults included. The vocabulary isn't one: it is an asset of the version."""
        del assets
        return arguments.model_dump(mode="json")


CAPTIONER = CaptionerKind()
