"""Beam search: from feature vectors to the likeliest captions, in one tf.function.

Takes a step function (`StepModel`, the captioner layer) and features. Gives DecodedCaptions. Next:
`finetune.text.caption`.

The beam of Xu et al. (2015, arXiv:1502.03044): a caption that ends keeps its place and no longer takes part,
so the beam of live captions shrinks, and the search is over when none is left. With beam size 1 that is greedy search;
with a beam as wide as there are captions it is exhaustive. Captions are ranked at the end, by log_prob / length^α
(Wu et al. 2016, arXiv:1609.08144, without the constant 5), words and end token counted; α = 0 ranks by probability.

Shapes: B images, K beams, V words, T longest caption in words, U units.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import tensorflow as tf

from finetune.text.vocabulary import END, PAD, START, UNKNOWN
from zoo.errors import InvalidArgument

_NEVER = -1e30  # log-probability of what can't be: finite, so that sums and products of it stay numbers
_DEAD = -1e29  # below it: no caption in this place


class StepModel(Protocol):
    """What the search needs of a captioner. N is any number of rows."""

    def start(self, feature_BD: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """State (h, c) before the first word."""

    def embed_words(self, words: tf.Tensor) -> tf.Tensor: ...

    def input_gates(self, inputs: tf.Tensor) -> tf.Tensor: ...

    def recur(self, gates_N4U: tf.Tensor, h_NU: tf.Tensor, c_NU: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]: ...

    def logits(self, h_NU: tf.Tensor) -> tf.Tensor: ...


@dataclass(frozen=True, kw_only=True)
class DecodedCaptions:
    """K captions of each of B images: those that ended come first, then by falling rank.

    `log_probs_BK` is the natural-log sum over the words and, if finished, the end token; -inf where there is no caption
    (a beam wider than there are captions).
    """

    tokens_BKT: tf.Tensor  # int32, words, then PAD; no END
    log_probs_BK: tf.Tensor  # float32
    lengths_BK: tf.Tensor  # int32, words without the end token
    finished_BK: tf.Tensor  # bool


@dataclass(frozen=True, kw_only=True)
class _Compiled:
    """The search for one image with fixed settings."""

    beam_size: int
    max_words: int
    length_penalty: float
    run: Callable[[tf.Tensor], tuple[tf.Tensor, ...]]

    def fits(self, beam_size: int, max_words: int, length_penalty: float) -> bool:
        return (beam_size, max_words, length_penalty) == (self.beam_size, self.max_words, self.length_penalty)


class BeamSearch:
    """Searches with `model`. One trace for each pair of batch and beam size; `traces` counts them."""

    def __init__(self, model: StepModel) -> None:
        self._model = model
        self._search = tf.function(self._run)
        self._compiled: _Compiled | None = None
        self.traces = 0

    def compile(self, feature_dim: int, *, beam_size: int, max_words: int, length_penalty: float) -> None:
        """Compiles the search for one image with XLA, for calls with just these settings; half a second.

        A step is some forty small operations, whose dispatch takes longer than their arithmetic: fused, a caption of 13
        words with 512 units took 2.4 ms instead of 5.8 on two cores. Results differ in their last bits.
        """

        def search(feature_BD: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return self._run(
                feature_BD, beam_size, tf.constant(max_words, tf.int32), tf.constant(length_penalty, tf.float32)
            )

        signature = [tf.TensorSpec([1, feature_dim], tf.float32)]
        run = tf.function(search, input_signature=signature, jit_compile=True)
        run(tf.zeros([1, feature_dim]))
        self._compiled = _Compiled(beam_size=beam_size, max_words=max_words, length_penalty=length_penalty, run=run)

    def __call__(
        self, feature_BD: tf.Tensor, *, beam_size: int, max_words: int, length_penalty: float
    ) -> DecodedCaptions:
        """Raises InvalidArgument for a beam or a length below 1 and for a negative or non-finite penalty."""
        if beam_size < 1 or max_words < 1:
            raise InvalidArgument(f"beam size and max_words must be 1 or more, got {beam_size} and {max_words}")
        if not 0 <= length_penalty <= 10:
            raise InvalidArgument(f"the length penalty must be from 0 to 10, got {length_penalty}")
        feature_BD = tf.convert_to_tensor(feature_BD, tf.float32)
        compiled = self._compiled
        if compiled is not None and feature_BD.shape[0] == 1 and compiled.fits(beam_size, max_words, length_penalty):
            found = compiled.run(feature_BD)
        else:
            found = self._search(
                feature_BD,
                int(beam_size),
                tf.constant(max_words, tf.int32),
                tf.constant(length_penalty, tf.float32),
            )
        tokens_BKT, log_probs_BK, lengths_BK, finished_BK = found
        return DecodedCaptions(
            tokens_BKT=tokens_BKT, log_probs_BK=log_probs_BK, lengths_BK=lengths_BK, finished_BK=finished_BK
        )

    def _run(self, feature_BD: tf.Tensor, beam: int, max_words: tf.Tensor, alpha: tf.Tensor) -> tuple[tf.Tensor, ...]:
        self.traces += 1  # runs when tracing only
        batch = feature_BD.shape[0] if feature_BD.shape[0] is not None else tf.shape(feature_BD)[0]
        h_BU, c_BU = self._model.start(feature_BD)
        units = h_BU.shape[-1]
        state = (
            tf.constant(0),
            tf.fill([batch, beam], START),  # the last word of each beam
            tf.tile(tf.one_hot(0, beam, 0.0, _NEVER)[tf.newaxis], [batch, 1]),  # one live beam: an empty caption
            tf.zeros([batch, beam], tf.int32),
            tf.zeros([batch, beam], tf.bool),
            tf.repeat(h_BU[:, tf.newaxis], beam, axis=1),
            tf.repeat(c_BU[:, tf.newaxis], beam, axis=1),
            tf.fill([batch, beam, max_words], PAD),
        )
        shapes = (
            tf.TensorShape([]),
            *[tf.TensorShape([feature_BD.shape[0], beam])] * 4,
            *[tf.TensorShape([feature_BD.shape[0], beam, units])] * 2,
            tf.TensorShape([feature_BD.shape[0], beam, None]),
        )
        _, _, log_probs_BK, lengths_BK, finished_BK, _, _, tokens_BKT = tf.while_loop(
            lambda step, last, log_probs, lengths, finished, *_: (
                (step <= max_words) & tf.reduce_any(_open(log_probs, lengths, finished, max_words, alpha))
            ),
            lambda *state: self._step(beam, max_words, alpha, *state),
            state,
            shape_invariants=shapes,
            parallel_iterations=1,
        )
        return _ranked(tokens_BKT, log_probs_BK, lengths_BK, finished_BK, alpha)

    def _step(
        self,
        beam: int,
        max_words: tf.Tensor,
        alpha: tf.Tensor,
        step: tf.Tensor,
        last_BK: tf.Tensor,
        log_probs_BK: tf.Tensor,
        lengths_BK: tf.Tensor,
        finished_BK: tf.Tensor,
        h_BKU: tf.Tensor,
        c_BKU: tf.Tensor,
        tokens_BKT: tf.Tensor,
    ) -> tuple[Any, ...]:
        units = h_BKU.shape[-1]
        h_NU, c_NU = self._model.recur(
            self._model.input_gates(self._model.embed_words(tf.reshape(last_BK, [-1]))),
            tf.reshape(h_BKU, [-1, units]),
            tf.reshape(c_BKU, [-1, units]),
        )
        log_NV = tf.nn.log_softmax(self._model.logits(h_NU))
        size = log_NV.shape[-1]
        shape = tf.shape(last_BK)
        log_BKV = _allowed(tf.reshape(log_NV, [shape[0], beam, size]), final=step >= max_words)
        total_BKV = tf.maximum(log_probs_BK[..., tf.newaxis] + log_BKV, _NEVER)
        # What has ended stays, as its own only continuation and before all others; PAD stands for that. So does every
        # caption of an image whose search is over, or its result would depend on the batch's other images.
        holds_BK = finished_BK | ~_open(log_probs_BK, lengths_BK, finished_BK, max_words, alpha)[:, tf.newaxis]
        stay_V = tf.where(tf.range(size) == PAD, -_NEVER, _NEVER)
        rank_BKV = tf.where(holds_BK[..., tf.newaxis], stay_V, total_BKV)

        rank_BK, best_BK = tf.math.top_k(tf.reshape(rank_BKV, [shape[0], -1]), k=beam)
        parent_BK, word_BK = best_BK // size, best_BK % size
        held_BK = tf.gather(holds_BK, parent_BK, batch_dims=1)
        was_finished_BK = tf.gather(finished_BK, parent_BK, batch_dims=1)
        exists_BK = rank_BK > _DEAD  # a beam can be wider than there are continuations
        stays_BK = exists_BK & (held_BK | (word_BK == PAD))  # over already, or cut off now
        ends_BK = exists_BK & ~stays_BK & (word_BK == END)
        speaks_BK = exists_BK & ~stays_BK & ~ends_BK
        before_BK = tf.gather(log_probs_BK, parent_BK, batch_dims=1)
        after_BK = tf.where(stays_BK, before_BK, tf.where(exists_BK, rank_BK, _NEVER))

        here_T = tf.range(tf.shape(tokens_BKT)[-1]) == step
        tokens_BKT = tf.gather(tokens_BKT, parent_BK, batch_dims=1)
        tokens_BKT = tf.where(here_T & speaks_BK[..., tf.newaxis], word_BK[..., tf.newaxis], tokens_BKT)
        return (
            step + 1,
            word_BK,
            after_BK,
            tf.gather(lengths_BK, parent_BK, batch_dims=1) + tf.cast(speaks_BK, tf.int32),
            (stays_BK & was_finished_BK) | ends_BK,
            tf.gather(tf.reshape(h_NU, [shape[0], beam, units]), parent_BK, batch_dims=1),
            tf.gather(tf.reshape(c_NU, [shape[0], beam, units]), parent_BK, batch_dims=1),
            tokens_BKT,
        )


def _allowed(log_BKV: tf.Tensor, *, final: tf.Tensor) -> tf.Tensor:
    """Log-probabilities of what may follow: never PAD, START or UNKNOWN.

    In the final step, after `max_words` words, a caption may only end. PAD then stands for being cut off, worth as much
    as the likeliest word: so a caption ends there only where it would have ended with more room too.
    """
    size = log_BKV.shape[-1]
    number_V = tf.range(size)
    banned_V = (number_V == PAD) | (number_V == START) | (number_V == UNKNOWN)
    words_BKV = tf.where(banned_V, _NEVER, log_BKV)
    word_V = ~banned_V & (number_V != END)
    likeliest_BK1 = tf.reduce_max(tf.where(word_V, log_BKV, _NEVER), axis=-1, keepdims=True)
    last_BKV = tf.where(number_V == PAD, likeliest_BK1, tf.where(number_V == END, log_BKV, _NEVER))
    return tf.where(final, last_BKV, words_BKV)


def _open(
    log_probs_BK: tf.Tensor, lengths_BK: tf.Tensor, finished_BK: tf.Tensor, max_words: tf.Tensor, alpha: tf.Tensor
) -> tf.Tensor:
    """[B]: whether a live caption may still beat the best that has ended.

    More words only lower log_prob, so the most it can reach is today's log_prob at the greatest length.
    """
    live_BK = ~finished_BK & (log_probs_BK > _DEAD)
    bound_BK = log_probs_BK / tf.cast(max_words + 1, tf.float32) ** alpha
    bound_B = tf.reduce_max(tf.where(live_BK, bound_BK, 2 * _NEVER), axis=1)
    best_B = tf.reduce_max(tf.where(finished_BK, _score(log_probs_BK, lengths_BK, finished_BK, alpha), _NEVER), axis=1)
    return bound_B > best_B


def _score(log_probs_BK: tf.Tensor, lengths_BK: tf.Tensor, finished_BK: tf.Tensor, alpha: tf.Tensor) -> tf.Tensor:
    said_BK = tf.cast(tf.maximum(lengths_BK + tf.cast(finished_BK, tf.int32), 1), tf.float32)
    return log_probs_BK / said_BK**alpha


def _ranked(
    tokens_BKT: tf.Tensor, log_probs_BK: tf.Tensor, lengths_BK: tf.Tensor, finished_BK: tf.Tensor, alpha: tf.Tensor
) -> tuple[tf.Tensor, ...]:
    """The beams sorted: ended ones before cut-off ones before empty places, each by falling score."""
    score_BK = _score(log_probs_BK, lengths_BK, finished_BK, alpha)
    order_BK = tf.argsort(
        tf.where(finished_BK, score_BK, score_BK + _NEVER / 1e10), axis=1, direction="DESCENDING", stable=True
    )
    log_probs_BK = tf.where(log_probs_BK > _DEAD, log_probs_BK, float("-inf"))
    return tuple(
        tf.gather(values, order_BK, batch_dims=1) for values in (tokens_BKT, log_probs_BK, lengths_BK, finished_BK)
    )
