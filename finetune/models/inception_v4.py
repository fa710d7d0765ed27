"""Inception v4 (see `zoo.architectures.inception_v4` for its scopes).

Takes an input size. Gives a Body. Next: `finetune.models.backbone`.
"""

from __future__ import annotations

from typing import Any

import keras

from finetune.models.body import Body
from finetune.models.unit_layers import average_pool, chain, concatenate, convolve, max_pool
from zoo.architectures.inception_v4 import UNITS

_UNIT = {unit.scope: unit for unit in UNITS}


def build(*, height: int, width: int) -> Body:
    """The network without its output layer: `[B, height, width, 3]` → `[B, H, W, 1536]`, 8 × 8 of 299 × 299."""
    image = keras.Input((height, width, 3), name="image")
    ends: dict[str, Any] = {}
    x = ends["Conv2d_1a_3x3"] = convolve(image, _UNIT["Conv2d_1a_3x3"], stride=2, padding="valid")
    x = ends["Conv2d_2a_3x3"] = convolve(x, _UNIT["Conv2d_2a_3x3"], padding="valid")
    x = ends["Conv2d_2b_3x3"] = convolve(x, _UNIT["Conv2d_2b_3x3"])
    pooled = max_pool(x, "Mixed_3a/Branch_0/MaxPool_0a_3x3", padding="valid")
    x = ends["Mixed_3a"] = concatenate([pooled, _reduce(x, "Mixed_3a/Branch_1")], "Mixed_3a")
    narrow = chain(x, UNITS, "Mixed_4a/Branch_0", last_padding="valid")
    wide = chain(x, UNITS, "Mixed_4a/Branch_1", last_padding="valid")
    x = ends["Mixed_4a"] = concatenate([narrow, wide], "Mixed_4a")
    pooled = max_pool(x, "Mixed_5a/Branch_1/MaxPool_1a_3x3", padding="valid")
    x = ends["Mixed_5a"] = concatenate([_reduce(x, "Mixed_5a/Branch_0"), pooled], "Mixed_5a")
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_5e"):
        x = ends[name] = _inception(x, name)
    x = ends["Mixed_6a"] = _reduction(x, "Mixed_6a")
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e", "Mixed_6f", "Mixed_6g", "Mixed_6h"):
        x = ends[name] = _inception(x, name)
    x = ends["Mixed_7a"] = _reduction(x, "Mixed_7a")
    for name in ("Mixed_7b", "Mixed_7c", "Mixed_7d"):
        x = ends[name] = _inception_c(x, name)
    return Body(image=image, feature_map=x, endpoints=ends)


def _reduce(x: Any, scope: str) -> Any:
    """A branch whose last convolution halves the map."""
    return chain(x, UNITS, scope, last_stride=2, last_padding="valid")


def _reduction(x: Any, name: str) -> Any:
    """[B, H, W, C] → [B, (H − 1) // 2, (W − 1) // 2, C']: two branches of convolutions, one of max pooling."""
    pooled = max_pool(x, f"{name}/Branch_2/MaxPool_1a_3x3", padding="valid")
    return concatenate([_reduce(x, f"{name}/Branch_0"), _reduce(x, f"{name}/Branch_1"), pooled], name)


def _inception(x: Any, name: str) -> Any:
    """Inception-A and Inception-B: four branches, each a chain."""
    branches = [chain(x, UNITS, f"{name}/Branch_{number}") for number in range(3)]
    return concatenate([*branches, _pooled(x, name)], name)


def _inception_c(x: Any, name: str) -> Any:
    """Four branches, of which two fork at their end into 1 × 3 and 3 × 1."""
    left = convolve(x, _UNIT[f"{name}/Branch_1/Conv2d_0a_1x1"])
    right = x
    for unit in ("Conv2d_0a_1x1", "Conv2d_0b_3x1", "Conv2d_0c_1x3"):
        right = convolve(right, _UNIT[f"{name}/Branch_2/{unit}"])
    return concatenate(
        [
            convolve(x, _UNIT[f"{name}/Branch_0/Conv2d_0a_1x1"]),
            convolve(left, _UNIT[f"{name}/Branch_1/Conv2d_0b_1x3"]),
            convolve(left, _UNIT[f"{name}/Branch_1/Conv2d_0c_3x1"]),
            convolve(right, _UNIT[f"{name}/Branch_2/Conv2d_0d_1x3"]),
            convolve(right, _UNIT[f"{name}/Branch_2/Conv2d_0e_3x1"]),
            _pooled(x, name),
        ],
        name,
    )


def _pooled(x: Any, name: str) -> Any:
    return chain(average_pool(x, f"{name}/Branch_3/AvgPool_0a_3x3"), UNITS, f"{name}/Branch_3")
