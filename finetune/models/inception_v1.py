"""Inception v1 as TF-Slim builds it, or with torchvision's paddings (see `zoo.architectures.inception_v1`).

Takes an input size and `torch_padding`. Gives a Body. Next: `finetune.models.backbone`.
"""

from __future__ import annotations

from typing import Any

import keras

from finetune.models.body import Body
from finetune.models.unit_layers import chain, concatenate, convolve, max_pool, max_pool_ceil
from zoo.architectures.inception_v1 import UNITS

_UNIT = {unit.scope: unit for unit in UNITS}


def build(*, height: int, width: int, torch_padding: bool) -> Body:
    """The network without its output layer: `[B, height, width, 3]` → `[B, H, W, 1024]`, H = ⌈height / 32⌉ with
    TensorFlow's paddings; 7 × 7 of 224 × 224 with either's.

    Args:
        torch_padding: PyTorch's paddings in the strided layers, as torchvision's googlenet has them; TensorFlow's
            otherwise. Those without a stride are the same in both.
    """
    pool = max_pool_ceil if torch_padding else max_pool
    image = keras.Input((height, width, 3), name="image")
    ends: dict[str, Any] = {}
    ends["Conv2d_1a_7x7"] = x = convolve(
        image, _UNIT["Conv2d_1a_7x7"], stride=2, padding=3 if torch_padding else "same"
    )
    ends["MaxPool_2a_3x3"] = x = pool(x, "MaxPool_2a_3x3")
    ends["Conv2d_2b_1x1"] = x = convolve(x, _UNIT["Conv2d_2b_1x1"])
    ends["Conv2d_2c_3x3"] = x = convolve(x, _UNIT["Conv2d_2c_3x3"])
    ends["MaxPool_3a_3x3"] = x = pool(x, "MaxPool_3a_3x3")
    for name in ("Mixed_3b", "Mixed_3c"):
        ends[name] = x = _mixed(x, name)
    ends["MaxPool_4a_3x3"] = x = pool(x, "MaxPool_4a_3x3")
    for name in ("Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f"):
        ends[name] = x = _mixed(x, name)
    ends["MaxPool_5a_2x2"] = x = pool(x, "MaxPool_5a_2x2", size=2)
    for name in ("Mixed_5b", "Mixed_5c"):
        ends[name] = x = _mixed(x, name)
    return Body(image=image, feature_map=x, endpoints=ends)


def _mixed(x: Any, name: str) -> Any:
    pooled = max_pool(x, f"{name}/Branch_3/MaxPool_0a_3x3", stride=1)
    sources = {"Branch_0": x, "Branch_1": x, "Branch_2": x, "Branch_3": pooled}
    return concatenate([chain(entry, UNITS, f"{name}/{branch}") for branch, entry in sources.items()], name)
