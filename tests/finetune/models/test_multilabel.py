from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from pydantic import ValidationError

from finetune.data.source import Example
from finetune.models.heads import head_kind
from finetune.models.heads.dense_arguments import InvalidLabels, NoClassNames
from finetune.models.heads.head import Assets, FittedHead, ShowsPredictions
from finetune.models.heads.multilabel import MULTILABEL, MultilabelArguments
from finetune.models.restore import named_variables

ASSETS = Assets(files={}, classes=("ape", "bee", "cat"))


def examples(*labels: str) -> list[Example]:
    """`a+b`: both; an empty text: none."""
    return [Example(id=f"{n}.png", labels=tuple(filter(None, text.split("+")))) for n, text in enumerate(labels)]


def build(assets: Assets = ASSETS, **arguments: Any) -> Any:
    return MULTILABEL.build(arguments=MultilabelArguments(**arguments), feature_dim=3, assets=assets, seed=1)


def fixed(**arguments: Any) -> Any:
    """Logits are the features."""
    layer = build(**arguments)
    named_variables(layer)["logits/kernel"].assign(np.eye(3))
    return layer


def test_it_is_in_the_table() -> None:
    assert head_kind("multilabel") is MULTILABEL


def test_classes_are_all_labels_in_order_of_code_points() -> None:
    learnt = MULTILABEL.learn_assets(examples("b+a", "", "B", "a+10"), MultilabelArguments())
    assert learnt.classes == ("10", "B", "a", "b")


def test_targets_hold_images_without_any_class() -> None:
    table = MULTILABEL.targets(examples("cat+ape", "", "bee"), MultilabelArguments(), ASSETS)
    expected = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]], np.uint8)
    np.testing.assert_array_equal(table.arrays["labels"], expected, strict=True)
    assert set(table.arrays) == {"labels"}


def test_balanced_weights_are_absent_over_present() -> None:
    some = examples("cat", "cat+ape", "", "")
    table = MULTILABEL.targets(some, MultilabelArguments(positive_weights="balanced"), ASSETS)
    np.testing.assert_allclose(table.arrays["positive_weight"][3], [3, 4, 1])


@pytest.mark.parametrize(
    ("data", "arguments", "match"),
    [
        ([Example(id="x/1.png", label="x"), Example(id="y/1.png", label="y")], {}, "2 of 2 examples have a single"),
        ([*examples("a"), Example(id="y/1.png", label="y")], {}, "1 of 2 examples have a single label.*y/1.png"),
        (examples("", ""), {}, "none of the 2 training examples has a label"),
        (examples("a", "b"), {"num_classes": 3}, "num_classes is 3, but the training split has 2"),
        (examples("a", "b"), {"thresholds": (0.5,)}, "1 thresholds for 2 classes"),
        (examples("a", "b"), {"positive_weights": {"c": 2.0}}, "positive_weights names 'c'"),
    ],
)
def test_labels_that_cannot_be_learnt(data: list[Example], arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidLabels, match=match):
        MULTILABEL.learn_assets(data, MultilabelArguments(**arguments))


def test_single_labels_point_to_the_classifier() -> None:
    with pytest.raises(InvalidLabels) as caught:
        MULTILABEL.learn_assets([Example(id="a", label="x"), Example(id="b", label="y")], MultilabelArguments())
    assert "--head classifier" in str(caught.value.hint)


def test_one_folder_is_a_question_of_yes_or_no() -> None:
    assert MULTILABEL.learn_assets([Example(id="x/1", label="x")], MultilabelArguments()).classes == ("x",)


def test_a_label_of_no_class_is_named_with_its_file() -> None:
    with pytest.raises(InvalidLabels, match=r"'dogs' \(for example of 1\.png\)"):
        MULTILABEL.targets(examples("cat", "bee+dogs"), MultilabelArguments(), ASSETS)


@pytest.mark.parametrize("arguments", [{"thresholds": (1.5,)}, {"positive_weights": {"a": 0}}, {"dropout": [0.5]}])
def test_arguments_that_make_no_sense(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        MultilabelArguments(**arguments)


def test_a_version_without_class_names_is_refused() -> None:
    with pytest.raises(NoClassNames):
        build(Assets(files={}))


def loss(layer: Any, logits: list[list[float]], truth: list[list[int]], training: bool = False, **more: Any) -> Any:
    targets = {"labels": tf.constant(truth, tf.uint8), "weight": tf.constant([1.0, 0.0][: len(logits)]), **more}
    return layer.loss({"feature_vector": tf.constant(logits)}, targets, training=training)


def test_the_loss_is_the_mean_over_classes_of_weighted_rows() -> None:
    terms = loss(fixed(), [[2.0, -1.0, 0.0], [9.0, 9.0, 9.0]], [[1, 0, 1], [0, 0, 0]])
    expected = np.mean([np.log1p(np.exp(-2)), np.log1p(np.exp(-1)), np.log(2)])
    assert float(terms.loss_sum) == pytest.approx(expected, rel=1e-5)
    assert float(terms.weight_sum) == 1
    assert float(terms.metrics["binary_accuracy"][0]) == pytest.approx(1)


def test_positive_weights_are_for_training_only() -> None:
    layer, more = fixed(), {"positive_weight": tf.constant([[3.0, 3.0, 3.0]])}
    plain = float(loss(layer, [[0.0, 0.0, 0.0]], [[1, 0, 0]]).loss_sum)
    assert float(loss(layer, [[0.0, 0.0, 0.0]], [[1, 0, 0]], **more).loss_sum) == pytest.approx(plain)
    weighted = float(loss(layer, [[0.0, 0.0, 0.0]], [[1, 0, 0]], training=True, **more).loss_sum)
    assert weighted == pytest.approx(np.log(2) * (3 + 1 + 1) / 3, rel=1e-5)


def test_thresholds_are_fitted_stored_and_used() -> None:
    layer = fixed()
    assert isinstance(layer, FittedHead)
    assert isinstance(layer, ShowsPredictions)
    logits = np.array([[-1, 3, 0], [-2, 2, 0], [-4, -1, 0], [-5, -2, 0]], np.float32)
    data = examples("ape+bee", "ape+bee", "", "")
    before = layer.evaluate(logits, data)
    fitted = layer.fit_after(logits, data)
    after = layer.evaluate(logits, data)
    assert before["map"] == after["map"] == 1
    assert (before["macro_f1"], after["macro_f1"]) == (0.5, 1.0)
    sigmoid = 1 / (1 + np.exp([2.0, 4.0]))
    assert fitted["thresholds"] == [pytest.approx(sigmoid.mean(), rel=1e-4), 0.5, 0.5]
    assert layer.fit_after(logits, data) == fitted
    again = build(**MULTILABEL.resolved(MultilabelArguments(), ASSETS) | fitted)
    np.testing.assert_array_equal(again.thresholds, layer.thresholds)
    assert again.said(np.array([0.2, 0.9, 0.4])) == [1, 0]


def test_given_or_untuned_thresholds_are_left_alone() -> None:
    data = examples("ape", "", "", "")
    for arguments in ({"thresholds": (0.1, 0.2, 0.3)}, {"tune_thresholds": "none"}):
        layer = fixed(**arguments)
        assert layer.fit_after(np.zeros((4, 3), np.float32), data) == {}


def test_resolved_arguments_are_json_and_build_the_same() -> None:
    resolved = MULTILABEL.resolved(MultilabelArguments(hidden=(4,), positive_weights={"ape": 2}), ASSETS)
    assert resolved["num_classes"] == 3
    assert build(**resolved).output_layer.kernel.shape == (4, 3)


def test_what_is_shown_of_an_image() -> None:
    logits = np.array([[3, -3, -3], [3, -3, -3]], np.float32)
    right, wrong = fixed().shown(logits, examples("ape", "cat"))
    assert (right.said, right.truth, wrong.truth) == ("ape 0.95", "ape", "cat")
    assert right.goodness > wrong.goodness
