"""Inception v3 by Keras' own builder, with canonical layer names.

Takes an input size and `pool_counts_padding`. Gives a Body. Next: `finetune.models.backbone`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import keras

from finetune.models.body import Body
from finetune.models.restore import NORM_SUFFIX
from zoo.architectures.inception_v3 import UNITS
from zoo.errors import Internal


def build(*, height: int, width: int, pool_counts_padding: bool) -> Body:
    """The network without its output layer: `[B, height, width, 3]` → `[B, H, W, 2048]`.

    Args:
        height, width: of the input, at least 75 pixels.
        pool_counts_padding: whether the 3 × 3 average pooling of the branches counts the zeros around the edge, as
            PyTorch's port does and TensorFlow doesn't.
    """
    source = keras.applications.InceptionV3(include_top=False, weights=None, input_shape=(height, width, 3))
    names = _names_in_creation_order(source.layers)

    def copy(layer: keras.Layer) -> keras.Layer:
        if pool_counts_padding and isinstance(layer, keras.layers.AveragePooling2D):
            return keras.Sequential(
                [keras.layers.ZeroPadding2D(1), keras.layers.AveragePooling2D(3, strides=1)], name=layer.name
            )
        return type(layer).from_config({**layer.get_config(), "name": names.get(layer.name, layer.name)})

    model = keras.models.clone_model(source, clone_function=copy)
    endpoints = {name: model.get_layer(made).output for name, made in _endpoint_layers(source.layers).items()}
    return Body(image=model.input, feature_map=model.output, endpoints=endpoints)


def _endpoint_layers(layers: Sequence[keras.Layer]) -> dict[str, str]:
    """Slim's endpoint → the layer of Keras' builder that gives it: concatenations are named there, what comes before
    them is counted."""
    relus = sorted((layer.name for layer in layers if isinstance(layer, keras.layers.Activation)), key=_number)
    pools = sorted((layer.name for layer in layers if isinstance(layer, keras.layers.MaxPooling2D)), key=_number)
    stem = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
    mixed = ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
    return {
        **dict(zip(stem, relus, strict=False)),
        **dict(zip(("MaxPool_3a_3x3", "MaxPool_5a_3x3"), pools, strict=False)),
        **{f"Mixed_{name}": f"mixed{place}" for place, name in enumerate(mixed)},
    }


def _names_in_creation_order(layers: Sequence[keras.Layer]) -> dict[str, str]:
    """Keras' automatic layer name → canonical layer name.

    Keras' builder names no convolution; what ties a layer to its place is the order in which the builder makes them,
    which the running number at the end of the name keeps, whatever it began at (`model.layers` is sorted by depth).
    """
    names: dict[str, str] = {}
    for kind, suffix in ((keras.layers.Conv2D, ""), (keras.layers.BatchNormalization, NORM_SUFFIX)):
        made = sorted((layer for layer in layers if isinstance(layer, kind)), key=lambda layer: _number(layer.name))
        if len(made) != len(UNITS):
            raise Internal(f"Keras' Inception v3 has {len(made)} {kind.__name__} layers, expected {len(UNITS)}")
        for layer, unit in zip(made, UNITS, strict=True):
            names[layer.name] = unit.scope.replace("/", ".") + suffix
    return names


def _number(name: str) -> int:
    """The running number of an automatic name; Keras leaves it out where it is 0: conv2d, conv2d_1, …"""
    match = re.search(r"(?:conv2d|batch_normalization|activation|max_pooling2d)(?:_(\d+))?\Z", name)
    if match is None:
        raise Internal(f"Keras' Inception v3 has a layer named {name!r}, which says nothing about its place")
    return int(match[1] or 0)
