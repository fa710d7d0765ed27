"""Inception v2 as TF-Slim builds it, with the separable stem (see `zoo.architectures.inception_v2`).

Takes an input size. Gives a Body. Next: `finetune.models.backbone`.
"""

from __future__ import annotations

from typing import Any

import keras

from finetune.models.body import Body
from finetune.models.unit_layers import average_pool, chain, concatenate, convolve, max_pool
from zoo.architectures.inception_v2 import DEPTH_MULTIPLIER, STEM, STEM_SHAPES, UNITS

_UNIT = {unit.scope: unit for unit in UNITS}


def build(*, height: int, width: int) -> Body:
    """The network without its output layer: `[B, height, width, 3]` → `[B, ⌈height / 32⌉, ⌈width / 32⌉, 1024]`."""
    image = keras.Input((height, width, 3), name="image")
    ends: dict[str, Any] = {}
    ends[STEM] = x = keras.layers.SeparableConv2D(
        STEM_SHAPES[f"{STEM}/bias"][0],
        7,
        strides=2,
        padding="same",
        depth_multiplier=DEPTH_MULTIPLIER,
        activation="relu",  # no BatchNorm here: Slim's is set up for plain convolutions only
        name=STEM,
    )(image)
    ends["MaxPool_2a_3x3"] = x = max_pool(x, "MaxPool_2a_3x3")
    ends["Conv2d_2b_1x1"] = x = convolve(x, _UNIT["Conv2d_2b_1x1"])
    ends["Conv2d_2c_3x3"] = x = convolve(x, _UNIT["Conv2d_2c_3x3"])
    ends["MaxPool_3a_3x3"] = x = max_pool(x, "MaxPool_3a_3x3")
    for name in ("Mixed_3b", "Mixed_3c"):
        ends[name] = x = _mixed(x, name)
    ends["Mixed_4a"] = x = _reduction(x, "Mixed_4a")
    for name in ("Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e"):
        ends[name] = x = _mixed(x, name)
    ends["Mixed_5a"] = x = _reduction(x, "Mixed_5a")
    ends["Mixed_5b"] = x = _mixed(x, "Mixed_5b")
    ends["Mixed_5c"] = x = _mixed(x, "Mixed_5c", takes_maximum=True)
    return Body(image=image, feature_map=x, endpoints=ends)


def _mixed(x: Any, name: str, *, takes_maximum: bool = False) -> Any:
    """`takes_maximum`: the pooling branch takes the maximum, as only the last one does; the average otherwise."""
    if takes_maximum:
        pooled = max_pool(x, f"{name}/Branch_3/MaxPool_0a_3x3", stride=1)
    else:
        pooled = average_pool(x, f"{name}/Branch_3/AvgPool_0a_3x3")
    sources = {"Branch_0": x, "Branch_1": x, "Branch_2": x, "Branch_3": pooled}
    return concatenate([chain(entry, UNITS, f"{name}/{branch}") for branch, entry in sources.items()], name)


def _reduction(x: Any, name: str) -> Any:
    """Halves the sides."""
    branches = [chain(x, UNITS, f"{name}/{branch}", last_stride=2) for branch in ("Branch_0", "Branch_1")]
    return concatenate([*branches, max_pool(x, f"{name}/Branch_2/MaxPool_1a_3x3")], name)
