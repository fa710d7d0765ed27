"""What may be said next, and how captions are ranked: the rules that beam search and sampling share.

Takes log-probabilities and what has been said. Gives log-probabilities and orders. Next: `finetune.models.beam_search`.

Shapes: B images, K captions of each, V words, T longest caption in words.
"""

from __future__ import annotations

import tensorflow as tf

from finetune.text.vocabulary import END, PAD, START, UNKNOWN

NEVER = -1e30  # log-probability of what can't be: finite, so that sums and products of it stay numbers
DEAD = -1e29  # below it: no caption in this place


def next_words(
    log_BKV: tf.Tensor, tokens_BKT: tf.Tensor, *, step: tf.Tensor, min_words: tf.Tensor, no_repeat: int
) -> tf.Tensor:
    """Log-probabilities of what may follow `step` words; what may not has NEVER.

    Never PAD, START or UNKNOWN; no end before `min_words`, no word that makes `no_repeat` words in a row a second time.
    Where that leaves nothing a caption may end, however short.
    """
    number_V = tf.range(log_BKV.shape[-1])
    banned = (number_V == PAD) | (number_V == START) | (number_V == UNKNOWN)
    if no_repeat:
        banned |= _repeats(tokens_BKT, step, no_repeat, log_BKV.shape[-1])
    allowed_BKV = tf.where(banned, NEVER, log_BKV)
    words_BKV = tf.where(number_V == END, NEVER, allowed_BKV)
    stuck_BK1 = tf.reduce_max(words_BKV, axis=-1, keepdims=True) <= DEAD
    too_short = (step < min_words) & ~stuck_BK1
    return tf.where(too_short, words_BKV, allowed_BKV)


def _repeats(tokens_BKT: tf.Tensor, step: tf.Tensor, n: int, size: int) -> tf.Tensor:
    """bool [B, K, V]: the words that would make an n-gram which the caption's `step` words hold already."""
    shape = tf.shape(tokens_BKT)
    longest = shape[2]
    wide_BKX = tf.pad(tokens_BKT, [[0, 0], [0, 0], [0, n - 1]], constant_values=PAD)
    # A window of n words that begins at place t matches where its first n − 1 are the caption's last n − 1.
    match_BKT = tf.broadcast_to(tf.range(longest) + n - 1 < step, shape)
    for place in range(n - 1):
        last_BK1 = tf.gather(tokens_BKT, [tf.maximum(step - (n - 1) + place, 0)], axis=2)
        match_BKT &= wide_BKX[:, :, place : place + longest] == last_BK1
    following_BKT = wide_BKX[:, :, n - 1 : n - 1 + longest]
    row_BKT = tf.reshape(tf.range(shape[0] * shape[1]), [shape[0], shape[1], 1])
    count_X = tf.scatter_nd(
        tf.reshape(row_BKT * size + following_BKT, [-1, 1]),
        tf.reshape(tf.cast(match_BKT, tf.int32), [-1]),
        tf.reshape(shape[0] * shape[1] * size, [1]),
    )
    return tf.reshape(count_X > 0, [shape[0], shape[1], size])


def score(log_probs: tf.Tensor, lengths: tf.Tensor, finished: tf.Tensor, alpha: tf.Tensor) -> tf.Tensor:
    """log_prob / length^α, the end token counted."""
    said = tf.cast(tf.maximum(lengths + tf.cast(finished, tf.int32), 1), tf.float32)
    return log_probs / said**alpha


def ranked(
    tokens_BKT: tf.Tensor,
    log_probs_BK: tf.Tensor,
    lengths_BK: tf.Tensor,
    finished_BK: tf.Tensor,
    score_BK: tf.Tensor,
) -> tuple[tf.Tensor, ...]:
    """The captions sorted: ended ones before cut-off ones before empty places, each by falling score."""
    order_BK = tf.argsort(
        tf.where(finished_BK, score_BK, score_BK + NEVER / 1e10), axis=1, direction="DESCENDING", stable=True
    )
    log_probs_BK = tf.where(log_probs_BK > DEAD, log_probs_BK, float("-inf"))
    return tuple(
        tf.gather(values, order_BK, batch_dims=1) for values in (tokens_BKT, log_probs_BK, lengths_BK, finished_BK)
    )
