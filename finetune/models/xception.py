"""Xception (see `zoo.architectures.xception` for its scopes, and for where timm's port differs).

Takes an input size and the two arguments. Gives a Body. Next: `finetune.models.backbone`.
"""

from __future__ import annotations

from typing import Any

import keras

from finetune.models.body import Body
from finetune.models.restore import NORM_SUFFIX
from zoo.architectures.xception import BLOCKS, ENTRY, EXIT, Block, Convolution


def build(*, height: int, width: int, batch_norm_epsilon: float, pool_pads_both_sides: bool) -> Body:
    """The network without its output layer: `[B, height, width, 3]` → `[B, H, W, 2048]`, 10 × 10 of 299 × 299.

    Args:
        pool_pads_both_sides: whether the 3 × 3 max pooling of stride 2 begins one pixel outside on every side, as in
            PyTorch; TensorFlow's "same" does so on odd sides only.
    """
    image = keras.Input((height, width, 3), name="image")
    ends: dict[str, Any] = {}
    x = image
    for place, convolution in enumerate(ENTRY):
        x = _convolve(x, convolution, batch_norm_epsilon, stride=2 if place == 0 else 1, padding="valid")
        x = _relu(x, convolution)
    ends["block1"] = x
    for block in BLOCKS:
        x = ends[block.name] = _block(x, block, batch_norm_epsilon, pool_pads_both_sides)
    for convolution in EXIT:
        x = _relu(_convolve(x, convolution, batch_norm_epsilon), convolution)
    ends["block14"] = x
    return Body(image=image, feature_map=x, endpoints=ends)


def _block(x: Any, block: Block, epsilon: float, both_sides: bool) -> Any:
    """The input, or its strided 1 × 1 convolution, plus the separable convolutions, each with relu before it."""
    entry = x
    for place, convolution in enumerate(block.convolutions):
        if (block.name, place) != ("block2", 0):  # what comes in there is a relu's output
            x = _relu(x, convolution)
        x = _convolve(x, convolution, epsilon)
    if block.residual is not None:
        entry = _convolve(entry, block.residual, epsilon, stride=2)
        x = _halve(x, f"{block.name}_pool", both_sides)
    return keras.layers.Add(name=f"{block.name}_sum")([x, entry])


def _halve(x: Any, name: str, both_sides: bool) -> Any:
    """3 × 3 max pooling of stride 2: [B, H, W, C] → [B, ⌈H / 2⌉, ⌈W / 2⌉, C]."""
    if not both_sides:
        return keras.layers.MaxPooling2D(3, strides=2, padding="same", name=name)(x)
    # Around every pixel, then every other one of them from the first: values may be negative, so zeros won't do for
    # the padding, and no layer pads with minus infinity.
    x = keras.layers.MaxPooling2D(3, strides=1, padding="same", name=f"{name}_around")(x)
    return keras.layers.MaxPooling2D(1, strides=2, padding="same", name=name)(x)


def _convolve(x: Any, convolution: Convolution, epsilon: float, *, stride: int = 1, padding: str = "same") -> Any:
    layer = keras.layers.SeparableConv2D if convolution.separable else keras.layers.Conv2D
    x = layer(
        convolution.outputs,
        convolution.side,
        strides=stride,
        padding=padding,
        use_bias=False,
        name=convolution.scope,
    )(x)
    return keras.layers.BatchNormalization(epsilon=epsilon, name=convolution.scope + NORM_SUFFIX)(x)


def _relu(x: Any, convolution: Convolution) -> Any:
    return keras.layers.ReLU(name=f"{convolution.scope}.relu")(x)
