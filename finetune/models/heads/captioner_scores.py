"""How good a captioner's captions are: metrics of a split beyond the loss.

Takes a captioner, what it reads of images, and their true captions. Gives numbers. Next: `finetune.training.evaluate`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from finetune.data.source import Example
from finetune.metrics.captions import caption_metrics
from finetune.models.heads.captioner import CAPTIONER
from finetune.models.heads.head import Assets
from finetune.text.vocabulary import PAD
from zoo.errors import InvalidArgument

if TYPE_CHECKING:
    from finetune.models.heads.captioner_layer import CaptionerLayer

_LOSS_BATCH = 64  # rows in a batch of the perplexity


class CaptionScores:
    def __init__(self, layer: CaptionerLayer) -> None:
        self._layer = layer

    def of(self, features: np.ndarray, examples: Sequence[Example]) -> dict[str, Any]:
        """Args:
            features: float [N, X], one row an example.

        Returns:
            `caption_metrics` plus `perplexity` (a word, end token included, under teacher forcing; a word outside the
            vocabulary counts as <unk>), `finished_captions` and `vocabulary_used` (shares), and `bleu_cider`, the
            geometric mean of `bleu_4` and `cider`: to choose the best step by, since either alone leaps about on a
            hundred photos and the loss is at its best long before the captions are.
        """
        if len(features) != len(examples):
            raise InvalidArgument(f"got features of {len(features)} images for {len(examples)} examples")
        captions = [beams[0] for beams in self._layer.captions(features)]
        texts = [caption.text for caption in captions]
        metrics: dict[str, Any] = caption_metrics(texts, [list(example.captions) for example in examples])
        metrics["bleu_cider"] = math.sqrt(metrics["bleu_4"] * metrics["cider"])
        metrics["perplexity"] = self.perplexity(features, examples)
        vocabulary = self._layer.vocabulary
        used = {word for text in texts for word in vocabulary.cutter.tokenize(text)}
        metrics["vocabulary_used"] = len(used & set(vocabulary.words)) / len(vocabulary.words)
        metrics["captions"] = texts  # no metric: whoever asked takes them out
        metrics["finished_captions"] = sum(caption.finished for caption in captions) / len(captions)
        return metrics

    def perplexity(self, features: np.ndarray, examples: Sequence[Example]) -> float:
        assets = Assets(files=self._layer.vocabulary.to_files())
        table = CAPTIONER.targets(examples, self._layer.arguments, assets)
        tokens_NT = table.arrays["tokens"]
        order = np.argsort((tokens_NT != PAD).sum(axis=1), kind="stable")  # like lengths together: less padding
        total, words = 0.0, 0.0
        for start in range(0, len(order), _LOSS_BATCH):
            chosen = order[start : start + _LOSS_BATCH]
            weight_B = np.zeros(_LOSS_BATCH, np.float32)
            weight_B[: len(chosen)] = 1
            chosen = np.concatenate([chosen, np.full(_LOSS_BATCH - len(chosen), chosen[0])])
            loss_sum, weight_sum = self._plain_loss(
                np.asarray(features[table.image_index[chosen]], np.float32), tokens_NT[chosen], weight_B
            )
            total, words = total + float(loss_sum), words + float(weight_sum)
        return math.exp(min(total / words, 700.0))

    @tf.function(reduce_retracing=True)
    def _plain_loss(self, row_BX: tf.Tensor, tokens_BT: tf.Tensor, weight_B: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        terms = self._layer.loss({"feature_vector": row_BX}, {"tokens": tokens_BT, "weight": weight_B}, training=False)
        return terms.loss_sum, terms.weight_sum
