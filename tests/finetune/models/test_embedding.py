from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from pydantic import ValidationError

from finetune.data.source import Example
from finetune.metrics.retrieval import retrieval_metrics
from finetune.models.heads import head_kind
from finetune.models.heads.dense_arguments import InvalidLabels
from finetune.models.heads.embedding import EMBEDDING, EmbeddingArguments
from finetune.models.heads.embedding_layer import contrastive_loss, with_margin
from finetune.models.heads.head import Assets, WarnsOfPlan
from finetune.models.restore import named_variables
from finetune.spec import JobSpec

ASSETS = Assets(files={}, classes=("ape", "bee", "cat"))


def examples(*labels: str | None) -> list[Example]:
    return [Example(id=f"{place}.png", label=label) for place, label in enumerate(labels)]


def build(**arguments: Any) -> Any:
    settings = {"dim": 4, **arguments}
    return EMBEDDING.build(arguments=EmbeddingArguments(**settings), feature_dim=6, assets=ASSETS, seed=1)


def units(count: int, dim: int = 4, seed: int = 0) -> np.ndarray:
    found = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True))


def test_it_is_in_the_table() -> None:
    assert head_kind("embedding") is EMBEDDING


@pytest.mark.parametrize(
    ("labels", "match"),
    [(("a", "a"), "only 'a'"), ((), "no examples"), (("a", None), "1 of 2"), (("a", "b"), "all 2 classes have a")],
)
def test_labels_that_cannot_be_learnt(labels: tuple[str | None, ...], match: str) -> None:
    with pytest.raises(InvalidLabels, match=match):
        EMBEDDING.learn_assets(examples(*labels), EmbeddingArguments())


def test_unseen_classes_are_numbered_behind_the_known() -> None:
    table = EMBEDDING.targets(examples("cat", "dog", "ape", "cow"), EmbeddingArguments(), ASSETS)
    np.testing.assert_array_equal(table.arrays["label"], np.array([2, 4, 0, 3], np.int32), strict=True)


def test_vectors_have_length_1_and_tensors_their_names() -> None:
    feature_BD = np.random.default_rng(0).standard_normal((5, 6)).astype(np.float32)
    layer = build(hidden=(7,))
    np.testing.assert_allclose(np.linalg.norm(layer.embeddings(feature_BD), axis=1), 1, rtol=1e-5)
    plain = {"hidden_0/kernel", "hidden_0/bias", "embedding/kernel", "embedding/bias"}
    assert set(named_variables(layer)) == plain
    assert named_variables(build(loss="arcface"))["centres"].shape == (3, 4)


def test_the_contrastive_loss_is_equation_2() -> None:
    unit, label, weight = units(6), np.array([0, 0, 1, 0, 1, 2]), np.array([1, 1, 1, 1, 1, 1], np.float32)
    loss, partnered = contrastive_loss(tf.constant(unit), tf.constant(label), tf.constant(weight), 0.2)
    for i in range(6):
        others = [a for a in range(6) if a != i]
        total = sum(np.exp(unit[i] @ unit[a] / 0.2) for a in others)
        positives = [p for p in others if label[p] == label[i]]
        terms = [-np.log(np.exp(unit[i] @ unit[p] / 0.2) / total) for p in positives]
        assert float(loss[i]) == pytest.approx(np.mean(terms) if terms else 0, rel=1e-4)
        assert float(partnered[i]) == (1 if terms else 0)


def test_padding_is_nobodys_other() -> None:
    unit, label = units(5), np.array([0, 0, 1, 1, 0])
    whole, _ = contrastive_loss(tf.constant(unit[:4]), tf.constant(label[:4]), tf.ones(4), 0.1)
    padded, partnered = contrastive_loss(
        tf.constant(unit), tf.constant(label), tf.constant([1.0, 1.0, 1.0, 1.0, 0.0]), 0.1
    )
    np.testing.assert_allclose(padded[:4], whole, rtol=1e-5)
    assert (float(padded[4]), float(partnered[4])) == (0, 0)


def test_a_batch_without_pairs_has_no_loss_and_a_finite_gradient() -> None:
    layer = build()
    features = {"feature_vector": tf.constant(units(3, 6))}
    for weight in ([1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]):
        with tf.GradientTape() as tape:
            targets = {"label": tf.constant([0, 1, 2]), "weight": tf.constant(weight)}
            terms = layer.loss(features, targets, training=True)
        assert (float(terms.loss_sum), float(terms.weight_sum)) == (0, 0)
        gradients = tape.gradient(terms.loss_sum, [v.value for v in layer.trainable_variables])
        assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_the_margin_turns_the_angle_and_goes_on_falling() -> None:
    angle = np.linspace(0.01, np.pi - 0.01, 50)
    found = with_margin(tf.constant(np.cos(angle), tf.float32), 0.5).numpy()
    inside = angle < np.pi - 0.5
    np.testing.assert_allclose(found[inside], np.cos(angle[inside] + 0.5), atol=1e-3)
    assert (np.diff(found) < 0).all()


def test_arcface_is_scaled_cross_entropy_with_the_margin_in_training_only() -> None:
    layer = build(loss="arcface", scale=8.0, margin=0.3)
    feature_BD = units(3, 6)
    unit = np.asarray(layer.embeddings(feature_BD))
    centres = np.asarray(named_variables(layer)["centres"])
    cosine = unit @ (centres / np.linalg.norm(centres, axis=1, keepdims=True)).T
    targets = {"label": tf.constant([2, 0, 3]), "weight": tf.ones(3)}  # 3: a class that training hasn't seen

    def expected(margin: float) -> float:
        total = 0.0
        for row, label in ((0, 2), (1, 0)):
            logits = 8 * cosine[row].astype(np.float64)
            logits[label] = 8 * np.cos(np.arccos(cosine[row, label]) + margin)
            total += np.log(np.exp(logits).sum()) - logits[label]
        return total

    for training, margin in ((True, 0.3), (False, 0.0)):
        terms = layer.loss({"feature_vector": tf.constant(feature_BD)}, targets, training=training)
        assert float(terms.loss_sum) == pytest.approx(expected(margin), rel=1e-4)
        assert float(terms.weight_sum) == 2


@pytest.mark.parametrize("loss", ["contrastive", "arcface"])
def test_it_learns_what_raw_features_hide(loss: str) -> None:
    """The class lies in two small coordinates, beside four large ones of noise."""
    chance = np.random.default_rng(0)

    def drawn(count: int) -> tuple[np.ndarray, np.ndarray]:
        label = chance.integers(0, 3, count).astype(np.int32)
        corner = np.array([[1, 0], [-0.5, 0.87], [-0.5, -0.87]])[label]
        parts = [corner + 0.1 * chance.standard_normal((count, 2)), 3 * chance.standard_normal((count, 4))]
        return np.concatenate(parts, axis=1).astype(np.float32), label

    layer = build(loss=loss, scale=8.0)
    feature_ND, label_N = drawn(96)
    variables = [variable.value for variable in layer.trainable_variables]
    optimizer = keras.optimizers.Adam(0.02)

    @tf.function
    def step() -> None:
        targets = {"label": tf.constant(label_N), "weight": tf.ones(96)}
        with tf.GradientTape() as tape:
            terms = layer.loss({"feature_vector": tf.constant(feature_ND)}, targets, training=True)
            mean = terms.loss_sum / terms.weight_sum
        optimizer.apply(tape.gradient(mean, variables), layer.trainable_variables)

    optimizer.build(layer.trainable_variables)
    for _ in range(150):
        step()
    new_ND, new_N = drawn(60)
    named = examples(*(ASSETS.classes[n] for n in new_N))  # type: ignore[index]
    raw = new_ND / np.linalg.norm(new_ND, axis=1, keepdims=True)
    before = retrieval_metrics(raw, [str(e.label) for e in named])["recall_at_1"]
    metrics = layer.evaluate(new_ND, named)
    assert before < 0.7
    assert metrics["recall_at_1"] > 0.9
    assert metrics["knn_accuracy"] > 0.9


def test_resolved_arguments_build_the_same() -> None:
    resolved = EMBEDDING.resolved(EmbeddingArguments(dim=8, hidden=(5,), loss="arcface"), ASSETS)
    again = EMBEDDING.build(arguments=EmbeddingArguments(**resolved), feature_dim=6, assets=ASSETS, seed=0)
    assert named_variables(again)["embedding/kernel"].shape == (5, 8)


@pytest.mark.parametrize("arguments", [{"dim": 1}, {"contrastive_temperature": 0}, {"margin": 2}, {"loss": "triplet"}])
def test_arguments_that_make_no_sense(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        EmbeddingArguments(**arguments)


def test_small_shuffled_batches_of_many_classes_are_warned_of() -> None:
    assert isinstance(EMBEDDING, WarnsOfPlan)
    data = examples(*(str(n % 50) for n in range(200)))

    def said(batch: int, **arguments: Any) -> list[str]:
        spec = JobSpec.parse(
            {
                "name": "e",
                "backbone": "b",
                "head": {"kind": "embedding"},
                "data": {"location": "folder:x"},
                "train": {"batch_size": batch},
            }
        )
        return EMBEDDING.plan_warnings(data, EmbeddingArguments(**arguments), spec)

    (text,) = said(32)
    assert "about 53%" in text  # 0.98 ** 31
    assert not said(256)
    assert not said(32, loss="arcface")
