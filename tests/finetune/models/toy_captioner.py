"""A small captioner and a brute force over all its captions, for the tests of head and beam search."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.data.source import Example
from finetune.models.heads.captioner import CAPTIONER, CaptionerArguments
from finetune.models.heads.captioner_layer import CaptionerLayer
from finetune.models.heads.head import Assets, TargetTable
from finetune.text.vocabulary import END, PAD, SPECIALS

FEATURE_DIM = 12
MAP_SHAPE = (2, 2, 5)


def examples_of(captions: Sequence[Sequence[str] | str]) -> list[Example]:
    """One image an entry, with one caption or several."""
    return [
        Example(id=f"photo-{i:03}.jpg", captions=(said,) if isinstance(said, str) else tuple(said))
        for i, said in enumerate(captions)
    ]


def features_of(count: int, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, FEATURE_DIM)).astype(np.float32)


def rows_for(layer: CaptionerLayer, count: int, seed: int = 7) -> np.ndarray:
    """What the captioner reads of so many images."""
    return np.random.default_rng(seed).normal(size=(count, layer.row.size)).astype(np.float32)


def make(
    captions: Sequence[Sequence[str] | str], *, seed: int = 3, **arguments: Any
) -> tuple[CaptionerLayer, TargetTable, Assets, CaptionerArguments]:
    """An untrained captioner that has learnt its vocabulary from these captions, and their target rows."""
    small = {"embedding": 16, "units": 24, "min_count": 1, "max_words": 10, "normalise_features": "none"}
    exact = {"embedding_dropout": 0.0, "output_dropout": 0.0, "word_bag": 0.0}
    wanted = CaptionerArguments.model_validate(small | exact | arguments)
    examples = examples_of(captions)
    assets = CAPTIONER.learn_assets(examples, wanted)
    shape = MAP_SHAPE if wanted.attention != "none" else None
    layer = CAPTIONER.build(
        arguments=wanted, feature_dim=FEATURE_DIM, assets=assets, seed=seed, feature_map_shape=shape
    )
    return layer, CAPTIONER.targets(examples, wanted, assets), assets, wanted


def sharpen(layer: CaptionerLayer, factor: float, seed: int = 0) -> None:
    """Fresh weights say all words with nearly the same probability; these don't."""
    generator = np.random.default_rng(seed)
    for variable in layer.trainable_variables:
        variable.assign(generator.normal(size=variable.shape, scale=factor).astype(np.float32))


def train(layer: CaptionerLayer, table: TargetTable, features: np.ndarray, *, steps: int, rate: float = 0.01) -> float:
    """Full-batch Adam; the last step's mean loss."""
    optimizer = keras.optimizers.Adam(rate)
    variables = layer.trainable_variables
    optimizer.build(variables)
    feature_BD = tf.constant(features[table.image_index])
    tokens_BT = tf.constant(table.arrays["tokens"])
    weight_B = tf.ones([len(table.image_index)])

    @tf.function
    def step() -> tf.Tensor:
        with tf.GradientTape() as tape:
            terms = layer.loss({"feature_vector": feature_BD}, {"tokens": tokens_BT, "weight": weight_B}, training=True)
            loss = terms.loss_sum / terms.weight_sum
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return loss

    return [float(step()) for _ in range(steps)][-1]


def teacher_forced_log_prob(layer: CaptionerLayer, feature_D: np.ndarray, words: Sequence[int], *, end: bool) -> float:
    """Of one caption, through `loss`: another path through the code than the beam search's."""
    numbers = [*words, END] if end else list(words)
    tokens_1T = np.full((1, layer.arguments.max_words + 1), PAD, np.int32)
    tokens_1T[0, : len(numbers)] = numbers
    return -float(_forced_loss(layer)(tf.constant(feature_D[np.newaxis]), tf.constant(tokens_1T)))


@functools.lru_cache(maxsize=4)
def _forced_loss(layer: CaptionerLayer) -> Any:
    """Traced once for a layer: a loop of many small operations is slow when each is dispatched by Python."""

    def loss_sum(row_1X: tf.Tensor, tokens_1T: tf.Tensor) -> tf.Tensor:
        targets = {"tokens": tokens_1T, "weight": tf.ones([1])}
        return layer.loss({"feature_vector": row_1X}, targets, training=False).loss_sum

    return tf.function(loss_sum)


def all_captions(layer: CaptionerLayer, feature_D: np.ndarray, max_words: int) -> dict[tuple[int, ...], float]:
    """log_prob of every caption of 0 to `max_words` words that ends."""
    words = range(len(SPECIALS), len(layer.vocabulary))
    every = [said for n in range(max_words + 1) for said in itertools.product(words, repeat=n)]
    return {said: teacher_forced_log_prob(layer, feature_D, said, end=True) for said in every}
