"""Every decoder: one step for training and decoding, exact log-probabilities, learning, what is particular to each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from finetune.models.decoders.attention import unevenness
from finetune.models.decoders.cells import make_cell
from finetune.models.feature_row import FeatureRow, NoFeatureMap, row_of
from finetune.models.heads.captioner import CAPTIONER, CaptionerArguments
from finetune.models.heads.captioner_layer import CaptionerLayer
from finetune.models.restore import named_variables
from tests.finetune.models.toy_captioner import (
    MAP_SHAPE,
    make,
    rows_for,
    sharpen,
    teacher_forced_log_prob,
    train,
)

PHRASES = [f"a {colour} {shape} under a box" for colour in ("red", "blue") for shape in ("ball", "cube", "cone")]
DECODERS: dict[str, dict[str, Any]] = {
    "lstm": {},
    "lstm from its state": {"image_as": "initial_state"},
    "gru, normalised, tied": {"cell": "gru", "layer_norm": True, "tie_embeddings": True},
    "lstm, normalised": {"layer_norm": True, "image_as": "initial_state"},
    "soft": {"attention": "soft", "attention_units": 10},
    "soft gru from its state": {"attention": "soft", "attention_units": 10, "cell": "gru", "image_as": "initial_state"},
    "top down": {"attention": "top_down", "attention_units": 10, "layer_norm": True},
}


COMMON = ("gru, normalised, tied", "top down")  # the others are slow; plain and soft LSTMs have tests of decoding
EACH = [pytest.param(name, marks=() if name in COMMON else pytest.mark.slow) for name in DECODERS]


@pytest.fixture(scope="module", params=EACH)
def wild(request: pytest.FixtureRequest) -> CaptionerLayer:
    layer, _, _, _ = make(PHRASES, max_words=7, **DECODERS[request.param])
    sharpen(layer, 0.6)
    return layer


def test_log_probs_are_those_of_teacher_forcing(wild: CaptionerLayer) -> None:
    rows = rows_for(wild, 4)
    for wanted in ({"beam_size": 3}, {"beam_size": 2, "sample": True, "seed": 5, "temperature": 0.8, "top_p": 0.9}):
        decoded = wild.decode(tf.constant(rows), max_words=5, **wanted)
        for b in range(len(rows)):
            for k in range(wanted["beam_size"]):
                words = decoded.tokens_BKT[b, k, : int(decoded.lengths_BK[b, k])].numpy().tolist()
                finished = bool(decoded.finished_BK[b, k])
                if words or finished:
                    truth = teacher_forced_log_prob(wild, rows[b], words, end=finished)
                    assert float(decoded.log_probs_BK[b, k]) == pytest.approx(truth, abs=1e-4)


def test_every_variable_of_a_decoder_is_trained() -> None:
    """A matrix that no gradient reaches would be published as the seed made it."""
    for wanted in DECODERS.values():
        layer, table, _, _ = make(PHRASES, **wanted)
        features = {"feature_vector": tf.constant(rows_for(layer, len(PHRASES)))}
        targets = {"tokens": tf.constant(table.arrays["tokens"]), "weight": tf.ones(len(PHRASES))}
        with tf.GradientTape() as tape:
            terms = layer.loss(features, targets, training=True)
        gradients = tape.gradient(terms.loss_sum, [variable.value for variable in layer.trainable_variables])
        for variable, gradient in zip(layer.trainable_variables, gradients, strict=True):
            assert gradient is not None, (wanted, variable.path)
            assert np.abs(gradient).max() > 1e-8, (wanted, variable.path)


def test_explanations_add_up(wild: CaptionerLayer) -> None:
    rows = rows_for(wild, 2)
    explained = wild.explain(rows, beam_size=2)
    for said, beams in zip(explained, wild.captions(rows, beam_size=2), strict=True):
        assert said.caption == beams[0]
        assert sum(word.log_prob for word in said.words) == pytest.approx(said.caption.log_prob, abs=1e-4)
        assert (said.words[-1].word == "</s>") == said.caption.finished
        for word in said.words:
            shares = [share for _, share in word.alternatives]
            assert shares == sorted(shares, reverse=True)
            assert len(shares) == 5
            if wild.places is None:
                assert word.attention is None
            else:
                assert word.attention is not None
                assert word.attention.shape == MAP_SHAPE[:2]
                assert float(word.attention.sum()) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.slow
def test_attention_learns_what_lies_where() -> None:
    """The caption names the word whose mark lies at a place that the feature vector doesn't tell."""
    words = ("ball", "cube", "cone", "box")
    captions = [f"{first} over {second}" for first in words for second in words if first != second]
    layer, table, _, _ = make(captions, attention="soft", attention_units=16)
    rows = np.zeros((len(captions), layer.row.size), np.float32)
    for row, caption in zip(rows, captions, strict=True):
        first, _, second = caption.split()
        map_HWC = row[layer.row.vector_size :].reshape(MAP_SHAPE)
        map_HWC[0, 0, words.index(first)] = 3.0
        map_HWC[1, 1, words.index(second)] = 3.0
        map_HWC[:, :, 4] = np.arange(4).reshape(2, 2)  # a place knows where it is
    train(layer, table, rows, steps=150, rate=0.03)
    assert [beams[0].text for beams in layer.captions(rows)] == captions


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_cell_is_keras_own(kind: Any) -> None:
    cell = make_cell(kind, units=5, layer_norm=False, seed=1)
    cell.build(3)
    generator = np.random.default_rng(0)
    (keras_cell,) = cell.layers
    for variable in keras_cell.weights:
        variable.assign(generator.normal(size=variable.shape).astype(np.float32))
    inputs = tf.constant(generator.normal(size=(2, 3)).astype(np.float32))
    state = [tf.constant(generator.normal(size=(2, 5)).astype(np.float32)) for _ in range(cell.num_states)]
    ours = cell.recur(cell.with_bias(cell.share(inputs)), tuple(state))
    theirs, _ = keras_cell(inputs, state)
    np.testing.assert_allclose(ours[0], theirs, rtol=1e-5, atol=1e-6)


def test_layer_normalisation_forgets_the_scale_of_its_inputs() -> None:
    cell = make_cell("lstm", units=4, layer_norm=True, seed=1)
    cell.build(3)
    x = tf.constant([[1.0, -2.0, 0.5]])
    state = (tf.zeros([1, 4]), tf.zeros([1, 4]))
    one, large = (cell.recur(cell.with_bias(cell.share(x * by)), state)[0] for by in (1.0, 100.0))
    np.testing.assert_allclose(one, large, atol=1e-3)


def test_unevenness_is_zero_where_each_place_was_looked_at_once() -> None:
    even_BTR = tf.constant([[[1.0, 0.0], [0.0, 1.0], [9.0, 9.0]]])
    real_BT = tf.constant([[True, True, False]])
    assert float(unevenness(even_BTR, real_BT)[0]) == 0.0
    assert float(unevenness(tf.constant([[[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]]]), real_BT)[0]) == 1.0


def test_the_regulariser_is_part_of_the_loss_in_training_only() -> None:
    layer, table, _, _ = make(PHRASES, attention="soft", attention_regulariser=2.0)
    features = {"feature_vector": tf.constant(rows_for(layer, len(PHRASES)))}
    targets = {"tokens": tf.constant(table.arrays["tokens"]), "weight": tf.ones(len(PHRASES))}
    training = layer.loss(features, targets, training=True)
    plain = layer.loss(features, targets, training=False)
    uneven = float(training.metrics["attention_unevenness"][0])
    assert uneven > 0
    assert float(training.loss_sum) == pytest.approx(float(plain.loss_sum) + 2.0 * uneven, rel=1e-5)
    assert "attention_unevenness" not in plain.metrics


def test_tied_outputs_have_no_matrix_of_words_of_their_own() -> None:
    layer, _, _, _ = make(PHRASES, tie_embeddings=True)
    shapes = {name: variable.shape for name, variable in named_variables(layer).items()}
    assert shapes["output/projection"] == (24, 16)
    assert shapes["output/bias"] == (len(layer.vocabulary),)
    assert set(shapes) & {"output/kernel"} == set()


def test_scheduled_sampling_follows_the_step_and_repeats_itself() -> None:
    for wanted in ({}, {"attention": "soft", "image_as": "initial_state"}):
        layer, table, _, _ = make(PHRASES, scheduled_sampling=0.9, scheduled_sampling_steps=10, **wanted)
        sharpen(layer, 0.5)
        features = {"feature_vector": tf.constant(rows_for(layer, len(PHRASES)))}
        targets = {"tokens": tf.constant(table.arrays["tokens"]), "weight": tf.ones(len(PHRASES))}
        step = tf.Variable(0, dtype=tf.int64)
        layer.follow_steps(step)

        def loss(training: bool, layer: Any = layer, features: Any = features, targets: Any = targets) -> float:
            return float(layer.loss(features, targets, training=training).metrics["cross_entropy"][0])

        teacher = loss(False)
        assert loss(True) == pytest.approx(teacher, rel=1e-5)  # nothing of its own at step 0
        step.assign(100)
        own = loss(True)
        assert own != pytest.approx(teacher, rel=1e-3)
        assert loss(True) == own
        step.assign(101)
        assert loss(True) != own


def test_a_head_without_attention_reads_vectors_of_any_backbone() -> None:
    plain, soft = CaptionerArguments(), CaptionerArguments(attention="soft")
    assert row_of(CAPTIONER, plain, feature_dim=12, feature_map_shape=(1, 1, 12)) == FeatureRow(vector_size=12)
    assert row_of(CAPTIONER, soft, feature_dim=12, feature_map_shape=(2, 3, 7)).size == 12 + 42
    for shape in ((1, 1, 12), None):
        with pytest.raises(NoFeatureMap, match="one feature vector only"):
            row_of(CAPTIONER, soft, feature_dim=12, feature_map_shape=shape)


def test_a_row_is_parted_as_it_was_joined() -> None:
    row = FeatureRow(vector_size=3, map_shape=(2, 2, 5))
    generator = np.random.default_rng(1)
    outputs = {
        "feature_vector": tf.constant(generator.normal(size=(4, 3)).astype(np.float32)),
        "feature_map": tf.constant(generator.normal(size=(4, 2, 2, 5)).astype(np.float32)),
    }
    parted = row.split({"feature_vector": row.join(outputs)})
    for name, value in outputs.items():
        np.testing.assert_array_equal(parted[name], value)
    assert row.split(outputs) == outputs  # of a backbone that is trained too


def test_a_published_decoder_is_built_again_from_its_arguments() -> None:
    for wanted in DECODERS.values():
        layer, _, assets, arguments = make(PHRASES, **wanted)
        again = CaptionerArguments.model_validate(CAPTIONER.resolved(arguments, assets))
        rebuilt = CAPTIONER.build(
            arguments=again,
            feature_dim=layer.row.vector_size,
            assets=assets,
            seed=9,
            feature_map_shape=layer.row.map_shape,
        )
        assert list(named_variables(rebuilt)) == list(named_variables(layer))


def test_pretrained_vectors_are_where_training_begins(tmp_path: Any) -> None:
    path = tmp_path / "vectors.txt"
    path.write_text("2 16\nred " + " ".join(["0.5"] * 16) + "\nzebra " + " ".join(["1"] * 16) + "\n")
    layer, _, assets, arguments = make(PHRASES, word_vectors=str(path))
    plain, _, _, _ = make(PHRASES)
    ours, theirs = (np.asarray(each.word_embedding.embeddings) for each in (layer, plain))
    red = 4 + layer.vocabulary.words.index("red")
    assert (ours[red] == 0.5).all()
    np.testing.assert_array_equal(np.delete(ours, red, axis=0), np.delete(theirs, red, axis=0))
    assert "word_vectors.npy" not in assets.files  # they are in the weights; a version needs no file of them
    assert CAPTIONER.resolved(arguments, assets)["word_vectors"] is None
