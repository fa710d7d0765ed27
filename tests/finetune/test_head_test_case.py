"""The assertions that people write a head with: the heads there are pass, a broken one fails by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from finetune.data.source import Example
from finetune.head_test_case import HeadTestCase
from finetune.models.heads import head_kind
from finetune.models.heads.head import LossTerms
from tests.finetune.training.line import Line

DIM = 6
EXAMPLES = tuple(
    Example(
        id=f"{n}.png", label="abc"[n % 3], labels=("ab"[n % 2],), captions=(f"a {['red', 'blue', 'green'][n % 3]} cat",)
    )
    for n in range(8)
)


def head_and_batch(kind_name: str, **arguments: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    kind = head_kind(kind_name)
    parsed = kind.Arguments.model_validate(arguments)
    assets = kind.learn_assets(EXAMPLES, parsed)
    table = kind.targets(EXAMPLES, parsed, assets)
    features = np.random.default_rng(0).standard_normal((len(EXAMPLES), DIM)).astype(np.float32)
    targets = dict(table.arrays) | {"weight": np.linspace(0.5, 1.5, len(EXAMPLES)).astype(np.float32)}
    head = kind.build(arguments=parsed, feature_dim=DIM, assets=assets, seed=1)
    return head, {"feature_vector": features[table.image_index]}, targets


class EveryHead(HeadTestCase):
    def hold(self, head: Any, features: dict[str, Any], targets: dict[str, Any]) -> None:
        self.assertGradientsFlow(head, features, targets)
        self.assertSumsAdd(head, features, targets)
        self.assertPaddingIgnored(head, features, targets)

    def test_classifier(self) -> None:
        head, features, targets = head_and_batch("classifier", hidden=[5], dropout=[0.2], label_smoothing=0.1)
        self.hold(head, features, targets)
        self.assertShape(head.logits(features["feature_vector"]), (None, 3))
        self.assertAllInRange(head.probabilities(features["feature_vector"]), 0.0, 1.0)
        self.assertAllClose(tf.reduce_sum(head.probabilities(features["feature_vector"]), axis=-1), np.ones(8))

    def test_multilabel(self) -> None:
        head, features, targets = head_and_batch("multilabel")
        self.hold(head, features, targets)
        self.assertAllInRange(head.probabilities(features["feature_vector"]), 0.0, 1.0)

    def test_captioner(self) -> None:
        sizes = {"units": 8, "embedding": 8, "min_count": 1, "max_words": 5}
        self.hold(*head_and_batch("captioner", **sizes))


class Broken(Line):
    """`how`: what it does wrong."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def loss(self, features: Any, targets: Any, *, training: bool) -> LossTerms:
        terms = super().loss(features, targets, training=training)
        loss = terms.loss_sum
        if self.how == "mean":
            loss = loss / terms.weight_sum
        if self.how == "padding":
            loss = tf.reduce_sum(tf.square(tf.linalg.matvec(features["feature_vector"], self.w.value)))
        if self.how == "cut":
            loss = tf.stop_gradient(loss)
        return LossTerms(loss_sum=loss, weight_sum=terms.weight_sum, metrics={})


@pytest.mark.parametrize(
    ("how", "assertion", "said"),
    [
        ("mean", "assertSumsAdd", "loss doesn't add up"),
        ("padding", "assertPaddingIgnored", "loss counts rows of weight 0"),
        ("cut", "assertGradientsFlow", "doesn't depend on line/w"),
    ],
)
def test_a_broken_head_fails_by_name(how: str, assertion: str, said: str) -> None:
    x = np.array([[1.0, 2.0], [3.0, -1.0]], np.float32)
    targets = {"y": np.array([1.0, 2.0], np.float32), "weight": np.ones(2, np.float32)}
    with pytest.raises(AssertionError, match=said):
        getattr(HeadTestCase(), assertion)(Broken(how), {"feature_vector": x}, targets)


def test_shapes_and_finite_values() -> None:
    case = HeadTestCase()
    case.assertShape(np.zeros((2, 3)), (None, 3))
    with pytest.raises(AssertionError, match=r"shape \(2, 3\), expected \(None, 4\)"):
        case.assertShape(np.zeros((2, 3)), (None, 4))
    case.assertAllFinite(tf.ones(3))
    with pytest.raises(AssertionError, match=r"1 of 4 values are NaN or Inf, the first at \(1, 0\): inf"):
        case.assertAllFinite(np.array([[1.0, 2.0], [np.inf, 0.0]]))
