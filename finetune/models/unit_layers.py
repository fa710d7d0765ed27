"""The layers that the Inception family is made of: a unit (convolution, BatchNorm, relu), poolings, concatenation.

Takes a symbolic tensor [B, H, W, C] and a `Unit` of `zoo.architectures.units`. Gives a symbolic tensor. Next: an
architecture's own builder.

Layers carry the canonical scope with "." for "/"; a unit's BatchNorm has `NORM_SUFFIX` after it, its relu `.relu`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import keras

from finetune.models.restore import NORM_SUFFIX
from zoo.architectures.units import Unit

# "same" and "valid" are TensorFlow's; a number is PyTorch's: so many zeros on every side, whatever the stride.
Padding = Literal["same", "valid"] | int


def layer_name(scope: str) -> str:
    """A canonical scope as Keras allows it in the name of a layer."""
    return scope.replace("/", ".")


def convolve(x: Any, unit: Unit, *, stride: int = 1, padding: Padding = "same", epsilon: float = 1e-3) -> Any:
    """relu(BatchNorm(convolution)) of `unit`, BatchNorm without gamma: [B, H, W, inputs] → [B, H', W', outputs]."""
    at = layer_name(unit.scope)
    if isinstance(padding, int):
        x = keras.layers.ZeroPadding2D(padding, name=f"{at}.padding")(x)
        padding = "valid"
    x = keras.layers.Conv2D(
        unit.outputs, (unit.height, unit.width), strides=stride, padding=padding, use_bias=False, name=at
    )(x)
    x = keras.layers.BatchNormalization(scale=False, epsilon=epsilon, name=at + NORM_SUFFIX)(x)
    return keras.layers.ReLU(name=f"{at}.relu")(x)


def chain(
    x: Any,
    units: Iterable[Unit],
    scope: str,
    *,
    last_stride: int = 1,
    last_padding: Padding = "same",
    epsilon: float = 1e-3,
) -> Any:
    """The units below `scope` one after the other, in the order of `units`; the last with another stride and padding.

    Raises KeyError where `units` has none below `scope`.
    """
    below = [unit for unit in units if unit.scope.startswith(f"{scope}/")]
    if not below:
        raise KeyError(scope)
    for unit in below[:-1]:
        x = convolve(x, unit, epsilon=epsilon)
    return convolve(x, below[-1], stride=last_stride, padding=last_padding, epsilon=epsilon)


def max_pool(x: Any, scope: str, *, size: int = 3, stride: int = 2, padding: Literal["same", "valid"] = "same") -> Any:
    """TensorFlow's max pooling."""
    return keras.layers.MaxPooling2D(size, strides=stride, padding=padding, name=layer_name(scope))(x)


def max_pool_ceil(x: Any, scope: str, *, size: int = 3, stride: int = 2) -> Any:
    """PyTorch's max pooling without padding in its ceil mode: windows begin at the first pixel, and the last one may
    reach beyond the edge by less than its size. `x` is a relu's output: no value is below the zeros put there.

    On an even side it is the same as TensorFlow's "same" with stride 2; on an odd one that begins a pixel earlier.
    """
    _, height, width, _ = x.shape
    beyond = [(0, -(-max(side - size, 0) // stride) * stride + size - side) for side in (height, width)]
    if any(after for _, after in beyond):
        x = keras.layers.ZeroPadding2D(beyond, name=f"{layer_name(scope)}.padding")(x)
    return max_pool(x, scope, size=size, stride=stride, padding="valid")


def average_pool(x: Any, scope: str, *, counts_padding: bool = False) -> Any:
    """The 3 × 3 average around every pixel. `counts_padding`: the zeros around the edge count too, as in PyTorch."""
    name = layer_name(scope)
    if counts_padding:
        x = keras.layers.ZeroPadding2D(1, name=f"{name}.padding")(x)
    return keras.layers.AveragePooling2D(3, strides=1, padding="valid" if counts_padding else "same", name=name)(x)


def concatenate(branches: Sequence[Any], scope: str) -> Any:
    """Branches side by side: the sum of their channels."""
    return keras.layers.Concatenate(axis=-1, name=layer_name(scope))(branches)
