from __future__ import annotations

import keras
import numpy as np
import pytest

from finetune.models.restore import named_variables, restore
from zoo.errors import Internal
from zoo.restore_report import IncompleteRestore, Mismatch, guess_cause


def variables() -> dict[str, keras.Variable]:
    return {name: keras.Variable(np.zeros(shape, np.float32), name=name) for name, shape in SHAPES.items()}


SHAPES: dict[str, tuple[int, ...]] = {"a": (2, 3), "b": (3,)}


def values() -> dict[str, np.ndarray]:
    return {name: np.full(shape, 7, np.float32) for name, shape in SHAPES.items()}


def test_values_arrive() -> None:
    wanted = variables()
    report = restore(wanted, values())
    assert report.complete
    assert report.restored == ("a", "b")
    assert all((variable.numpy() == 7).all() for variable in wanted.values())


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"a": np.ones((3, 2), np.float32)}, "mismatched"),
        ({"a": np.ones(6, np.float32)}, "mismatched"),
        ({"c": np.ones(1, np.float32)}, "unexplained"),
        ({"a": None}, "missing"),
    ],
)
def test_nothing_is_assigned_when_anything_does_not_fit(change: dict[str, np.ndarray | None], part: str) -> None:
    wanted = variables()
    stored = {name: value for name, value in {**values(), **change}.items() if value is not None}
    report = restore(wanted, stored)
    assert getattr(report, part)
    assert not report.complete
    with pytest.raises(IncompleteRestore, match="head of x@1"):
        report.require_complete("head of x@1")
    assert all((variable.numpy() == 0).all() for variable in wanted.values())


def test_fresh_only_where_allowed() -> None:
    wanted = variables()
    report = restore(wanted, {"a": values()["a"]}, allow_fresh=["b"])
    assert report.complete
    assert report.fresh == ("b",)
    assert (wanted["b"].numpy() == 0).all()


def test_no_match_at_all_is_never_a_success() -> None:
    report = restore(variables(), {}, allow_fresh=SHAPES)
    assert not report.complete
    with pytest.raises(IncompleteRestore, match="no tensor matched"):
        report.require_complete("x")


def test_names_below_a_layer_without_random_states() -> None:
    class Layer(keras.Layer):
        def __init__(self) -> None:
            super().__init__(name="outer")
            self.dense = keras.layers.Dense(3, name="inner")
            self.drop = keras.layers.Dropout(0.5, seed=1)

        def build(self, shape: tuple[int | None, ...]) -> None:
            self.dense.build(shape)
            self.built = True

    layer = Layer()
    layer.build((None, 2))
    assert sorted(named_variables(layer)) == ["inner/bias", "inner/kernel"]


def test_a_variable_outside_its_layer_is_a_fault() -> None:
    class Layer(keras.Layer):
        def __init__(self, stranger: keras.layers.Dense) -> None:
            super().__init__(name="outer")
            self.stranger = stranger

    stranger = keras.layers.Dense(3, name="stranger")
    stranger.build((None, 2))
    with pytest.raises(Internal, match="stranger/kernel"):
        named_variables(Layer(stranger))


def test_causes_are_guessed_only_where_they_stand_out() -> None:
    def guess(*pairs: tuple[str, tuple[int, ...], tuple[int, ...]]) -> str | None:
        return guess_cause(tuple(Mismatch(name=n, stored=s, wanted=w) for n, s, w in pairs))

    assert guess() is None
    turned = guess(("a", (3, 3, 8, 4), (8, 4, 3, 3)), ("b", (4, 8), (8, 4)))
    assert turned is not None
    assert "layout" in turned
    classes = guess(("head/logits/kernel", (128, 5), (128, 6)), ("head/logits/bias", (5,), (6,)))
    assert classes is not None
    assert "classes" in classes
    wider = guess(("a", (44,), (32,)), ("b", (22,), (16,)), ("c", (88,), (64,)))
    assert wider is not None
    assert "1.4 times the width" in wider
    assert guess(("a", (44,), (32,)), ("b", (7,), (16,)), ("c", (88,), (64,))) is None
