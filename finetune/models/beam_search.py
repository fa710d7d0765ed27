"""Beam search, batched over images, in one tf.function.

Takes a StepModel, feature rows and a Decoding. Gives DecodedCaptions. Next: `finetune.text.caption`.

The beam of Xu et al. (2015, arXiv:1502.03044): a caption that ends keeps its place and no longer takes part,
so the beam of live captions shrinks, and the search is over when none is left. With beam size 1 that is greedy search;
with a beam as wide as there are captions it is exhaustive. Captions are ranked at the end, by log_prob / length^α
(Wu et al. 2016, arXiv:1609.08144, without the constant 5), words and end token counted; α = 0 ranks by probability.
With several groups (Vijayakumar et al. 2016, arXiv:1610.02424) each is such a search, one after the other in each step.

Shapes: B images, K beams in G groups, V words, T longest caption in words, U units, R places.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from finetune.models.decoding import DecodedCaptions, Limits, StepModel, per_caption, rows_of
from finetune.models.decoding_options import Decoding
from finetune.models.decoding_rules import DEAD, NEVER, next_words, ranked, score
from finetune.text.vocabulary import END, PAD, START

_UNSEEN = 1e-6  # attention to a place that no word looked at


@dataclass(frozen=True, kw_only=True)
class _Compiled:
    """The search for one image with fixed settings."""

    decoding: Decoding
    run: Callable[[tf.Tensor], tuple[tf.Tensor, ...]]


class BeamSearch:
    """Searches with `model`. One trace for each batch, beam size, number of groups and length of n-grams; `traces`
    counts them."""

    def __init__(self, model: StepModel) -> None:
        self._model = model
        self._search = tf.function(self._run)
        self._compiled: _Compiled | None = None
        self.traces = 0

    def compile(self, row_size: int, decoding: Decoding) -> None:
        """Compiles the search for one image with XLA, for calls with just these settings; half a second.

        A step is some forty small operations, whose dispatch takes longer than their arithmetic: fused, a caption of 13
        words with 512 units took 2.4 ms instead of 5.8 on two cores. Results differ in their last bits.
        """

        def search(row_BX: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return self._run(row_BX, *_fixed(decoding), Limits.of(decoding))

        signature = [tf.TensorSpec([1, row_size], tf.float32)]
        run = tf.function(search, input_signature=signature, jit_compile=True)
        run(tf.zeros([1, row_size]))
        self._compiled = _Compiled(decoding=decoding, run=run)

    def __call__(self, row_BX: tf.Tensor, decoding: Decoding) -> DecodedCaptions:
        row_BX = tf.convert_to_tensor(row_BX, tf.float32)
        compiled = self._compiled
        if compiled is not None and row_BX.shape[0] == 1 and compiled.decoding == decoding:
            found = compiled.run(row_BX)
        else:
            found = self._search(row_BX, *_fixed(decoding), Limits.of(decoding))
        tokens_BKT, log_probs_BK, lengths_BK, finished_BK = found
        return DecodedCaptions(
            tokens_BKT=tokens_BKT, log_probs_BK=log_probs_BK, lengths_BK=lengths_BK, finished_BK=finished_BK
        )

    def _run(
        self, row_BX: tf.Tensor, beam: int, groups: int, no_repeat: int, covers: bool, limits: Limits
    ) -> tuple[tf.Tensor, ...]:
        self.traces += 1  # runs when tracing only
        search = _Search(
            model=self._model,
            memory=(),
            beam=beam,
            groups=groups,
            no_repeat=no_repeat,
            limits=limits,
        )
        return search.run(row_BX, covers=covers)


def _fixed(decoding: Decoding) -> tuple[int, int, int, bool]:
    """What decides a trace."""
    return decoding.beam_size, decoding.beam_groups, decoding.no_repeat_ngram, decoding.coverage > 0


class _Search:
    """One search while it is traced."""

    def __init__(
        self, *, model: StepModel, memory: Any, beam: int, groups: int, no_repeat: int, limits: Limits
    ) -> None:
        self._model = model
        self._memory = memory
        self._beam = beam
        self._groups = groups
        self._no_repeat = no_repeat
        self._limits = limits

    def run(self, row_BX: tf.Tensor, *, covers: bool) -> tuple[tf.Tensor, ...]:
        beam, limits, images = self._beam, self._limits, row_BX.shape[0]
        batch = images if images is not None else tf.shape(row_BX)[0]
        state, self._memory = self._model.start(row_BX)
        looked = (tf.zeros([batch, beam, self._model.places or 0]),) if covers else ()
        first_K = tf.tile(tf.one_hot(0, beam // self._groups, 0.0, NEVER), [self._groups])  # a live beam a group
        loop = (
            tf.constant(0),
            tf.fill([batch, beam], START),  # the last word of each beam
            tf.tile(first_K[tf.newaxis], [batch, 1]),
            tf.zeros([batch, beam], tf.int32),
            tf.zeros([batch, beam], tf.bool),
            per_caption(state, beam),
            looked,
            tf.fill([batch, beam, limits.max_words], PAD),
        )
        shapes = (
            tf.TensorShape([]),
            *[tf.TensorShape([images, beam])] * 4,
            tuple(tf.TensorShape([images, beam, part.shape[-1]]) for part in state),
            tuple(tf.TensorShape([images, beam, part.shape[-1]]) for part in looked),
            tf.TensorShape([images, beam, None]),
        )
        _, _, log_probs_BK, lengths_BK, finished_BK, _, looked, tokens_BKT = tf.while_loop(
            lambda step, last, log_probs, lengths, finished, state, looked, tokens: (
                (step <= limits.max_words) & tf.reduce_any(self._open(log_probs, lengths, finished, looked))
            ),
            self._step,
            loop,
            shape_invariants=shapes,
            parallel_iterations=1,
        )
        score_BK = self._score(log_probs_BK, lengths_BK, finished_BK, looked)
        return ranked(tokens_BKT, log_probs_BK, lengths_BK, finished_BK, score_BK)

    def _step(
        self,
        step: tf.Tensor,
        last_BK: tf.Tensor,
        log_probs_BK: tf.Tensor,
        lengths_BK: tf.Tensor,
        finished_BK: tf.Tensor,
        state_BKU: tuple[tf.Tensor, ...],
        looked: tuple[tf.Tensor, ...],
        tokens_BKT: tf.Tensor,
    ) -> tuple[Any, ...]:
        done = self._model.advance(tf.reshape(last_BK, [-1]), rows_of(state_BKU), self._memory)
        log_NV = tf.nn.log_softmax(self._model.logits(done.output_NU))
        size = log_NV.shape[-1]
        images, beam = tf.shape(last_BK)[0], self._beam
        log_BKV = self._may_follow(tf.reshape(log_NV, [images, beam, size]), tokens_BKT, step)
        total_BKV = tf.maximum(log_probs_BK[..., tf.newaxis] + log_BKV, NEVER)
        # What has ended stays, as its own only continuation and before all others; PAD stands for that. So does every
        # caption of a group whose search is over, or its result would depend on the batch's other images.
        over_BG = ~self._open(log_probs_BK, lengths_BK, finished_BK, looked)
        holds_BK = finished_BK | tf.repeat(over_BG, beam // self._groups, axis=1)
        stay_V = tf.where(tf.range(size) == PAD, -NEVER, NEVER)
        rank_BKV = tf.where(holds_BK[..., tf.newaxis], stay_V, total_BKV)

        rank_BK, parent_BK, word_BK = self._choose(rank_BKV, total_BKV)
        held_BK = tf.gather(holds_BK, parent_BK, batch_dims=1)
        was_finished_BK = tf.gather(finished_BK, parent_BK, batch_dims=1)
        exists_BK = rank_BK > DEAD  # a beam can be wider than there are continuations
        stays_BK = exists_BK & (held_BK | (word_BK == PAD))  # over already, or cut off now
        ends_BK = exists_BK & ~stays_BK & (word_BK == END)
        speaks_BK = exists_BK & ~stays_BK & ~ends_BK
        before_BK = tf.gather(log_probs_BK, parent_BK, batch_dims=1)
        after_BK = tf.where(stays_BK, before_BK, tf.where(exists_BK, rank_BK, NEVER))

        here_T = tf.range(tf.shape(tokens_BKT)[-1]) == step
        tokens_BKT = tf.gather(tokens_BKT, parent_BK, batch_dims=1)
        tokens_BKT = tf.where(here_T & speaks_BK[..., tf.newaxis], word_BK[..., tf.newaxis], tokens_BKT)
        return (
            step + 1,
            word_BK,
            after_BK,
            tf.gather(lengths_BK, parent_BK, batch_dims=1) + tf.cast(speaks_BK, tf.int32),
            (stays_BK & was_finished_BK) | ends_BK,
            tuple(
                tf.gather(tf.reshape(part_NU, [images, beam, part_NU.shape[-1]]), parent_BK, batch_dims=1)
                for part_NU in done.state
            ),
            self._looked(looked, done.weights_NR, parent_BK, speaks_BK),
            tokens_BKT,
        )

    def _may_follow(self, log_BKV: tf.Tensor, tokens_BKT: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        """Log-probabilities of what may follow.

        In the final step, after `max_words` words, a caption may only end. PAD then stands for being cut off, worth as
        much as the likeliest word: so a caption ends there only where it would have ended with more room too.
        """
        allowed_BKV = next_words(
            log_BKV, tokens_BKT, step=step, min_words=self._limits.min_words, no_repeat=self._no_repeat
        )
        number_V = tf.range(log_BKV.shape[-1])
        likeliest_BK1 = tf.reduce_max(tf.where(number_V == END, NEVER, allowed_BKV), axis=-1, keepdims=True)
        final_BKV = tf.where(number_V == PAD, likeliest_BK1, tf.where(number_V == END, log_BKV, NEVER))
        return tf.where(step >= self._limits.max_words, final_BKV, allowed_BKV)

    def _choose(self, rank_BKV: tf.Tensor, total_BKV: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """The best continuations of each group, each [B, K]: rank (total where groups are charged), parent, word."""
        images, size = tf.shape(rank_BKV)[0], rank_BKV.shape[-1]
        if self._groups == 1:
            rank_BK, best_BK = tf.math.top_k(tf.reshape(rank_BKV, [images, -1]), k=self._beam)
            return rank_BK, best_BK // size, best_BK % size
        each = self._beam // self._groups
        chosen_BV = tf.zeros([images, size])  # how often earlier groups said a word in this step
        parts = []
        for first in range(0, self._beam, each):
            charged = rank_BKV[:, first : first + each] - self._limits.diversity * chosen_BV[:, tf.newaxis]
            rank_BE, best_BE = tf.math.top_k(tf.reshape(charged, [images, -1]), k=each)
            word_BE = best_BE % size
            said_BE = (rank_BE > DEAD) & (word_BE != PAD)
            chosen_BV += tf.reduce_sum(tf.one_hot(tf.where(said_BE, word_BE, -1), size), axis=1)
            parts.append((rank_BE, best_BE // size + first, word_BE))
        rank_BK, parent_BK, word_BK = (tf.concat(values, axis=1) for values in zip(*parts, strict=True))
        flat_BX = tf.reshape(total_BKV, [images, -1])
        total_BK = tf.gather(flat_BX, parent_BK * size + word_BK, batch_dims=1)
        # What stays ranks above everything, which its total doesn't say.
        return tf.where((rank_BK > DEAD) & (rank_BK < -DEAD), total_BK, rank_BK), parent_BK, word_BK

    def _looked(
        self, looked: tuple[tf.Tensor, ...], weights_NR: Any, parent_BK: tf.Tensor, speaks_BK: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        """Attention to each place so far, where coverage counts."""
        if not looked:
            return ()
        shape = tf.shape(looked[0])
        now_BKR = tf.gather(looked[0] + tf.reshape(weights_NR, shape), parent_BK, batch_dims=1)
        before_BKR = tf.gather(looked[0], parent_BK, batch_dims=1)
        return (tf.where(speaks_BK[..., tf.newaxis], now_BKR, before_BKR),)

    def _score(
        self, log_probs_BK: tf.Tensor, lengths_BK: tf.Tensor, finished_BK: tf.Tensor, looked: tuple[tf.Tensor, ...]
    ) -> tf.Tensor:
        score_BK = score(log_probs_BK, lengths_BK, finished_BK, self._limits.alpha)
        if not looked:
            return score_BK
        seen_BKR = tf.clip_by_value(looked[0], _UNSEEN, 1.0)
        return score_BK + self._limits.coverage * tf.reduce_mean(tf.math.log(seen_BKR), axis=-1)

    def _open(
        self, log_probs_BK: tf.Tensor, lengths_BK: tf.Tensor, finished_BK: tf.Tensor, looked: tuple[tf.Tensor, ...]
    ) -> tf.Tensor:
        """[B, G]: whether a live caption of the group may still beat the best of it that has ended.

        More words only lower log_prob, and coverage only lowers a rank, so the most that it can reach is today's
        log_prob at the greatest length.
        """
        alpha = self._limits.alpha
        live_BK = ~finished_BK & (log_probs_BK > DEAD)
        bound_BK = log_probs_BK / tf.cast(self._limits.max_words + 1, tf.float32) ** alpha
        bound_B = self._most(tf.where(live_BK, bound_BK, 2 * NEVER))
        ended_BK = self._score(log_probs_BK, lengths_BK, finished_BK, looked)
        return bound_B > self._most(tf.where(finished_BK, ended_BK, NEVER))

    def _most(self, value_BK: tf.Tensor) -> tf.Tensor:
        """[B, G]: the greatest of each group."""
        return tf.reduce_max(tf.reshape(value_BK, [-1, self._groups, self._beam // self._groups]), axis=2)
