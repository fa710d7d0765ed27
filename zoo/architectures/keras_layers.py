"""The layers of Keras' own networks as data: tensor names and shapes, and the name map of files that Keras wrote.

Takes layers' names and sizes. Gives parts of an architecture's facts. Next: the architecture's own file.

Networks that Keras names layer by layer keep those names here, `conv2_block1_1_conv/kernel`, so that they can be looked
up in Keras' documentation.
"""

from __future__ import annotations

from collections.abc import Mapping

from zoo.architectures.facts import InvalidArguments, Shape, Target
from zoo.architectures.layouts import Layout

Shapes = dict[str, Shape]


def conv(name: str, side: int, inputs: int, outputs: int, *, bias: bool = False) -> Shapes:
    """A convolution of `side` × `side`."""
    return {f"{name}/kernel": (side, side, inputs, outputs), **({f"{name}/bias": (outputs,)} if bias else {})}


def depthwise(name: str, side: int, channels: int) -> Shapes:
    return {f"{name}/depthwise_kernel": (side, side, channels, 1)}


def norm(name: str, channels: int) -> Shapes:
    """A BatchNorm."""
    return {f"{name}/{part}": (channels,) for part in ("gamma", "beta", "moving_mean", "moving_variance")}


def layer_norm(name: str, channels: int) -> Shapes:
    return {f"{name}/{part}": (channels,) for part in ("gamma", "beta")}


def dense(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}/kernel": (inputs, outputs), f"{name}/bias": (outputs,)}


def divisible(count: float) -> int:
    """`count` rounded to a multiple of 8, at least 8 and at most 10 % below, as all MobileNets and EfficientNets do."""
    rounded = max(8, int(count + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * count else rounded


def width_of(arguments: Mapping[str, object], architecture: str) -> float:
    """The width multiplier. Raises InvalidArguments."""
    width = arguments.get("width", 1.0)
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width <= 4:
        raise InvalidArguments(f"architecture {architecture!r}: width is above 0 and at most 4, got {width!r}")
    return width


def keras_names(shapes: Mapping[str, Shape], layouts: Mapping[str, Layout] | None = None) -> dict[str, Target]:
    """Keras' names, which are ours. `layouts`: of the tensors that aren't stored as we have them."""
    return {name: Target(name=name, layout=(layouts or {}).get(name, "same")) for name in shapes}


def keras_dense(layer: str) -> dict[str, Target]:
    """The head that is Keras' dense layer `layer`."""
    return {f"{layer}/{part}": Target(name=f"logits/{part}") for part in ("kernel", "bias")}
