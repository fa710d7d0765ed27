"""Captions as text inside a TensorFlow graph: what `CaptionerLayer.captions` does in Python.

Takes the captioner layer and feature vectors. Gives strings and log-probabilities. Next: `finetune.export.saved_model`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from finetune.text.tokenizer import detokenize
from finetune.text.vocabulary import PAD, SPECIALS, Vocabulary

_UNSPACED = "一"  # a word of a script written without spaces
_CLITIC = "'s"


def captions(layer: Any, feature_BD: tf.Tensor) -> dict[str, tf.Tensor]:
    """`text` string [B, K] and `log_prob` float32 [B, K], best first, K the head's own beam size.

    As with the predictor, captions that were cut off count only where none has ended; a place without a caption has an
    empty text and log_prob -inf.
    """
    found = layer.decode(feature_BD)
    exists_BK = tf.math.is_finite(found.log_probs_BK)
    ended_BK = exists_BK & found.finished_BK
    keep_BK = tf.where(tf.reduce_any(ended_BK, axis=1, keepdims=True), ended_BK, exists_BK)
    order_BK = tf.argsort(tf.cast(~keep_BK, tf.int32), axis=1, stable=True)  # kept ones first, their order kept
    text_BK = tf.where(keep_BK, texts(layer.vocabulary, found.tokens_BKT), "")
    log_prob_BK = tf.where(keep_BK, found.log_probs_BK, tf.constant(-np.inf, tf.float32))
    return {
        "text": tf.gather(text_BK, order_BK, batch_dims=1),
        "log_prob": tf.gather(log_prob_BK, order_BK, batch_dims=1),
    }


def texts(vocabulary: Vocabulary, tokens_BKT: tf.Tensor) -> tf.Tensor:
    """string [B, K] of word numbers [B, K, T] that end in PAD: `detokenize`, with its rules for spaces."""
    words = (*SPECIALS, *vocabulary.words)
    unspaced = np.array([" " not in detokenize([word, _UNSPACED]) for word in words])
    word_BKT = tf.gather(tf.constant(words), tokens_BKT)
    unspaced_BKT = tf.gather(tf.constant(unspaced), tokens_BKT)
    clitic_BKT = word_BKT == _CLITIC
    left_unspaced_BKT, left_clitic_BKT = _before(unspaced_BKT), _before(clitic_BKT)
    spaced_BKT = tf.where(clitic_BKT, left_clitic_BKT | left_unspaced_BKT, ~(left_unspaced_BKT & unspaced_BKT))
    spaced_BKT &= tf.range(tf.shape(tokens_BKT)[-1]) > 0
    shown_BKT = tf.where(spaced_BKT, " ", "") + word_BKT
    return tf.strings.reduce_join(tf.where(tokens_BKT == PAD, "", shown_BKT), axis=-1)


def _before(flags_BKT: tf.Tensor) -> tf.Tensor:
    """Each place's left neighbour."""
    return tf.roll(flags_BKT, 1, axis=-1)
