"""Beam search against greedy search, brute force and teacher forcing."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from finetune.models.heads.captioner_layer import BATCH_SIZES, CaptionerLayer
from finetune.text.vocabulary import END, PAD, SPECIALS, START, UNKNOWN
from tests.finetune.models.toy_captioner import (
    all_captions,
    features_of,
    make,
    sharpen,
    teacher_forced_log_prob,
    train,
)
from zoo.errors import InvalidArgument

# Of up to 3 of 3 words: 1 + 3 + 9 captions have ended before the last step, where 27 more can end or be cut off.
WIDE = 1 + 3 + 9 + 27 + 27
PHRASES = [
    f"a {colour} {shape} {where} a {other} box"
    for colour in ("red", "blue", "green")
    for shape in ("ball", "cube")
    for where, other in (("under", "white"), ("beside", "black"))
]


@pytest.fixture(scope="module")
def trained() -> CaptionerLayer:
    """Trained for a little, so that it says different things and isn't sure of them."""
    layer, table, _, _ = make([[phrase, phrase.replace("box", "chair")] for phrase in PHRASES], max_words=9)
    train(layer, table, features_of(len(PHRASES)), steps=60, rate=0.02)
    return layer


@pytest.fixture(scope="module")
def wild() -> CaptionerLayer:
    """Random weights with sharp opinions: long, odd captions."""
    layer, _, _, _ = make(PHRASES, max_words=9)
    sharpen(layer, 0.7)
    return layer


def _greedy(layer: CaptionerLayer, feature_D: np.ndarray, max_words: int) -> tuple[list[int], float, bool]:
    """One word after the other in plain Python, through the shared step."""
    state, memory = layer.start(tf.constant(feature_D[np.newaxis]))
    word, words, total = START, [], 0.0
    for _ in range(max_words + 1):
        done = layer.advance(tf.constant([word]), state, memory)
        state = done.state
        log_V = tf.nn.log_softmax(layer.logits(done.output_NU))[0].numpy()
        choice_V = log_V.copy()
        choice_V[[PAD, START, UNKNOWN]] = -np.inf
        word = int(np.argmax(choice_V))
        if word == END:
            return words, total + float(log_V[word]), True
        if len(words) == max_words:
            return words, total, False
        words.append(word)
        total += float(log_V[word])
    raise AssertionError("unreachable: the loop ends by END or max_words")


@pytest.mark.parametrize("max_words", [1, 3, 9])
def test_beam_1_is_greedy(trained: CaptionerLayer, wild: CaptionerLayer, max_words: int) -> None:
    features = features_of(16, seed=11)
    for layer in (trained, wild):
        decoded = layer.decode(tf.constant(features), beam_size=1, max_words=max_words, length_penalty=0.7)
        for b, feature_D in enumerate(features):
            words, log_prob, finished = _greedy(layer, feature_D, max_words)
            length = int(decoded.lengths_BK[b, 0])
            assert decoded.tokens_BKT[b, 0, :length].numpy().tolist() == words
            assert not decoded.tokens_BKT[b, 0, length:].numpy().any()
            assert float(decoded.log_probs_BK[b, 0]) == pytest.approx(log_prob, abs=1e-4)
            assert bool(decoded.finished_BK[b, 0]) == finished


@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
def test_an_exhaustive_beam_equals_brute_force(alpha: float) -> None:
    layer, _, _, _ = make(["one two three"], max_words=3)
    sharpen(layer, 0.6, seed=5)
    features = features_of(4, seed=2)
    decoded = layer.decode(tf.constant(features), beam_size=WIDE, max_words=3, length_penalty=alpha)
    for b, feature_D in enumerate(features):
        truth = all_captions(layer, feature_D, 3)
        ranked = sorted(truth, key=lambda said: -truth[said] / (len(said) + 1) ** alpha)
        found = [
            tuple(decoded.tokens_BKT[b, k, : int(decoded.lengths_BK[b, k])].numpy().tolist())
            for k in range(WIDE)
            if decoded.finished_BK[b, k]
        ]
        assert found[0] == ranked[0]
        assert len(set(found)) == len(found)
        scores = [truth[said] / (len(said) + 1) ** alpha for said in found]
        assert scores == sorted(scores, reverse=True)
        for k, said in enumerate(found):
            assert float(decoded.log_probs_BK[b, k]) == pytest.approx(truth[said], abs=1e-4)


def test_places_without_a_caption_are_marked() -> None:
    layer, _, _, _ = make(["one two three"], max_words=3)
    decoded = layer.decode(tf.constant(features_of(1)), beam_size=10, max_words=1, length_penalty=0.0)
    exists = np.isfinite(decoded.log_probs_BK[0].numpy())
    # "", "one", "two", "three" have ended; "one", "two", "three" were cut off; three places are empty.
    assert decoded.finished_BK[0].numpy().tolist() == [True] * 4 + [False] * 6
    assert exists.tolist() == [True] * 7 + [False] * 3
    (captions,) = layer.captions(features_of(1), beam_size=10, max_words=1)
    assert {caption.text for caption in captions} == {"", "one", "two", "three"}


@pytest.mark.parametrize("beam_size", [1, 3, 5])
def test_log_probs_are_those_of_teacher_forcing(trained: CaptionerLayer, wild: CaptionerLayer, beam_size: int) -> None:
    features = features_of(6, seed=4)
    for layer in (trained, wild):
        decoded = layer.decode(tf.constant(features), beam_size=beam_size, max_words=6)
        for b in range(len(features)):
            for k in range(beam_size):
                words = decoded.tokens_BKT[b, k, : int(decoded.lengths_BK[b, k])].numpy().tolist()
                finished = bool(decoded.finished_BK[b, k])
                if not words and not finished:
                    continue
                truth = teacher_forced_log_prob(layer, features[b], words, end=finished)
                assert float(decoded.log_probs_BK[b, k]) == pytest.approx(truth, abs=1e-4)


def test_a_wider_beam_is_likelier_in_the_mean(trained: CaptionerLayer) -> None:
    features = features_of(len(PHRASES)) + 0.5 * features_of(len(PHRASES), seed=9)
    means = [
        float(np.mean(trained.decode(tf.constant(features), beam_size=k, length_penalty=0.0).log_probs_BK[:, 0]))
        for k in (1, 3, 8)
    ]
    assert means[0] <= means[1] <= means[2]
    assert means[0] < means[2], "the model is sure of everything: this test shows nothing"


def test_special_tokens_are_never_said() -> None:
    layer, _, _, _ = make(PHRASES, max_words=9)
    sharpen(layer, 0.1)
    bias = layer.output_projection.bias
    bias.assign(np.where(np.isin(np.arange(len(layer.vocabulary)), [PAD, START, UNKNOWN]), 20.0, 0.0))
    decoded = layer.decode(tf.constant(features_of(8)), beam_size=3, max_words=9)
    for b in range(8):
        for k in range(3):
            words = decoded.tokens_BKT[b, k, : int(decoded.lengths_BK[b, k])].numpy()
            assert (words >= len(SPECIALS)).all()
    assert all("<" not in caption.text for beams in layer.captions(features_of(8)) for caption in beams)


def test_the_best_unfinished_beam_comes_flagged_when_none_ended(trained: CaptionerLayer) -> None:
    (beams,) = trained.captions(features_of(1), max_words=2)
    assert len(beams) == 3
    assert [beam.finished for beam in beams] == [False] * 3
    assert all(len(beam.text.split()) == 2 for beam in beams)
    log_probs = [beam.log_prob for beam in beams]
    assert log_probs == sorted(log_probs, reverse=True)


def test_a_model_that_never_ends_stops_at_the_limit() -> None:
    layer, _, _, _ = make(PHRASES, max_words=9)
    layer.output_projection.bias.assign(np.where(np.arange(len(layer.vocabulary)) == END, -50.0, 0.0))
    (beams,) = layer.captions(features_of(1))
    assert all(not beam.finished and len(beam.text.split()) == 9 for beam in beams)


def test_a_model_that_says_nothing_ends_at_once() -> None:
    layer, _, _, _ = make(PHRASES, max_words=9)
    layer.output_projection.bias.assign(np.where(np.arange(len(layer.vocabulary)) == END, 50.0, 0.0))
    (beams,) = layer.captions(features_of(1))
    assert beams[0].text == ""
    assert beams[0].finished
    assert beams[0].log_prob == pytest.approx(0.0, abs=1e-4)


def test_an_image_gets_the_same_captions_in_any_company(trained: CaptionerLayer, wild: CaptionerLayer) -> None:
    features = features_of(11, seed=21)
    for layer in (trained, wild):
        together = layer.captions(features, beam_size=4)
        alone = [layer.captions(features[b : b + 1], beam_size=4)[0] for b in range(len(features))]
        for one, other in zip(together, alone, strict=True):
            assert [caption.text for caption in one] == [caption.text for caption in other]
            assert [caption.finished for caption in one] == [caption.finished for caption in other]
            assert [c.log_prob for c in one] == pytest.approx([c.log_prob for c in other], abs=1e-4)


def test_one_trace_for_each_shape(trained: CaptionerLayer) -> None:
    for size in BATCH_SIZES:
        trained.captions(features_of(size), beam_size=2)
    warm = trained.decoding_traces
    for count in (1, 2, 3, 7, 8, 9, 31, 32, 33, 70):
        captions = trained.captions(features_of(count), beam_size=2)
        assert len(captions) == count
    trained.captions(features_of(5), beam_size=2, max_words=4)
    assert trained.decoding_traces == warm
    trained.captions(features_of(1), beam_size=6)
    assert trained.decoding_traces == warm + 1


def test_length_penalty_prefers_longer_captions(trained: CaptionerLayer, wild: CaptionerLayer) -> None:
    features = tf.constant(features_of(32, seed=30))
    short = wild.decode(features, beam_size=5, length_penalty=0.0).lengths_BK[:, 0].numpy().mean()
    long = wild.decode(features, beam_size=5, length_penalty=2.0).lengths_BK[:, 0].numpy().mean()
    assert long > short


@pytest.mark.parametrize(
    ("beam_size", "max_words", "alpha"), [(0, 5, 0.7), (3, 0, 0.7), (3, 5, -1.0), (3, 5, float("nan"))]
)
def test_arguments_out_of_range(trained: CaptionerLayer, beam_size: int, max_words: int, alpha: float) -> None:
    with pytest.raises(InvalidArgument):
        trained.decode(tf.constant(features_of(1)), beam_size=beam_size, max_words=max_words, length_penalty=alpha)


def test_features_of_another_size_are_refused(trained: CaptionerLayer) -> None:
    with pytest.raises(InvalidArgument, match=r"\[N, 12\]"):
        trained.captions(np.zeros((2, 5), np.float32))
    assert trained.captions(np.zeros((0, 12), np.float32)) == []


def test_the_compiled_search_says_the_same(trained: CaptionerLayer) -> None:
    """What a server uses for single images, against the general search."""
    layer, _, _, _ = make([[phrase, phrase.replace("box", "chair")] for phrase in PHRASES], max_words=9)
    for mine, theirs in zip(layer.variables, trained.variables, strict=True):
        mine.assign(theirs)
    layer.compile_decoding()
    for feature_D in features_of(len(PHRASES)):
        one_1D = tf.constant(feature_D[np.newaxis])
        before = layer.decoding_traces
        fast = layer.decode(one_1D)
        assert layer.decoding_traces == before  # compiled already
        plain = trained.decode(one_1D)
        np.testing.assert_array_equal(fast.tokens_BKT, plain.tokens_BKT)
        np.testing.assert_allclose(fast.log_probs_BK, plain.log_probs_BK, rtol=1e-5)
        np.testing.assert_array_equal(fast.finished_BK, plain.finished_BK)
    other = layer.decode(tf.constant(features_of(1)), beam_size=2)  # not what was compiled
    np.testing.assert_array_equal(other.tokens_BKT, trained.decode(tf.constant(features_of(1)), beam_size=2).tokens_BKT)
