from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from pydantic import ValidationError

from finetune.data.source import Example
from finetune.models.heads import HEADS, UnknownHead, head_kind
from finetune.models.heads.classifier import CLASSIFIER, ClassifierArguments
from finetune.models.heads.dense_arguments import InvalidLabels, NoClassNames
from finetune.models.heads.head import Assets, FittedHead
from finetune.models.restore import named_variables

ASSETS = Assets(files={}, classes=("ape", "bee", "cat"))


def examples(*labels: str | None) -> list[Example]:
    return [Example(id=f"{place}.png", label=label) for place, label in enumerate(labels)]


def build(assets: Assets = ASSETS, seed: int = 1, **arguments: Any) -> Any:
    return CLASSIFIER.build(arguments=ClassifierArguments(**arguments), feature_dim=4, assets=assets, seed=seed)


def test_the_table_knows_its_heads() -> None:
    assert head_kind("classifier") is CLASSIFIER
    assert set(HEADS) == {"captioner", "classifier", "embedding", "multilabel"}
    with pytest.raises(UnknownHead, match="captioner, classifier, embedding, multilabel"):
        head_kind("detector")


def test_classes_are_the_training_labels_in_order_of_code_points() -> None:
    learnt = CLASSIFIER.learn_assets(examples("10", "2", "1", "Ä", "a", "2"), ClassifierArguments())
    assert learnt.classes == ("1", "10", "2", "a", "Ä")
    assert not learnt.files


@pytest.mark.parametrize(
    ("labels", "arguments", "match"),
    [
        (("cat", "cat"), {}, "only 'cat'"),
        ((), {}, "no examples"),
        (("cat", None, "ape"), {}, r"1 of 3 examples have no label: 1\.png"),
        (("cat", "ape"), {"num_classes": 3}, "num_classes is 3, but the training split has 2 classes"),
    ],
)
def test_labels_that_cannot_be_learnt(labels: tuple[str | None, ...], arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidLabels, match=match):
        CLASSIFIER.learn_assets(examples(*labels), ClassifierArguments(**arguments))


def test_targets_are_positions_found_by_name() -> None:
    table = CLASSIFIER.targets(examples("cat", "ape", "cat"), ClassifierArguments(), ASSETS)
    np.testing.assert_array_equal(table.image_index, np.array([0, 1, 2], np.int32), strict=True)
    np.testing.assert_array_equal(table.arrays["label"], np.array([2, 0, 2], np.int32), strict=True)


def test_a_label_of_no_class_is_named_with_its_file() -> None:
    with pytest.raises(InvalidLabels, match=r"'dogs' \(for example of 1\.png\)"):
        CLASSIFIER.targets(examples("cat", "dogs"), ClassifierArguments(), ASSETS)


@pytest.mark.parametrize(
    "arguments",
    [
        {"hidden": [8], "dropout": [0.5, 0.5]},
        {"dropout": [0.5]},
        {"hidden": [0]},
        {"hidden": [8], "dropout": [1.0]},
        {"num_classes": 1},
        {"label_smoothing": 1.0},
        {"units": 3},
        {"activation": "sigmoid"},
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ClassifierArguments(**arguments)


def test_tensor_names() -> None:
    layer = build(hidden=(6, 5), dropout=(0.5, 0.25))
    shapes = {name: tuple(variable.shape) for name, variable in named_variables(layer).items()}
    assert shapes == {
        "hidden_0/kernel": (4, 6),
        "hidden_0/bias": (6,),
        "hidden_1/kernel": (6, 5),
        "hidden_1/bias": (5,),
        "logits/kernel": (5, 3),
        "logits/bias": (3,),
    }


def test_seeds_decide_the_initial_weights() -> None:
    def kernel(seed: int) -> np.ndarray:
        return np.asarray(named_variables(build(hidden=(6,), seed=seed))["hidden_0/kernel"])

    np.testing.assert_array_equal(kernel(1), kernel(1))
    assert np.abs(kernel(1) - kernel(2)).max() > 0


def test_resolved_arguments_build_the_same_layer_without_training_data() -> None:
    resolved = CLASSIFIER.resolved(ClassifierArguments(hidden=(6,)), ASSETS)
    assert resolved == {
        "num_classes": 3,
        "hidden": [6],
        "dropout": [0.0],
        "activation": "softmax",
        "label_smoothing": 0.0,
    }
    layer = build(Assets(files={}), **resolved)
    assert layer.num_classes == 3


def test_hidden_layers_may_be_hard_swish_and_say_so() -> None:
    resolved = CLASSIFIER.resolved(ClassifierArguments(hidden=(6,), hidden_activation="hard_swish"), ASSETS)
    assert resolved["hidden_activation"] == "hard_swish"
    layer = build(Assets(files={}), **resolved)
    feature_BD = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    named = {name: np.asarray(variable) for name, variable in named_variables(layer).items()}
    before = feature_BD @ named["hidden_0/kernel"] + named["hidden_0/bias"]
    hidden = before * np.clip(before + 3, 0, 6) / 6
    wanted = hidden @ named["logits/kernel"] + named["logits/bias"]
    np.testing.assert_allclose(layer.logits(feature_BD), wanted, atol=1e-5)


def fixed(**arguments: Any) -> Any:
    """A linear layer whose logits are the first three features."""
    layer = build(**arguments)
    named = named_variables(layer)
    named["logits/kernel"].assign(np.eye(4, 3))
    named["logits/bias"].assign(np.zeros(3))
    return layer


LOGITS_BD = np.array([[2, 0, 0, 9], [0, 1, 0, 9], [0, 0, 3, 9], [5, 5, 5, 9]], np.float32)


def loss(layer: Any, label: list[int], weight: list[float], *, training: bool = False) -> Any:
    targets = {"label": tf.constant(label, tf.int32), "weight": tf.constant(weight, tf.float32)}
    features = {"feature_vector": tf.constant(LOGITS_BD[: len(label)])}
    return layer.loss(features, targets, training=training)


def test_the_loss_is_cross_entropy_over_weighted_rows() -> None:
    terms = loss(fixed(), [0, 1, 0], [1, 1, 0])
    expected = -np.log(np.exp(2) / (np.exp(2) + 2)) - np.log(np.e / (np.e + 2))
    assert float(terms.loss_sum) == pytest.approx(expected, rel=1e-6)
    assert float(terms.weight_sum) == 2
    right, weight = terms.metrics["accuracy"]
    assert (float(right), float(weight)) == (2, 2)


def test_smoothing_is_for_training_only() -> None:
    layer = fixed(label_smoothing=0.3)
    log_p = LOGITS_BD[0, :3] - np.log(np.exp(LOGITS_BD[0, :3]).sum())
    smooth = -(0.8 * log_p[0] + 0.1 * log_p[1] + 0.1 * log_p[2])
    assert float(loss(layer, [0], [1], training=True).loss_sum) == pytest.approx(smooth, rel=1e-5)
    assert float(loss(layer, [0], [1]).loss_sum) == pytest.approx(-log_p[0], rel=1e-5)


def test_dropout_is_for_training_only() -> None:
    layer = build(hidden=(64,), dropout=(0.5,))
    feature_BD = np.ones((2, 4), np.float32)
    still = layer.logits(feature_BD).numpy()
    np.testing.assert_array_equal(still, layer.logits(feature_BD).numpy())
    assert np.abs(still - layer.logits(feature_BD, training=True).numpy()).max() > 0


def test_it_learns() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 90).astype(np.int32)
    feature_BD = (np.eye(3, 4)[label] * 3 + rng.standard_normal((90, 4)) * 0.3).astype(np.float32)
    layer = build(hidden=(8,))
    features = {"feature_vector": tf.constant(feature_BD)}
    targets = {"label": tf.constant(label), "weight": tf.ones(90)}
    variables = [variable.value for variable in layer.trainable_variables]
    for _ in range(200):
        with tf.GradientTape() as tape:
            terms = layer.loss(features, targets, training=True)
            mean = terms.loss_sum / terms.weight_sum
        for variable, gradient in zip(variables, tape.gradient(mean, variables), strict=True):
            variable.assign_sub(0.1 * gradient)
    metrics = layer.evaluate(feature_BD, examples(*(ASSETS.classes[i] for i in label)))  # type: ignore[index]
    assert metrics["accuracy"] > 0.98


def test_evaluate_compares_by_name_and_counts_each_example_once() -> None:
    metrics = fixed().evaluate(LOGITS_BD[:3], examples("ape", "cat", "cat"))
    assert metrics["num_examples"] == 3
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["per_class"]["cat"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2}
    assert metrics["per_class"]["bee"]["support"] == 0


def test_a_background_class_shifts_the_outputs() -> None:
    layer = fixed(assets=Assets(files={}, classes=("ape", "bee")), num_classes=3)
    assert layer.class_offset == 1
    metrics = layer.evaluate(LOGITS_BD[:3], examples("bee", "ape", "bee"))
    assert metrics["accuracy"] == pytest.approx(2 / 3)  # the first is taken for the background
    assert "<0>" in metrics["per_class"]


def test_a_classifier_without_class_names_cannot_be_scored() -> None:
    layer = build(Assets(files={}), num_classes=3)
    assert layer.probabilities(LOGITS_BD).shape == (4, 3)
    with pytest.raises(NoClassNames):
        layer.evaluate(LOGITS_BD, examples("ape", "bee", "cat", "cat"))


@pytest.mark.parametrize("classes", [("a", "b"), ("a", "b", "c", "d", "e")])
def test_names_that_do_not_fit_the_outputs(classes: tuple[str, ...]) -> None:
    with pytest.raises(InvalidLabels, match="4 outputs"):
        build(Assets(files={}, classes=classes), num_classes=4)


def test_a_background_class_counts_in_the_loss_too() -> None:
    layer = fixed(assets=Assets(files={}, classes=("ape", "bee")), num_classes=3)
    log_p = LOGITS_BD[1, :3] - np.log(np.exp(LOGITS_BD[1, :3]).sum())
    features = {"feature_vector": tf.constant(LOGITS_BD[1:2])}
    targets = {"label": tf.constant([0]), "weight": tf.ones(1)}  # ape, whose output is the second
    terms = layer.loss(features, targets, training=False)
    assert float(terms.loss_sum) == pytest.approx(-log_p[1], rel=1e-5)
    assert float(terms.metrics["accuracy"][0]) == 1


def test_a_background_class_travels_with_the_assets() -> None:
    assets = Assets(files={}, classes=("ape", "bee"), class_offset=1)
    assert build(assets).num_classes == 3
    assert CLASSIFIER.resolved(ClassifierArguments(), assets)["num_classes"] == 3


def test_class_weights_are_for_training_and_the_mean_is_over_them() -> None:
    arguments = ClassifierArguments(class_weights="balanced")
    table = CLASSIFIER.targets(examples("ape", "ape", "ape", "cat"), arguments, ASSETS)
    np.testing.assert_allclose(table.arrays["class_weight"], [4 / 9, 4 / 9, 4 / 9, 4 / 3], rtol=1e-6)
    given = CLASSIFIER.targets(examples("ape", "cat"), ClassifierArguments(class_weights={"cat": 5}), ASSETS)
    np.testing.assert_array_equal(given.arrays["class_weight"], np.array([1, 5], np.float32), strict=True)
    targets = {"label": tf.constant([0, 1]), "weight": tf.ones(2), "class_weight": tf.constant([2.0, 0.5])}
    features = {"feature_vector": tf.constant(LOGITS_BD[:2])}
    each = [float(loss(fixed(), [0], [1]).loss_sum), float(loss(fixed(), [0, 1], [0, 1]).loss_sum)]
    terms = fixed().loss(features, targets, training=True)
    assert float(terms.loss_sum) == pytest.approx(2 * each[0] + 0.5 * each[1], rel=1e-5)
    assert float(terms.weight_sum) == 2.5
    assert float(terms.metrics["accuracy"][1]) == 2
    assert float(fixed().loss(features, targets, training=False).loss_sum) == pytest.approx(sum(each), rel=1e-5)
    with pytest.raises(InvalidLabels, match="class_weights names 'dog'"):
        CLASSIFIER.learn_assets(examples("ape", "cat"), ClassifierArguments(class_weights={"dog": 2}))


def test_the_focal_loss_is_for_training_only() -> None:
    layer = fixed(focal_gamma=2.0)
    p = np.exp(2) / (np.exp(2) + 2)
    assert float(loss(layer, [0], [1], training=True).loss_sum) == pytest.approx(-((1 - p) ** 2) * np.log(p), rel=1e-4)
    assert float(loss(layer, [0], [1]).loss_sum) == pytest.approx(-np.log(p), rel=1e-5)


def test_the_focal_loss_has_a_finite_gradient_where_it_is_certain() -> None:
    layer = fixed(focal_gamma=0.5)
    features = {"feature_vector": tf.constant([[80.0, 0, 0, 0]])}
    with tf.GradientTape() as tape:
        terms = layer.loss(features, {"label": tf.constant([0]), "weight": tf.ones(1)}, training=True)
    gradients = tape.gradient(terms.loss_sum, [variable.value for variable in layer.trainable_variables])
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def overconfident(spread: float = 0) -> tuple[np.ndarray, list[Example]]:
    """Three in four are right, and all are called almost certain; the wrong ones are the least so by `spread`."""
    feature_BD = np.zeros((40, 4), np.float32)
    feature_BD[np.arange(40), np.arange(40) % 3] = 6 + spread * (np.arange(40) % 4)
    wrong = np.arange(40) % 4 == 0
    labels = [ASSETS.classes[(n + wrong[n]) % 3] for n in range(40)]  # type: ignore[index]
    return feature_BD, examples(*labels)


def test_calibration_changes_scores_and_nothing_else() -> None:
    feature_BD, data = overconfident()
    layer = fixed()
    assert isinstance(layer, FittedHead)
    before = layer.evaluate(feature_BD, data)
    fitted = layer.fit_after(feature_BD, data)
    after = layer.evaluate(feature_BD, data)
    assert fitted["temperature"] > 2
    assert before["ece"] == before["ece_uncalibrated"] == after["ece_uncalibrated"] > 0.2
    assert after["ece"] < 0.1
    for name in ("accuracy", "top_5", "macro_f1", "per_class", "confusion"):
        assert after[name] == before[name]
    assert layer.fit_after(feature_BD, data) == fitted
    again = fixed(**CLASSIFIER.resolved(ClassifierArguments(), ASSETS) | fitted)
    np.testing.assert_array_equal(again.probabilities(feature_BD), layer.probabilities(feature_BD))
    assert again.evaluate(feature_BD, data) == {name: value for name, value in after.items() if name != "warnings"}


def test_the_abstain_threshold_keeps_its_promise_on_the_split_it_was_found_on() -> None:
    feature_BD, data = overconfident(spread=1)
    layer = fixed(abstain_precision=0.9)
    fitted = layer.fit_after(feature_BD, data)
    metrics = layer.evaluate(feature_BD, data)
    assert 0 < fitted["abstain_below"] < 1
    assert (metrics["coverage"], metrics["covered_accuracy"]) == (0.75, 1.0)
    assert "warnings" not in metrics


def test_a_precision_that_nothing_reaches_is_said() -> None:
    data = examples("bee", "bee")
    layer = fixed()
    assert "abstain_below" not in layer.fit_after(LOGITS_BD[[0, 2]], data)
    assert layer.evaluate(LOGITS_BD[[0, 2]], data)["warnings"] == [
        "no confidence is right 95% of the time: no abstain threshold is stored"
    ]


def test_what_is_given_or_not_wanted_is_not_fitted() -> None:
    feature_BD, data = overconfident()
    assert fixed(calibrate=False).fit_after(feature_BD, data) == {}
    assert set(fixed(temperature=1.5).fit_after(feature_BD, data)) <= {"abstain_below"}
    assert set(fixed(abstain_below=0.5).fit_after(feature_BD, data)) == {"temperature"}


def test_what_is_shown_of_an_image() -> None:
    right, wrong = fixed().shown(LOGITS_BD[[0, 2]], examples("ape", "bee"))
    assert (right.said, right.truth) == ("ape 0.79", "ape 0.79")
    assert (wrong.said, wrong.truth) == ("cat 0.91", "bee 0.05")
    assert right.goodness > wrong.goodness
