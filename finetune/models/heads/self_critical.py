"""Self-critical training: captions that the captioner draws itself, each weighed by how much better than the others of
its image it is (Rennie et al. 2017, arXiv:1612.00563).

Takes a captioner, batches, and the training split's captions. Gives LossTerms. Next: `finetune.training.trainer`.

From step `self_critical_from` on, K captions of each row's image are drawn from what the captioner predicts, without
dropout, so that what is drawn and what is differentiated is one distribution. A caption's reward is its CIDEr (and
`self_critical_bleu` times its BLEU-4) against all of the image's captions; the baseline is the mean of the other K - 1
(Luo 2020, arXiv:2003.09971). The end of a caption counts as a word, of candidates and references: else nothing is lost
by stopping at "a man riding a". How rare n-grams are is counted in the training split, once.

Draws depend on (seed, global_step) and the place in the batch alone, so that a resumed run draws the same.

Shapes: B rows, K captions of each, N = B·K, T words with the end token.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from finetune.data.source import Example
from finetune.metrics.bleu import bleu
from finetune.metrics.cider import CiderScorer
from finetune.models.decoding import per_caption, rows_of
from finetune.models.heads.head import LossTerms
from finetune.text.tokenizer import TOKENIZER, tokenize
from finetune.text.vocabulary import END, PAD, SPECIALS, START
from zoo.errors import FailedPrecondition

if TYPE_CHECKING:
    from finetune.models.heads.captioner_layer import CaptionerLayer

IMAGE = "image"  # the target array that says which references are a row's
_IMPOSSIBLE = -1e9  # logit of what is never drawn
_END_WORD = SPECIALS[END]


class NoReferencesToLearnFrom(FailedPrecondition):
    """A captioner is to be rewarded, and nobody has shown it the training split's captions."""


class CaptionReward:
    """How good drawn captions are, in Python. `references`: of the examples that rows' `image` numbers point into."""

    def __init__(self, layer: CaptionerLayer, examples: Sequence[Example]) -> None:
        self._vocabulary = layer.vocabulary
        self._bleu = layer.arguments.self_critical_bleu
        # Tokens of `words@1` are what captions are scored by; those of other vocabularies are cut once more.
        self._as_scored = self._vocabulary.tokenizer == TOKENIZER
        # (interned: COCO's captions have seven million words, few of them different)
        self._references = [
            [[*map(sys.intern, tokenize(caption)), _END_WORD] for caption in example.captions] for example in examples
        ]
        self._cider = CiderScorer(self._references)

    def __call__(self, image_B: np.ndarray, tokens_BKT: np.ndarray) -> np.ndarray:
        """float32 [B, K]."""
        count = tokens_BKT.shape[1]
        said = [self._words(row.tolist()) for row in tokens_BKT.reshape(-1, tokens_BKT.shape[-1])]
        images = np.repeat(image_B, count).tolist()
        rewards = self._cider.score_batch(images, said)
        if self._bleu:
            pairs = zip(images, said, strict=True)
            fours = [bleu([words], [self._references[image]])[3] if words else 0.0 for image, words in pairs]
            rewards = rewards + np.float32(self._bleu) * np.array(fours, np.float32)
        return rewards.reshape(-1, count)

    def _words(self, numbers: list[int]) -> list[str]:
        words = self._vocabulary.decode(numbers)
        if not self._as_scored:
            words = tokenize(self._vocabulary.text(numbers))
        return [*words, _END_WORD] if END in numbers else words


class SelfCritic:
    """The part of a captioner's training loss that begins at `self_critical_from`."""

    def __init__(self, layer: CaptionerLayer) -> None:
        self._layer = layer
        self._reward: CaptionReward | None = None
        self._global_step: Any = tf.constant(0, tf.int64)

    def follow(self, global_step: Any) -> None:
        """Before the first step is compiled. Raises NoReferencesToLearnFrom."""
        if self._layer.arguments.self_critical_from is not None and self._reward is None:
            raise NoReferencesToLearnFrom(
                "head.arguments.self_critical_from: drawn captions are compared with those of the training split, and "
                "this captioner wasn't shown them"
            )
        self._global_step = global_step

    def learn_from(self, examples: Sequence[Example]) -> None:
        self._reward = CaptionReward(self._layer, examples)

    def instead(self, terms: LossTerms, features: Mapping[str, Any], targets: Mapping[str, Any]) -> LossTerms:
        """`terms` until the step comes, then those of drawn captions. The words' own metrics go on meanwhile; `reward`
        is the mean of the drawn captions', with weight 0 before.
        """
        now = tf.cast(tf.convert_to_tensor(self._global_step), tf.int64)
        begun = now >= self._layer.arguments.self_critical_from
        loss_sum, weight_sum, reward_sum, rewarded = tf.cond(
            begun, lambda: self._drawn_terms(features, targets, now), lambda: (tf.constant(0.0),) * 4
        )
        return LossTerms(
            loss_sum=tf.where(begun, loss_sum, terms.loss_sum),
            weight_sum=tf.where(begun, weight_sum, terms.weight_sum),
            metrics={**terms.metrics, "reward": (reward_sum, rewarded)},
        )

    def _drawn_terms(
        self, features: Mapping[str, Any], targets: Mapping[str, Any], now: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        count = self._layer.arguments.self_critical_samples
        tokens_NT = tf.stop_gradient(self._draw(features, count, now))
        tokens_BKT = tf.reshape(tokens_NT, [-1, count, tf.shape(tokens_NT)[-1]])
        reward_BK = tf.numpy_function(self._reward, [targets[IMAGE], tokens_BKT], tf.float32)
        reward_BK = tf.ensure_shape(reward_BK, [None, count])
        others_BK = (tf.reduce_sum(reward_BK, axis=1, keepdims=True) - reward_BK) / (count - 1)
        weight_B1 = tf.cast(targets["weight"], tf.float32)[:, tf.newaxis]
        advantage_N = tf.reshape((reward_BK - others_BK) * weight_B1, [-1])
        repeated = {name: tf.repeat(value, count, axis=0) for name, value in features.items()}
        drawn = self._layer.word_loss(repeated, {"tokens": tokens_NT, "weight": advantage_N})
        words_BK = tf.reduce_sum(tf.cast(tokens_BKT != PAD, tf.float32), axis=-1)
        return (
            drawn.loss_sum,
            tf.reduce_sum(words_BK * weight_B1),
            tf.reduce_sum(reward_BK * weight_B1),
            tf.reduce_sum(weight_B1) * count,
        )

    def _draw(self, features: Mapping[str, Any], count: int, now: tf.Tensor) -> tf.Tensor:
        """int32 [N, T]: words, END, PAD …; without END where `max_words` came first."""
        layer = self._layer
        most = layer.arguments.max_words
        state, memory = layer.start_of(features)
        state = rows_of(per_caption(state, count))
        rows = tf.shape(state[0])[0]
        seed_2 = tf.stack([tf.constant(layer.seed + 7, tf.int64), now])
        numbers_V = tf.range(len(layer.vocabulary))
        never_V = tf.where((numbers_V == PAD) | (numbers_V == START), _IMPOSSIBLE, 0.0)

        def step(t: tf.Tensor, last_N: tf.Tensor, over_N: tf.Tensor, state: Any, written: tf.TensorArray) -> Any:
            done = layer.advance(last_N, state, memory)
            seed = tf.random.experimental.stateless_fold_in(seed_2, t)
            logits_NV = layer.logits(done.output_NU) + never_V
            word_N = tf.random.stateless_categorical(logits_NV, 1, seed, dtype=tf.int32)[:, 0]
            over_N |= (t == most) & (word_N != END)  # a word too many isn't said
            word_N = tf.where(over_N, PAD, word_N)
            return t + 1, word_N, over_N | (word_N == END), done.state, written.write(t, word_N)

        loop = (
            tf.constant(0),
            tf.fill([rows], START),
            tf.zeros([rows], tf.bool),
            state,
            tf.TensorArray(tf.int32, size=0, dynamic_size=True, element_shape=[None]),
        )
        *_, written = tf.while_loop(
            lambda t, last, over, *_: (t <= most) & ~tf.reduce_all(over), step, loop, parallel_iterations=1
        )
        return tf.transpose(written.stack())
