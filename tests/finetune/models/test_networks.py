"""The facts in `zoo.architectures` against the networks that are really built."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.models.backbone import BUILDERS, InputTooSmall, build_backbone
from finetune.models.restore import named_variables
from tests.tiny import TINY
from zoo.architectures import ARCHITECTURES, UnknownArchitecture
from zoo.architectures.facts import InvalidArguments
from zoo.input_spec import InputSpec
from zoo.manifest import Architecture

INCEPTION = Architecture(name="inception_v3")
CASES = [
    INCEPTION,
    Architecture(name="inception_v3", arguments={"pool_counts_padding": True}),
    Architecture(name="efficientnet_lite0"),
    TINY,
]


def shapes(model: keras.Model) -> dict[str, tuple[int, ...]]:
    return {name: tuple(variable.shape) for name, variable in named_variables(model).items()}


def test_there_is_a_builder_for_each_architecture() -> None:
    assert set(BUILDERS) == set(ARCHITECTURES)


@pytest.mark.parametrize("architecture", CASES, ids=lambda a: f"{a.name}-{a.arguments}")
def test_names_shapes_and_sizes(architecture: Architecture) -> None:
    facts = ARCHITECTURES[architecture.name]
    arguments = facts.resolved(architecture.arguments)
    model = build_backbone(architecture, facts.input_spec)
    assert shapes(model) == facts.tensor_shapes(arguments)
    assert model.output["feature_vector"].shape == (None, facts.feature_dim(arguments))
    stride = facts.endpoints[-1].stride
    side = -(-facts.input_spec.height // stride) if facts.name != "inception_v3" else 8
    assert model.output["feature_map"].shape == (None, side, side, facts.feature_dim(arguments))
    assert not model.trainable_variables
    if arguments == facts.resolved({}):
        assert model.count_params() == facts.parameters
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            assert layer.epsilon == pytest.approx(facts.batch_norm_epsilon)


def test_keras_layers_are_told_apart_whatever_it_has_counted_before() -> None:
    for _ in range(3):
        keras.layers.Conv2D(1, 1)  # moves Keras' automatic names on
    keras.layers.BatchNormalization()
    first = build_backbone(INCEPTION, InputSpec(height=75, width=75))
    second = build_backbone(INCEPTION, InputSpec(height=75, width=75))
    assert shapes(first) == shapes(second) == ARCHITECTURES["inception_v3"].tensor_shapes({})
    # Equal values under equal names give equal features: no layer of the second is another one's.
    for name, variable in named_variables(first).items():
        named_variables(second)[name].assign(variable)
    image = np.random.default_rng(0).random((2, 75, 75, 3), np.float32)
    np.testing.assert_array_equal(first(image)["feature_vector"], second(image)["feature_vector"])


def test_graph_names_hold_the_canonical_scope() -> None:
    model = build_backbone(TINY, InputSpec(height=32, width=32))
    graph = tf.function(lambda image: model(image)).get_concrete_function(tf.TensorSpec([1, 32, 32, 3])).graph
    assert any("block_3.depthwise" in operation.name for operation in graph.get_operations())


def test_padding_counts_only_where_it_is_asked_for() -> None:
    spec = InputSpec(height=75, width=75)
    plain = build_backbone(INCEPTION, spec)
    counting = build_backbone(CASES[1], spec)
    for name, variable in named_variables(plain).items():
        named_variables(counting)[name].assign(variable)
    image = np.random.default_rng(0).random((1, 75, 75, 3), np.float32)
    difference = np.abs(plain(image)["feature_map"] - counting(image)["feature_map"]).max()
    assert difference > 1e-3


def test_what_cannot_be_built() -> None:
    with pytest.raises(InputTooSmall, match="at least 75 × 75 pixels, got an input spec of 74 × 80"):
        build_backbone(INCEPTION, InputSpec(height=74, width=80))
    with pytest.raises(UnknownArchitecture):
        build_backbone(Architecture(name="alexnet"), InputSpec(height=75, width=75))
    with pytest.raises(InvalidArguments, match="'width'"):
        build_backbone(Architecture(name="inception_v3", arguments={"width": 1.0}), InputSpec(height=75, width=75))
