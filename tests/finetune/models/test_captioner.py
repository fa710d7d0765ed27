"""The captioner head: assets, targets, loss, training, metrics."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from pydantic import ValidationError

from finetune.models.heads.captioner import CAPTIONER, CaptionerArguments, NoCaption
from finetune.models.heads.captioner_layer import CaptionerLayer
from finetune.text.vocabulary import END, PAD, UNKNOWN, EmptyCaption, NoCaptions, Vocabulary
from tests.finetune.models.toy_captioner import FEATURE_DIM, examples_of, features_of, make, sharpen, train
from zoo.errors import InvalidArgument

CAPTIONS = [
    "a black dog runs across wet grass",
    "two children kick a ball",
    "a man climbs a steep rock",
    "a woman rides a white horse by the sea",
    "a dog jumps",
    "people sit around a long table and eat",
    "a boy in a red shirt swings",
    "snow falls on the mountains",
]


def _loss(layer: CaptionerLayer, feature_BD: np.ndarray, tokens_BT: np.ndarray, **options: Any) -> tuple[float, float]:
    weight_B = options.pop("weight", np.ones(len(tokens_BT), np.float32))
    terms = layer.loss(
        {"feature_vector": tf.constant(feature_BD)},
        {"tokens": tf.constant(tokens_BT), "weight": tf.constant(weight_B)},
        training=options.pop("training", False),
    )
    return float(terms.loss_sum), float(terms.weight_sum)


# Assets and targets.


def test_the_vocabulary_comes_from_these_examples_only() -> None:
    arguments = CaptionerArguments(min_count=2)
    assets = CAPTIONER.learn_assets(examples_of(CAPTIONS), arguments)
    vocabulary = Vocabulary.from_bytes(assets.files["vocabulary.json"])
    assert vocabulary.words == ("a", "dog", "the")
    assert assets.vocabulary_size == len(vocabulary) == 7
    assert assets.tokenizer == vocabulary.tokenizer


def test_targets_are_words_then_end_then_padding() -> None:
    arguments = CaptionerArguments(min_count=1, max_words=6)
    examples = examples_of([["a dog jumps", "A dog runs!"], "two children kick a ball"])
    assets = CAPTIONER.learn_assets(examples, arguments)
    table = CAPTIONER.targets(examples, arguments, assets)
    vocabulary = Vocabulary.from_bytes(assets.files["vocabulary.json"])
    tokens = table.arrays["tokens"]
    assert table.image_index.tolist() == [0, 0, 1]
    assert tokens.dtype == np.int32
    assert tokens.shape == (3, 7)
    assert tokens[1].tolist() == [*vocabulary.encode(["a", "dog", "runs"]), END, PAD, PAD, PAD]
    unseen = CAPTIONER.targets(examples_of(["a zebra jumps"]), arguments, assets)
    assert unseen.arrays["tokens"][0, 1] == UNKNOWN


def test_a_long_caption_is_cut_without_an_end_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    arguments = CaptionerArguments(min_count=1, max_words=3)
    examples = examples_of(["one two three", "one two three four"])
    assets = CAPTIONER.learn_assets(examples, arguments)
    with caplog.at_level(logging.WARNING):
        tokens = CAPTIONER.targets(examples, arguments, assets).arrays["tokens"]
    assert (tokens[0] == END).sum() == 1
    assert (tokens[1] != PAD).sum() == 3
    assert END not in tokens[1]
    assert "1 of 2 captions are longer than max_words = 3" in caplog.text


def test_examples_that_cannot_be_used_are_named() -> None:
    arguments = CaptionerArguments(min_count=1)
    good = examples_of(CAPTIONS)
    assets = CAPTIONER.learn_assets(good, arguments)
    with pytest.raises(EmptyCaption, match=r"photo-001\.jpg"):
        CAPTIONER.learn_assets(examples_of(["a dog", "..."]), arguments)
    with pytest.raises(EmptyCaption, match=r"photo-001\.jpg"):
        CAPTIONER.targets(examples_of(["a dog", "\u2028"]), arguments, assets)
    with pytest.raises(NoCaption, match=r"photo-001\.jpg"):
        CAPTIONER.targets(examples_of(["a dog", []]), arguments, assets)
    with pytest.raises(NoCaptions):
        CAPTIONER.learn_assets([], arguments)


def test_a_caption_with_the_word_unk_is_only_a_caption() -> None:
    layer, table, _, _ = make(["the word <unk> is written on a UNK sign", "a dog"])
    assert UNKNOWN not in table.arrays["tokens"]
    train(layer, table, features_of(2), steps=100)
    assert layer.captions(features_of(2))[0][0].text == "the word unk is written on a unk sign"


def test_arguments_are_checked_and_resolved() -> None:
    for wrong in ({"unit": 3}, {"units": 0}, {"embedding_dropout": 1.0}, {"length_penalty": float("nan")}):
        with pytest.raises(ValidationError):
            CaptionerArguments.model_validate(wrong)
    layer, _, assets, arguments = make(CAPTIONS, output_dropout=0.25)
    stored = json.loads(json.dumps(CAPTIONER.resolved(arguments, assets)))
    again = CAPTIONER.Arguments.model_validate(stored)
    assert again == arguments.model_copy(update={"tokenizer": "words"})  # what None meant
    assert set(stored) == set(CaptionerArguments.model_fields)
    rebuilt = CAPTIONER.build(arguments=again, feature_dim=FEATURE_DIM, assets=assets, seed=99)
    for theirs, ours in zip(rebuilt.weights, layer.weights, strict=True):
        theirs.assign(ours)
    assert rebuilt.captions(features_of(3)) == layer.captions(features_of(3))


def test_the_kind_needs_no_tensorflow() -> None:
    code = (
        "import sys; from finetune.models.heads.captioner import CAPTIONER; from finetune.data.source import Example;"
        "a = CAPTIONER.Arguments(min_count=1); e = [Example(id='x', captions=('a dog',))];"
        "CAPTIONER.targets(e, a, CAPTIONER.learn_assets(e, a));"
        "import finetune.metrics.captions, finetune.text.caption;"
        "sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# Variables.


def test_variables_have_stable_names() -> None:
    layer, _, _, _ = make(CAPTIONS)
    names = {variable.path.removeprefix("captioner/"): tuple(variable.shape) for variable in layer.weights}
    size = len(layer.vocabulary)
    assert names == {
        "image_embedding/kernel": (FEATURE_DIM, 16),
        "image_embedding/bias": (16,),
        "word_embedding/embeddings": (size, 16),
        "lstm/kernel": (16, 96),
        "lstm/recurrent_kernel": (24, 96),
        "lstm/bias": (96,),
        "output/kernel": (24, size),
        "output/bias": (size,),
    }
    assert len(layer.trainable_variables) == len(layer.weights)
    with_bag, _, _, _ = make(CAPTIONS, word_bag=0.5)
    more = {variable.path.removeprefix("captioner/") for variable in with_bag.weights} - set(names)
    assert more == {"word_bag/kernel", "word_bag/bias"}


def test_the_seed_decides_the_fresh_weights() -> None:
    one, two, other = (make(CAPTIONS, seed=seed)[0] for seed in (1, 1, 2))
    for a, b in zip(one.weights, two.weights, strict=True):
        assert np.array_equal(a, b)
    assert not np.array_equal(one.decoder.layers[0].kernel, other.decoder.layers[0].kernel)


# The loss.


def test_the_loss_is_that_of_kerass_own_lstm() -> None:
    layer, table, _, _ = make(CAPTIONS)
    sharpen(layer, 0.4)
    tokens, features = table.arrays["tokens"], features_of(8)
    lstm = keras.layers.LSTM(24, return_sequences=True)
    lstm.build((None, None, 16))
    for theirs, ours in zip(lstm.weights, layer.decoder.layers[0].weights, strict=True):
        theirs.assign(ours)
    starts = np.concatenate([np.full((8, 1), 1), tokens[:, :-1]], axis=1)
    inputs = np.concatenate(
        [layer.image_embedding(features)[:, None], np.asarray(layer.word_embedding.embeddings)[starts]], axis=1
    )
    logits = layer.output_projection(lstm(inputs))[:, 1:]
    entropy = keras.losses.sparse_categorical_crossentropy(tokens, logits, from_logits=True).numpy()
    loss_sum, weight_sum = _loss(layer, features, tokens)
    assert loss_sum == pytest.approx(float((entropy * (tokens != PAD)).sum()), rel=1e-5)
    assert weight_sum == sum(len(caption.split()) + 1 for caption in CAPTIONS)


def test_padding_changes_nothing() -> None:
    layer, table, _, _ = make(CAPTIONS)
    tokens, features = table.arrays["tokens"], features_of(8)
    whole = _loss(layer, features, tokens)
    wider = np.concatenate([tokens, np.full((8, 9), PAD, np.int32)], axis=1)
    assert _loss(layer, features, wider) == pytest.approx(whole, rel=1e-6)
    more_rows = np.concatenate([tokens, tokens[:3]])
    weight = np.asarray([1.0] * 8 + [0.0] * 3, np.float32)
    padded = _loss(layer, np.concatenate([features, features[:3]]), more_rows, weight=weight)
    assert padded == pytest.approx(whole, rel=1e-6)
    parts = [_loss(layer, features[i : i + 2], tokens[i : i + 2]) for i in range(0, 8, 2)]
    assert np.sum(parts, axis=0) == pytest.approx(whole, rel=1e-6)


def test_no_word_sees_itself_or_a_later_one() -> None:
    """The target is shifted by one: changing word t leaves the losses of the words before t alone."""
    layer, table, _, _ = make(CAPTIONS)
    sharpen(layer, 0.4)
    row, feature = table.arrays["tokens"][:1], features_of(1)

    def prefix_loss(tokens: np.ndarray, length: int) -> float:
        cut = np.where(np.arange(tokens.shape[1]) < length, tokens, PAD)
        return _loss(layer, feature, cut)[0]

    other = row.copy()
    other[0, 3] = row[0, 3] + 1
    assert prefix_loss(other, 3) == pytest.approx(prefix_loss(row, 3), rel=1e-6)
    assert prefix_loss(other, 4) != pytest.approx(prefix_loss(row, 4), rel=1e-3)
    # Its successors do see it.
    later = prefix_loss(row, 5) - prefix_loss(row, 4)
    assert prefix_loss(other, 5) - prefix_loss(other, 4) != pytest.approx(later, rel=1e-3)


def test_a_model_that_copies_its_input_is_not_rewarded() -> None:
    layer, table, _, _ = make(CAPTIONS)
    assert _loss(layer, features_of(8), table.arrays["tokens"])[0] / _loss(
        layer, features_of(8), table.arrays["tokens"]
    )[1] == pytest.approx(np.log(len(layer.vocabulary)), rel=0.05)


def test_the_image_matters() -> None:
    layer, table, _, _ = make(CAPTIONS)
    tokens = table.arrays["tokens"]
    assert _loss(layer, features_of(8, seed=1), tokens)[0] != _loss(layer, features_of(8, seed=2), tokens)[0]


@pytest.mark.parametrize("how", ["l2", "standard"])
def test_normalised_features_forget_their_scale(how: str) -> None:
    layer, table, _, _ = make(CAPTIONS, normalise_features=how)
    tokens, features = table.arrays["tokens"], features_of(8)
    assert _loss(layer, 7 * features, tokens)[0] == pytest.approx(_loss(layer, features, tokens)[0], rel=1e-4)


def test_what_acts_in_training_only_does_not_act_in_evaluation() -> None:
    noisy = {
        "feature_dropout": 0.3,
        "embedding_dropout": 0.3,
        "output_dropout": 0.3,
        "word_dropout": 0.3,
        "label_smoothing": 0.1,
        "word_bag": 1.0,
    }
    plain, table, _, _ = make(CAPTIONS)
    tokens, features = table.arrays["tokens"], features_of(8)
    truth = _loss(plain, features, tokens)
    layer, _, _, _ = make(CAPTIONS, **noisy)
    assert _loss(layer, features, tokens) == pytest.approx(truth, rel=1e-6)
    for name, value in noisy.items():
        layer, _, _, _ = make(CAPTIONS, **{name: value})
        assert _loss(layer, features, tokens, training=True)[0] != pytest.approx(truth[0], rel=1e-5), name


def test_label_smoothing_reports_the_cross_entropy_too() -> None:
    layer, table, _, _ = make(CAPTIONS, label_smoothing=0.1)
    terms = layer.loss(
        {"feature_vector": tf.constant(features_of(8))},
        {"tokens": tf.constant(table.arrays["tokens"]), "weight": tf.ones([8])},
        training=True,
    )
    entropy, weight = terms.metrics["cross_entropy"]
    assert float(entropy) == pytest.approx(_loss(layer, features_of(8), table.arrays["tokens"])[0], rel=1e-5)
    assert float(weight) == float(terms.weight_sum)


# Training.


def test_eight_photos_are_memorised_exactly() -> None:
    layer, table, _, _ = make(CAPTIONS, embedding=32, units=64)
    features = features_of(8)
    assert train(layer, table, features, steps=200) < 0.05
    captions = [beams[0] for beams in layer.captions(features)]
    assert [caption.text for caption in captions] == CAPTIONS
    assert all(caption.finished for caption in captions)
    metrics = layer.evaluate(features, examples_of(CAPTIONS))
    assert metrics["bleu_4"] == pytest.approx(1.0)
    assert metrics["cider"] == pytest.approx(10.0, abs=2.5)
    assert metrics["perplexity"] < 1.05
    assert metrics["distinct_captions"] == 1.0
    assert metrics["bleu_cider"] ** 2 == pytest.approx(metrics["bleu_4"] * metrics["cider"])


def test_one_trace_serves_captions_of_all_lengths() -> None:
    layer, table, _, _ = make(CAPTIONS, embedding_dropout=0.2)
    traces = 0

    @tf.function
    def loss(feature_BD: tf.Tensor, tokens_BT: tf.Tensor) -> tf.Tensor:
        nonlocal traces
        traces += 1
        targets = {"tokens": tokens_BT, "weight": tf.ones([2])}
        return layer.loss({"feature_vector": feature_BD}, targets, training=True).loss_sum

    tokens, features = table.arrays["tokens"], features_of(8)
    for i in range(0, 8, 2):
        loss(tf.constant(features[i : i + 2]), tf.constant(tokens[i : i + 2]))
    assert traces == 1


def test_dropout_resumes_from_its_seed_generators() -> None:
    layer, table, _, _ = make(CAPTIONS, embedding_dropout=0.5, word_dropout=0.2)
    tokens, features = table.arrays["tokens"], features_of(8)
    assert [type(generator) for generator in layer.seed_generators] == [keras.random.SeedGenerator]
    saved = [generator.state.numpy() for generator in layer.seed_generators]
    first = [_loss(layer, features, tokens, training=True) for _ in range(3)]
    assert len(set(first)) == 3
    for generator, state in zip(layer.seed_generators, saved, strict=True):
        generator.state.assign(state)
    assert [_loss(layer, features, tokens, training=True) for _ in range(3)] == first


DETERMINISTIC = """
import hashlib, numpy as np, tensorflow as tf
tf.config.experimental.enable_op_determinism()
tf.random.set_seed(1)
from tests.finetune.models.toy_captioner import features_of, make, train
from tests.finetune.models.test_captioner import CAPTIONS
layer, table, _, _ = make(CAPTIONS, embedding_dropout=0.3, output_dropout=0.3, feature_dropout=0.1,
                          word_dropout=0.1, label_smoothing=0.1, word_bag=0.5)
train(layer, table, features_of(8), steps=20)
captions = repr(layer.captions(features_of(8)))
print(hashlib.sha256(b"".join(v.numpy().tobytes() for v in layer.weights) + captions.encode()).hexdigest())
"""


@pytest.mark.slow
def test_equal_runs_under_op_determinism() -> None:
    digests = {
        subprocess.run(
            [sys.executable, "-c", DETERMINISTIC], check=True, timeout=120, capture_output=True, text=True
        ).stdout.strip()
        for _ in range(2)
    }
    assert len(digests) == 1


def test_a_step_runs_in_a_strategy() -> None:
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        layer, table, _, _ = make(CAPTIONS, embedding_dropout=0.2, word_bag=0.5)
    tokens_BT, feature_BD = tf.constant(table.arrays["tokens"]), tf.constant(features_of(8))

    def replica_step() -> tuple[tf.Tensor, tf.Tensor, list[Any]]:
        with tf.GradientTape() as tape:
            terms = layer.loss(
                {"feature_vector": feature_BD}, {"tokens": tokens_BT, "weight": tf.ones([8])}, training=True
            )
        gradients = tape.gradient(terms.loss_sum, [variable.value for variable in layer.trainable_variables])
        return terms.loss_sum, terms.weight_sum, gradients

    loss_sum, weight_sum, gradients = tf.function(lambda: strategy.run(replica_step))()
    assert float(loss_sum) / float(weight_sum) > 0
    assert all(isinstance(gradient, tf.Tensor) for gradient in gradients), "dense gradients only"
    assert all(bool(tf.reduce_any(gradient != 0)) for gradient in gradients)


# Metrics.


def test_evaluate_warns_when_all_captions_are_the_same() -> None:
    layer, _, _, _ = make(CAPTIONS)
    layer.image_embedding.kernel.assign(tf.zeros_like(layer.image_embedding.kernel))
    features, examples = features_of(40), examples_of((CAPTIONS * 5)[:40])
    metrics = layer.evaluate(features, examples)
    assert metrics["distinct_captions"] == 1 / 40
    assert any("1 different captions for 40 images" in warning for warning in metrics["warnings"])


def test_perplexity_is_that_of_the_loss() -> None:
    layer, table, _, _ = make([CAPTIONS, CAPTIONS[:3], "a dog <unk>"])
    sharpen(layer, 0.3)
    features = features_of(3)
    examples = examples_of([CAPTIONS, CAPTIONS[:3], "a dog <unk>"])
    loss_sum, weight_sum = _loss(layer, features[table.image_index], table.arrays["tokens"])
    metrics = layer.evaluate(features, examples)
    assert metrics["perplexity"] == pytest.approx(np.exp(loss_sum / weight_sum), rel=1e-5)
    assert json.dumps(metrics, allow_nan=False)


def test_evaluate_pairs_features_and_examples() -> None:
    layer, _, _, _ = make(CAPTIONS)
    with pytest.raises(InvalidArgument, match="3 images for 8"):
        layer.evaluate(features_of(3), examples_of(CAPTIONS))
    with pytest.raises(InvalidArgument):
        layer.evaluate(features_of(0), [])


def test_the_scale_of_the_first_weights_is_that_of_every_kernel_and_embedding() -> None:
    layer, *_ = make(["a b", "b c d"], initial_scale=0.08)
    for weight in layer.trainable_weights:
        value = np.abs(weight.numpy())
        if value.ndim >= 2:
            assert value.max() <= 0.08, weight.path
            assert value.mean() == pytest.approx(0.04, rel=0.3), weight.path
