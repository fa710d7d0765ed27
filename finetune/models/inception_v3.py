"""Inception v3 by Keras' own builder, with canonical layer names.

Takes an input size and `pool_counts_padding`. Gives a Keras model. Next: `finetune.models.backbone`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import keras

from finetune.models.restore import NORM_SUFFIX
from zoo.architectures.inception_v3 import UNITS
from zoo.errors import Internal


def build(*, height: int, width: int, pool_counts_padding: bool) -> keras.Model:
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

    return keras.models.clone_model(source, clone_function=copy)


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
    match = re.search(r"(?:conv2d|batch_normalization)(?:_(\d+))?\Z", name)
    if match is None:
        raise Internal(f"Keras' Inception v3 has a layer named {name!r}, which says nothing about its place")
    return int(match[1] or 0)
