"""Inception-ResNet v2 (see `zoo.architectures.inception_resnet_v2` for its scopes).

Takes an input size. Gives a Body. Next: `finetune.models.backbone`.
"""

from __future__ import annotations

from typing import Any

import keras

from finetune.models.body import Body
from finetune.models.unit_layers import average_pool, chain, concatenate, convolve, layer_name, max_pool
from zoo.architectures.inception_resnet_v2 import BLOCKS_8, BLOCKS_17, BLOCKS_35, UNITS, Residual

_UNIT = {unit.scope: unit for unit in UNITS}


def build(*, height: int, width: int) -> Body:
    """The network without its output layer: `[B, height, width, 3]` → `[B, H, W, 1536]`, 8 × 8 of 299 × 299."""
    image = keras.Input((height, width, 3), name="image")
    ends: dict[str, Any] = {}
    x = ends["Conv2d_1a_3x3"] = convolve(image, _UNIT["Conv2d_1a_3x3"], stride=2, padding="valid")
    x = ends["Conv2d_2a_3x3"] = convolve(x, _UNIT["Conv2d_2a_3x3"], padding="valid")
    x = ends["Conv2d_2b_3x3"] = convolve(x, _UNIT["Conv2d_2b_3x3"])
    x = ends["MaxPool_3a_3x3"] = max_pool(x, "MaxPool_3a_3x3", padding="valid")
    x = ends["Conv2d_3b_1x1"] = convolve(x, _UNIT["Conv2d_3b_1x1"])
    x = ends["Conv2d_4a_3x3"] = convolve(x, _UNIT["Conv2d_4a_3x3"], padding="valid")
    x = ends["MaxPool_5a_3x3"] = max_pool(x, "MaxPool_5a_3x3", padding="valid")
    branches = [chain(x, UNITS, f"Mixed_5b/Branch_{number}") for number in range(3)]
    pooled = chain(average_pool(x, "Mixed_5b/Branch_3/AvgPool_0a_3x3"), UNITS, "Mixed_5b/Branch_3")
    x = ends["Mixed_5b"] = concatenate([*branches, pooled], "Mixed_5b")
    for block in BLOCKS_35:
        x = _residual(x, block)
    x = ends["Mixed_6a"] = _reduction(x, "Mixed_6a", branches=2)
    for block in BLOCKS_17:
        x = _residual(x, block)
    ends["PreAuxLogits"] = x
    x = ends["Mixed_7a"] = _reduction(x, "Mixed_7a", branches=3)
    for block in BLOCKS_8:
        x = _residual(x, block)
    x = ends["Conv2d_7b_1x1"] = convolve(x, _UNIT["Conv2d_7b_1x1"])
    return Body(image=image, feature_map=x, endpoints=ends)


def _residual(x: Any, block: Residual) -> Any:
    """relu(x + scale · up(branches)), without the relu in the last block: the shape stays [B, H, W, C]."""
    at = layer_name(block.scope)
    mixed = concatenate(
        [chain(x, branch, branch[0].scope.rpartition("/")[0]) for branch in block.branches], f"{at}.mixed"
    )
    up = keras.layers.Conv2D(block.channels, 1, name=layer_name(block.up))(mixed)
    scaled = keras.layers.Rescaling(block.scale, name=f"{at}.scaled")(up)
    x = keras.layers.Add(name=f"{at}.sum")([x, scaled])
    return keras.layers.ReLU(name=f"{at}.relu")(x) if block.relu else x


def _reduction(x: Any, name: str, *, branches: int) -> Any:
    """[B, H, W, C] → [B, (H − 1) // 2, (W − 1) // 2, C']: branches of convolutions, and one of max pooling."""
    reduced = [
        chain(x, UNITS, f"{name}/Branch_{number}", last_stride=2, last_padding="valid") for number in range(branches)
    ]
    return concatenate([*reduced, max_pool(x, f"{name}/Branch_{branches}/MaxPool_1a_3x3", padding="valid")], name)
