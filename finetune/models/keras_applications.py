"""Networks of Keras Applications, by Keras' own builders, under Keras' own names.

Takes an input size and a width multiplier. Gives a Body. Next: `finetune.models.backbone`.

Preprocessing that Keras would put inside a network stays outside: it belongs to the InputSpec.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import keras
from pydantic import JsonValue

from finetune.models.body import Body
from zoo.architectures import convnext, efficientnet_v2, mobilenet, resnet
from zoo.architectures.facts import ArchitectureFacts
from zoo.errors import Internal
from zoo.input_spec import InputSpec

# What Keras appends to a block's name for the layer that gives its output, the last one first.
_ENDINGS = ("", "_add", "_project_activation", "_project_bn", "_project_BN")

Builder = Callable[[InputSpec, dict[str, JsonValue]], Body]


def _build(
    network: Callable[..., keras.Model],
    facts: ArchitectureFacts,
    options: dict[str, Any],
    spec: InputSpec,
    arguments: dict[str, JsonValue],
) -> Body:
    """The network without its output layer. The last endpoint is the feature map, the others are layers or blocks."""
    if "width" in arguments:
        options = {**options, "alpha": float(str(arguments["width"]))}
    model = network(include_top=False, weights=None, input_shape=(spec.height, spec.width, 3), **options)
    *named, last = facts.endpoints
    layers = {layer.name: layer for layer in model.layers}
    endpoints = {endpoint.name: _output(layers, endpoint.name) for endpoint in named}
    return Body(image=model.input, feature_map=model.output, endpoints={**endpoints, last.name: model.output})


def _output(layers: Mapping[str, keras.Layer], name: str) -> Any:
    for ending in _ENDINGS:
        if name + ending in layers:
            return layers[name + ending].output
    raise Internal(f"Keras' network has no layer or block {name!r}")


def _convnext(spec: InputSpec, arguments: dict[str, JsonValue]) -> Body:
    """[B, h, w, 3] → [B, H, W, 768].

    Keras wraps the stem and each step down in a model of its own, and leaves a block's sum and, without a classifier,
    the last LayerNorm unnamed: here every layer lies flat and has its name.
    """
    source = keras.applications.ConvNeXtTiny(
        include_top=False,
        include_preprocessing=False,
        weights=None,
        input_shape=(spec.height, spec.width, 3),
        pooling="avg",
    )

    def renamed(layer: keras.Layer) -> keras.Layer:
        if isinstance(layer, keras.Sequential):
            return layer
        last = isinstance(layer, keras.layers.LayerNormalization) and not layer.name.startswith(convnext.NETWORK)
        return type(layer).from_config({**layer.get_config(), "name": convnext.HEAD_NORM if last else layer.name})

    def flat(layer: keras.Layer, *inputs: Any, **options: Any) -> Any:
        if not isinstance(layer, keras.Sequential):
            return layer(*inputs, **options)
        (value,) = inputs
        for inner in layer.layers:
            value = renamed(inner)(value)
        return value

    model = keras.models.clone_model(source, clone_function=renamed, call_function=flat)
    sums = [operation.output for operation in model.operations if type(operation).__name__ == "Add"]
    names = convnext.block_names()
    if len(sums) != len(names):
        raise Internal(f"Keras' ConvNeXtTiny has {len(sums)} blocks, expected {len(names)}")
    return Body(
        image=model.input,
        feature_map=sums[-1],
        feature_vector=model.output,
        endpoints=dict(zip(names, sums, strict=True)),
    )


_APPLICATIONS = keras.applications

BUILDERS: dict[str, Builder] = {
    "convnext_tiny": _convnext,
    "efficientnet_v2_b0": partial(
        _build, _APPLICATIONS.EfficientNetV2B0, efficientnet_v2.FACTS, {"include_preprocessing": False}
    ),
    "mobilenet_v2": partial(_build, _APPLICATIONS.MobileNetV2, mobilenet.V2, {}),
    "mobilenet_v3_large": partial(
        _build, _APPLICATIONS.MobileNetV3Large, mobilenet.V3_LARGE, {"include_preprocessing": False}
    ),
    "mobilenet_v3_small": partial(
        _build, _APPLICATIONS.MobileNetV3Small, mobilenet.V3_SMALL, {"include_preprocessing": False}
    ),
    "resnet50": partial(_build, _APPLICATIONS.ResNet50, resnet.FACTS, {}),
    "resnet50_v2": partial(_build, _APPLICATIONS.ResNet50V2, resnet.FACTS_V2, {}),
}
