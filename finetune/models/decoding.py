"""Decoding: from what a head reads of images to captions, each way in one tf.function.

Takes a step function (`StepModel`, the captioner layer), feature rows and a Decoding. Gives DecodedCaptions. Next:
`finetune.models.beam_search`, `finetune.models.sampling`; `finetune.text.caption`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import tensorflow as tf

from finetune.models.decoders.attention import Memory
from finetune.models.decoders.cells import State
from finetune.models.decoders.decoder import Step
from finetune.models.decoding_options import Decoding


class StepModel(Protocol):
    """What decoding needs of a captioner. N is B images times K captions, an image's rows together."""

    places: int | None  # R, of a model that looks at places

    def start(self, row_BX: tf.Tensor) -> tuple[State, Memory]:
        """State before the first word, and what is computed once an image."""

    def advance(self, word_N: tf.Tensor, state: State, memory: Memory) -> Step:
        """One step: what the words lead to."""

    def logits(self, output_NU: tf.Tensor) -> tf.Tensor:
        """[N, V]."""


@dataclass(frozen=True, kw_only=True)
class DecodedCaptions:
    """K captions of each of B images: those that ended come first, then by falling rank.

    `log_probs_BK` is the natural-log sum over the words and, if finished, the end token, whatever limits, groups or
    temperature they were found by; -inf where there is no caption (a beam wider than there are captions).
    """

    tokens_BKT: tf.Tensor  # int32, words, then PAD; no END
    log_probs_BK: tf.Tensor  # float32
    lengths_BK: tf.Tensor  # int32, words without the end token
    finished_BK: tf.Tensor  # bool


class Limits(NamedTuple):
    """The numbers of a Decoding as tensors: another value is no other trace."""

    max_words: tf.Tensor
    min_words: tf.Tensor
    alpha: tf.Tensor
    coverage: tf.Tensor
    diversity: tf.Tensor
    temperature: tf.Tensor
    top_k: tf.Tensor
    top_p: tf.Tensor

    @classmethod
    def of(cls, decoding: Decoding) -> Limits:
        return cls(
            max_words=tf.constant(decoding.max_words, tf.int32),
            min_words=tf.constant(decoding.min_words, tf.int32),
            alpha=tf.constant(decoding.length_penalty, tf.float32),
            coverage=tf.constant(decoding.coverage, tf.float32),
            diversity=tf.constant(decoding.diversity, tf.float32),
            temperature=tf.constant(decoding.temperature, tf.float32),
            top_k=tf.constant(min(decoding.top_k, 2**31 - 1), tf.int32),
            top_p=tf.constant(decoding.top_p, tf.float32),
        )


def per_caption(state: State, beam: int) -> State:
    """An image's state [B, U] for each of its captions: [B, K, U]."""
    return tuple(tf.repeat(part_BU[:, tf.newaxis], beam, axis=1) for part_BU in state)


def rows_of(state_BKU: State) -> State:
    """[B, K, U] → [N, U]."""
    return tuple(tf.reshape(part, [-1, part.shape[-1]]) for part in state_BKU)
