"""Captions made inside a graph against those made in Python."""

from __future__ import annotations

import random

import numpy as np
import pytest
import tensorflow as tf

from finetune.export.caption_graph import captions, texts
from finetune.export.source import ExportSource
from finetune.text.tokenizer import detokenize
from finetune.text.tokenizers import TokenizerKind, WordOptions, learn_tokenizer
from finetune.text.vocabulary import PAD, SPECIALS, Vocabulary
from zoo.catalog import Catalog

WORDS = ("a", "dog", "'s", "犬", "が", "t-shirt", "ไ", "été", "s")
VOCABULARY = Vocabulary(words=WORDS, counts=(1,) * len(WORDS), min_count=1)


def test_words_are_joined_as_detokenize_joins_them() -> None:
    chance = random.Random(3)
    numbers = np.full((40, 5, 7), PAD, np.int32)
    expected = np.empty((40, 5), object)
    for place in np.ndindex(40, 5):
        words = chance.choices(WORDS, k=chance.randint(0, 7))
        numbers[place][: len(words)] = [len(SPECIALS) + WORDS.index(word) for word in words]
        expected[place] = detokenize(words)
    found = np.vectorize(bytes.decode)(texts(VOCABULARY, tf.constant(numbers)).numpy())
    np.testing.assert_array_equal(found, expected)
    assert any("犬が" in text for text in found.ravel())
    assert any("dog's" in text for text in found.ravel())


@pytest.mark.parametrize("kind", ["words", "characters", "sentencepiece"])
def test_every_tokenizers_words_are_joined_as_in_python(kind: TokenizerKind) -> None:
    if kind == "sentencepiece":
        pytest.importorskip("sentencepiece")
    said = ["A man's dog (wet), 青蛙。白（雌）!", "「カエル」 jumps: 'no' – it's 3.5 «Oui»"]
    kept = WordOptions(keep_case=True, keep_punctuation=True)
    vocabulary = Vocabulary.learn(said, 1, tokenizer=learn_tokenizer(kind, kept, said, pieces=60))
    chance = random.Random(5)
    numbers = np.full((60, 2, 9), PAD, np.int32)
    for place in np.ndindex(60, 2):
        length = chance.randint(0, 9)
        numbers[place][:length] = chance.choices(range(3, len(vocabulary)), k=length)  # <unk> is among them
    found = np.vectorize(bytes.decode)(texts(vocabulary, tf.constant(numbers)).numpy())
    for place in np.ndindex(60, 2):
        assert found[place] == vocabulary.text(numbers[place].tolist())


@pytest.mark.parametrize("batch", [1, 5])
def test_captions_are_those_of_the_layer(catalog: Catalog, batch: int) -> None:
    layer = ExportSource.load(catalog, catalog.get("cap")).head
    feature_BD = np.random.default_rng(batch).normal(0, 2, (batch, layer.row.size)).astype(np.float32)
    signature = [tf.TensorSpec([None, layer.row.size], tf.float32)]
    found = tf.function(lambda features: captions(layer, features), input_signature=signature)(feature_BD)
    for row, text_K, log_prob_K in zip(layer.captions(feature_BD), found["text"], found["log_prob"], strict=True):
        said = [text.decode() for text in text_K.numpy() if text]
        assert said == [caption.text for caption in row if caption.text]
        np.testing.assert_allclose(log_prob_K[: len(row)], [caption.log_prob for caption in row], rtol=1e-5)
        assert np.isneginf(log_prob_K[len(row) :]).all()
