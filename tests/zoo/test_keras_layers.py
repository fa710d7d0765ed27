"""Architectures that go by Keras' own names, as data: no network is built here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from zoo.architectures import ARCHITECTURES
from zoo.architectures.choosing import choose
from zoo.architectures.facts import InvalidArguments
from zoo.architectures.layouts import turned
from zoo.architectures.matching import Match, convert, match
from zoo.imported_head import UnsupportedHead, head_record
from zoo.readers.checkpoint import DenseLayer, ForeignCheckpoint


def stored(architecture: str, layout: str = "keras", **arguments: float) -> dict[str, np.ndarray]:
    """What a file with this layout's names would hold, all zeros, the output layer left out."""
    facts = ARCHITECTURES[architecture]
    resolved = facts.resolved({**facts.name_maps[layout].arguments, **arguments})
    shapes = facts.tensor_shapes(resolved)
    names = facts.name_maps[layout].backbone(resolved)
    return {name: np.zeros(shapes[target.name], np.float32) for name, target in names.items()}


def dense(layer: str, inputs: int, outputs: int) -> dict[str, np.ndarray]:
    return {
        f"{layer}/kernel": np.zeros((inputs, outputs), np.float32),
        f"{layer}/bias": np.zeros(outputs, np.float32),
    }


def checkpoint(tensors: dict[str, np.ndarray], *chain: str, hidden: str = "relu") -> ForeignCheckpoint:
    layers = tuple(DenseLayer(name=name, activation="softmax" if name == chain[-1] else hidden) for name in chain)
    return ForeignCheckpoint(files=(), tensors=tensors, frameworks=("keras",), dense=layers)


def fitted(architecture: str, tensors: dict[str, np.ndarray], *chain: str) -> Match:
    return match(checkpoint(tensors, *chain), ARCHITECTURES[architecture], "keras", {})


@pytest.mark.parametrize(
    ("architecture", "layer", "inputs"),
    [
        ("resnet50", "probs", 2048),
        ("resnet50_v2", "probs", 2048),
        ("mobilenet_v2", "Logits", 1280),
        ("convnext_tiny", "convnext_tiny_head_dense", 768),
    ],
)
def test_the_output_layer_by_the_name_that_it_has_in_published_files(
    architecture: str, layer: str, inputs: int
) -> None:
    found = fitted(architecture, stored(architecture) | dense(layer, inputs, 1000))
    assert found.report.complete
    assert found.targets[f"{layer}/kernel"].name == "head/logits/kernel"


@pytest.mark.parametrize("architecture", ["resnet50", "mobilenet_v2", "convnext_tiny", "efficientnet_v2_b0"])
def test_another_head_by_the_chain_of_dense_layers_that_the_file_describes(architecture: str) -> None:
    inputs = ARCHITECTURES[architecture].feature_dim({})
    tensors = stored(architecture) | dense("mine", inputs, 64) | dense("answer", 64, 5)
    found = fitted(architecture, tensors, "mine", "answer")
    assert found.report.complete
    assert [layer.name for layer in found.dense] == ["mine", "answer"]
    assert found.targets["mine/kernel"].name == "head/hidden_0/kernel"
    assert found.targets["answer/bias"].name == "head/logits/bias"


def test_no_head_at_all() -> None:
    found = fitted("resnet50", stored("resnet50"))
    assert found.report.complete
    assert found.dense == ()


def test_names_of_keras_2_are_scopes() -> None:
    names = stored("mobilenet_v3_large", "keras-2")
    for name in (
        "Conv/kernel",
        "Conv/BatchNorm/gamma",
        "Conv_1/kernel",
        "Conv_1/BatchNorm/moving_variance",
        "expanded_conv/depthwise/depthwise_kernel",
        "expanded_conv/depthwise/BatchNorm/beta",
        "expanded_conv/project/kernel",
        "expanded_conv_3/expand/BatchNorm/moving_mean",
        "expanded_conv_3/squeeze_excite/Conv/kernel",
        "expanded_conv_3/squeeze_excite/Conv_1/bias",
        "expanded_conv_14/project/BatchNorm/gamma",
    ):
        assert name in names
    assert len(names) == len(stored("mobilenet_v3_large"))


@pytest.mark.parametrize(
    ("architecture", "layout"),
    [
        *((name, "keras") for name in ("resnet50", "resnet50_v2", "efficientnet_v2_b0")),
        *(("mobilenet_v2", layout) for layout in ARCHITECTURES["mobilenet_v2"].name_maps),
        *(("mobilenet_v3_small", layout) for layout in ARCHITECTURES["mobilenet_v3_small"].name_maps),
        *(("mobilenet_v3_large", layout) for layout in ARCHITECTURES["mobilenet_v3_large"].name_maps),
        *(("convnext_tiny", layout) for layout in ARCHITECTURES["convnext_tiny"].name_maps),
    ],
)
def test_a_file_fits_one_map_of_one_architecture(architecture: str, layout: str) -> None:
    found = choose(checkpoint(stored(architecture, layout)), Path("a.h5"), None, {})
    assert (found.facts.name, found.layout) == (architecture, layout)


@pytest.mark.parametrize("asked", [None, "mobilenet_v2"])
@pytest.mark.parametrize(("width", "nearest"), [(0.6, "keras-0.75"), (2.0, "keras")])
def test_a_width_that_nobody_publishes_gets_a_report_and_a_guess(width: float, nearest: str, asked: str | None) -> None:
    found = choose(checkpoint(stored("mobilenet_v2", width=width)), Path("a.h5"), asked, {})
    assert (found.facts.name, found.layout) == ("mobilenet_v2", nearest)
    assert not found.report.missing
    assert len(found.report.mismatched) > 50
    assert "times the width" in str(found.report.guess)


@pytest.mark.parametrize("architecture", ["mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"])
@pytest.mark.parametrize("width", [0, -1, 4.5, float("nan")])
def test_widths_out_of_range(architecture: str, width: float) -> None:
    with pytest.raises(InvalidArguments, match=f"{architecture}.*width"):
        ARCHITECTURES[architecture].tensor_shapes({"width": width})


def test_blue_first_is_turned_along_the_inputs_only() -> None:
    value = np.arange(2 * 2 * 3 * 4, dtype=np.float32).reshape(2, 2, 3, 4)
    red_first = turned(value, "conv_bgr")
    np.testing.assert_array_equal(red_first[:, :, 0], value[:, :, 2])
    np.testing.assert_array_equal(red_first[:, :, 1], value[:, :, 1])
    np.testing.assert_array_equal(red_first[:, :, 2], value[:, :, 0])


def test_mobilenet_v3_keeps_its_classifier_with_the_hidden_layer() -> None:
    facts = ARCHITECTURES["mobilenet_v3_small"]
    tensors = stored("mobilenet_v3_small") | {
        "conv_2/kernel": np.zeros((1, 1, 576, 1024), np.float32),
        "conv_2/bias": np.zeros(1024, np.float32),
        "logits/kernel": np.zeros((1, 1, 1024, 1000), np.float32),
        "logits/bias": np.zeros(1000, np.float32),
    }
    found = match(checkpoint(tensors), facts, "keras", {})
    assert found.report.complete
    record = head_record(found, convert(checkpoint(tensors), found)["head"])
    assert record is not None
    assert record.arguments == {
        "num_classes": 1000,
        "hidden": [1024],
        "dropout": [0.0],
        "activation": "softmax",
        "hidden_activation": "hard_swish",
    }


def hidden_chain(*activations: str) -> tuple[Match, dict[str, np.ndarray]]:
    """A ResNet-50 with hidden layers of these activations, and the tensors of its head."""
    names = [f"h{place}" for place in range(len(activations))]
    tensors = stored("resnet50")
    for place, name in enumerate(names):
        tensors |= dense(name, 2048 if place == 0 else 4, 4)
    tensors |= dense("answer", 4, 3)
    layers = [DenseLayer(name=name, activation=kind) for name, kind in zip(names, activations, strict=True)]
    whole = ForeignCheckpoint(
        files=(),
        tensors=tensors,
        frameworks=("keras",),
        dense=(*layers, DenseLayer(name="answer", activation="softmax")),
    )
    found = match(whole, ARCHITECTURES["resnet50"], "keras", {})
    return found, convert(whole, found)["head"]


def test_the_activation_of_hidden_layers_is_recorded_where_it_is_not_relu() -> None:
    plain, swish = head_record(*hidden_chain("relu", "relu")), head_record(*hidden_chain("hard_silu"))
    assert plain is not None
    assert swish is not None
    assert "hidden_activation" not in plain.arguments
    assert swish.arguments["hidden_activation"] == "hard_swish"


@pytest.mark.parametrize(
    ("activations", "named"),
    [(("relu", "tanh"), r"\(h1: tanh\)"), (("relu", "hard_swish"), "h0: relu, h1: hard_swish")],
)
def test_other_activations_are_refused_by_name(activations: tuple[str, ...], named: str) -> None:
    with pytest.raises(UnsupportedHead, match=named):
        head_record(*hidden_chain(*activations))
