"""Sampling: captions drawn word by word, batched over images, in one tf.function.

Takes a StepModel, feature rows and a Decoding. Gives DecodedCaptions. Next: `finetune.text.caption`.

A word is drawn by softmax(logits / temperature) among the likeliest `top_k` (Fan et al. 2018, arXiv:1805.04833) and the
fewest that have `top_p` of the probability (Holtzman et al. 2019, arXiv:1904.09751), by adding Gumbel noise and taking
the greatest. The noise depends on (seed, step, which caption of its image), so an image's captions are the same in any
company. A caption's log_prob is the model's own, by which another temperature would not have drawn it.

Shapes: B images, K captions of each, V words, T longest caption in words.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from finetune.models.decoding import DecodedCaptions, Limits, StepModel, per_caption, rows_of
from finetune.models.decoding_options import Decoding
from finetune.models.decoding_rules import NEVER, next_words, ranked, score
from finetune.text.vocabulary import END, PAD, START


class Sampler:
    """Draws from `model`. One trace for each batch, number of captions and length of n-grams; `traces` counts them."""

    def __init__(self, model: StepModel) -> None:
        self._model = model
        self._draw = tf.function(self._run)
        self.traces = 0

    def __call__(self, row_BX: tf.Tensor, decoding: Decoding) -> DecodedCaptions:
        tokens_BKT, log_probs_BK, lengths_BK, finished_BK = self._draw(
            tf.convert_to_tensor(row_BX, tf.float32),
            decoding.beam_size,
            decoding.no_repeat_ngram,
            Limits.of(decoding),
            tf.constant(decoding.seed, tf.int32),
        )
        return DecodedCaptions(
            tokens_BKT=tokens_BKT, log_probs_BK=log_probs_BK, lengths_BK=lengths_BK, finished_BK=finished_BK
        )

    def _run(
        self, row_BX: tf.Tensor, count: int, no_repeat: int, limits: Limits, seed: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        self.traces += 1  # runs when tracing only
        images = row_BX.shape[0]
        batch = images if images is not None else tf.shape(row_BX)[0]
        state, memory = self._model.start(row_BX)

        def step_once(
            step: tf.Tensor,
            last_BK: tf.Tensor,
            log_probs_BK: tf.Tensor,
            finished_BK: tf.Tensor,
            state_BKU: tuple[tf.Tensor, ...],
            tokens_BKT: tf.Tensor,
        ) -> tuple[Any, ...]:
            done = self._model.advance(tf.reshape(last_BK, [-1]), rows_of(state_BKU), memory)
            log_NV = tf.nn.log_softmax(self._model.logits(done.output_NU))
            size = log_NV.shape[-1]
            log_BKV = tf.reshape(log_NV, [batch, count, size])
            allowed_BKV = next_words(log_BKV, tokens_BKT, step=step, min_words=limits.min_words, no_repeat=no_repeat)
            noise_1KV = _gumbel([1, count, size], seed, step)
            word_BK = tf.argmax(_narrowed(allowed_BKV, limits) + noise_1KV, axis=-1, output_type=tf.int32)
            # After max_words words a caption may end; else it is cut off there.
            cut_BK = finished_BK | ((step >= limits.max_words) & (word_BK != END))
            more_BK = tf.gather(log_BKV, word_BK, batch_dims=2)
            log_probs_BK = tf.where(cut_BK, log_probs_BK, log_probs_BK + more_BK)
            speaks_BK = ~cut_BK & (word_BK != END)
            here_T = tf.range(tf.shape(tokens_BKT)[-1]) == step
            tokens_BKT = tf.where(here_T & speaks_BK[..., tf.newaxis], word_BK[..., tf.newaxis], tokens_BKT)
            state_BKU = tuple(tf.reshape(part_NU, [batch, count, part_NU.shape[-1]]) for part_NU in done.state)
            return step + 1, word_BK, log_probs_BK, finished_BK | (~cut_BK & (word_BK == END)), state_BKU, tokens_BKT

        loop = (
            tf.constant(0),
            tf.fill([batch, count], START),
            tf.zeros([batch, count]),
            tf.zeros([batch, count], tf.bool),
            per_caption(state, count),
            tf.fill([batch, count, limits.max_words], PAD),
        )
        shapes = (
            tf.TensorShape([]),
            *[tf.TensorShape([images, count])] * 3,
            tuple(tf.TensorShape([images, count, part.shape[-1]]) for part in state),
            tf.TensorShape([images, count, None]),
        )
        _, _, log_probs_BK, finished_BK, _, tokens_BKT = tf.while_loop(
            lambda step, last, log_probs, finished, *_: (step <= limits.max_words) & ~tf.reduce_all(finished),
            step_once,
            loop,
            shape_invariants=shapes,
            parallel_iterations=1,
        )
        lengths_BK = tf.reduce_sum(tf.cast(tokens_BKT != PAD, tf.int32), axis=-1)
        score_BK = score(log_probs_BK, lengths_BK, finished_BK, limits.alpha)
        return ranked(tokens_BKT, log_probs_BK, lengths_BK, finished_BK, score_BK)


def _narrowed(log_BKV: tf.Tensor, limits: Limits) -> tf.Tensor:
    """log_BKV / temperature, with NEVER for what top_k and top_p leave out. The likeliest word always stays."""
    size = log_BKV.shape[-1]
    scaled_BKV = tf.where(log_BKV > NEVER / 2, log_BKV / limits.temperature, NEVER)
    falling_BKV = tf.sort(scaled_BKV, axis=-1, direction="DESCENDING")
    place_V = tf.range(size)
    kept_BKV = tf.broadcast_to((limits.top_k <= 0) | (place_V < limits.top_k), tf.shape(falling_BKV))
    share_BKV = tf.nn.softmax(tf.where(kept_BKV, falling_BKV, NEVER))
    kept_BKV &= tf.cumsum(share_BKV, axis=-1, exclusive=True) < limits.top_p
    kept_BKV |= place_V == 0
    least_BK1 = tf.reduce_min(tf.where(kept_BKV, falling_BKV, -NEVER), axis=-1, keepdims=True)
    return tf.where(scaled_BKV >= least_BK1, scaled_BKV, NEVER)


def _gumbel(shape: list[int], seed: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
    uniform = tf.random.stateless_uniform(shape, tf.stack([seed, step]), minval=1e-30, maxval=1.0)
    return -tf.math.log(-tf.math.log(tf.maximum(uniform, 1e-30)))
