"""The facts in `zoo.architectures` against the networks that are really built."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.models.backbone import BUILDERS, STORED, InputTooSmall, build_backbone
from finetune.models.restore import named_variables
from tests.tiny import TINY
from zoo.architectures import ARCHITECTURES, UnknownArchitecture
from zoo.architectures.facts import ArchitectureFacts, InvalidArguments, UnknownEndpoint
from zoo.input_spec import InputSpec
from zoo.manifest import Architecture

INCEPTION = Architecture(name="inception_v3")
COUNTING = Architecture(name="inception_v3", arguments={"pool_counts_padding": True})
NAMED = [facts for facts in ARCHITECTURES.values() if not facts.assets]  # name and arguments say all of the network
CASES = [*(Architecture(name=facts.name) for facts in NAMED), COUNTING, TINY]


def shapes(model: keras.Model) -> dict[str, tuple[int, ...]]:
    return {name: tuple(variable.shape) for name, variable in named_variables(model).items()}


def test_there_is_a_builder_for_each_architecture() -> None:
    assert set(BUILDERS) == {facts.name for facts in NAMED}
    assert set(STORED) == set(ARCHITECTURES) - set(BUILDERS)


@pytest.mark.parametrize("architecture", CASES, ids=lambda a: f"{a.name}-{a.arguments}")
def test_names_shapes_and_sizes(architecture: Architecture) -> None:
    facts = ARCHITECTURES[architecture.name]
    arguments = facts.resolved(architecture.arguments)
    model = build_backbone(architecture, facts.input_spec, endpoints=[each.name for each in facts.endpoints])
    assert shapes(model) == facts.tensor_shapes(arguments)
    assert model.output["feature_vector"].shape == (None, facts.feature_dim(arguments))
    last = facts.endpoints[-1]
    assert model.output["feature_map"].shape[1:3] == model.output[last.name].shape[1:3]
    assert model.output["feature_map"].shape[3] == facts.feature_dim(arguments)
    assert not model.trainable_variables
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            wanted = arguments.get("batch_norm_epsilon", facts.batch_norm_epsilon)
            assert layer.epsilon == pytest.approx(wanted)
    if arguments == facts.resolved({}):
        assert model.count_params() == facts.parameters
        for endpoint in facts.endpoints:
            _, height, width, channels = model.output[endpoint.name].shape
            most = -(-facts.input_spec.height // endpoint.stride)
            assert height == width
            assert most - 4 <= height <= most, endpoint  # convolutions without padding take a few pixels off
            assert channels == endpoint.channels, endpoint


@pytest.mark.parametrize("facts", NAMED, ids=lambda facts: facts.name)
def test_parameters_are_as_many_as_published(facts: ArchitectureFacts) -> None:
    shapes = facts.tensor_shapes(facts.resolved({}))
    values = sum(math.prod(shape) for shape in shapes.values())
    assert values == facts.parameters
    published = facts.published
    assert published is not None
    statistics = sum(math.prod(shape) for name, shape in shapes.items() if "/moving_" in name)
    dense = (facts.feature_dim(facts.resolved({})) + 1) * published.classes
    ours = values + dense - (statistics if published.trainable_only else 0)
    assert ours + published.extra == published.parameters, published.where


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
    counting = build_backbone(COUNTING, spec)
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
    with pytest.raises(UnknownEndpoint, match=r"did you mean .*Mixed_5b"):
        build_backbone(INCEPTION, InputSpec(height=75, width=75), endpoints=["mixed_5b"])
