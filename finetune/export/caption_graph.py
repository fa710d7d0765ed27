"""Captions as text inside a TensorFlow graph: what `CaptionerLayer.captions` does in Python.

Takes the captioner layer and what it reads of images. Gives strings and log-probabilities. Next:
`finetune.export.saved_model`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from finetune.text.tokenizer import joining
from finetune.text.tokenizers import WordOptions, kind_and_options
from finetune.text.vocabulary import PAD, SPECIALS, Vocabulary
from zoo.vocabulary_file import SPACE


def captions(layer: Any, row_BX: tf.Tensor) -> dict[str, tf.Tensor]:
    """`text` string [B, K] and `log_prob` float32 [B, K], best first, K the head's own beam size.

    As with the predictor, captions that were cut off count only where none has ended; a place without a caption has an
    empty text and log_prob -inf.
    """
    found = layer.decode(row_BX)
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
    """string [B, K] of word numbers [B, K, T] that end in PAD: what `Vocabulary.text` makes of them."""
    words = (*SPECIALS, *vocabulary.words)
    word_BKT = tf.gather(tf.constant(words), tokens_BKT)
    kind, options = kind_and_options(vocabulary.tokenizer)
    if kind == "words":
        word_BKT = tf.where(_spaced(words, tokens_BKT, options), " ", "") + word_BKT
    line_BK = tf.strings.reduce_join(tf.where(tokens_BKT == PAD, "", word_BKT), axis=-1)
    if kind == "words":
        return line_BK
    line_BK = tf.strings.regex_replace(line_BK, SPACE, " ")
    return tf.strings.regex_replace(line_BK, "^ +| +$", "") if kind == "sentencepiece" else line_BK


def _spaced(words: Sequence[str], tokens_BKT: tf.Tensor, options: WordOptions) -> tf.Tensor:
    """bool [B, K, T]: a space stands before this word, by `detokenize`'s rule."""
    marks = [joining(word, keep_punctuation=options.keep_punctuation) for word in words]

    def flag(name: str) -> tf.Tensor:
        return tf.gather(tf.constant(np.array([getattr(mark, name) for mark in marks])), tokens_BKT)

    unspaced_BKT, clitic_BKT = flag("unspaced"), flag("clitic")
    left_unspaced_BKT, left_clitic_BKT = _before(unspaced_BKT), _before(clitic_BKT)
    spaced_BKT = tf.where(clitic_BKT, left_clitic_BKT | left_unspaced_BKT, ~(left_unspaced_BKT & unspaced_BKT))
    spaced_BKT &= ~(_before(flag("opening")) | flag("closing"))
    return spaced_BKT & (tf.range(tf.shape(tokens_BKT)[-1]) > 0)


def _before(flags_BKT: tf.Tensor) -> tf.Tensor:
    """Each place's left neighbour."""
    return tf.roll(flags_BKT, 1, axis=-1)
