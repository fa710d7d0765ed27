"""EfficientNet-Lite0 to Lite4 (see `zoo.architectures.efficientnet_lite` for the source of their facts).

Takes an input size and `width`. Gives a Body. Next: `finetune.models.backbone`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
from pydantic import JsonValue

from finetune.models.body import Body
from finetune.models.restore import NORM_SUFFIX
from zoo.architectures.efficientnet_lite import BATCH_NORM_EPSILON, VARIANTS, Block, Variant, plan
from zoo.input_spec import InputSpec


def build(variant: Variant, spec: InputSpec, arguments: dict[str, JsonValue]) -> Body:
    """The network without its output layer: `[B, height, width, 3]` → `[B, H, W, 1280 · arguments["width"]]`.

    Padding is TensorFlow's "same". The PyTorch port computes its paddings once for the variant's usual size ("static
    same"): they are the same there (260 pixels, no multiple of 32, too: its sides are those of the layers) and at every
    size whose strided convolutions meet even and odd sides in the same order.
    """
    net = plan(arguments, variant)
    image = keras.Input((spec.height, spec.width, 3), name="image")
    x = _convolution(image, "stem", net.stem, kernel=3, stride=2)
    x = _relu6(_norm(x, "stem"), "stem")
    endpoints = {}
    for block in net.blocks:
        endpoints[block.scope] = x = _block(x, block)
    endpoints["top"] = x = _relu6(_norm(_convolution(x, "top", net.top, kernel=1), "top"), "top")
    return Body(image=image, feature_map=x, endpoints=endpoints)


def _block(x: Any, block: Block) -> Any:
    """An inverted residual: expand, filter each channel, project; the sum with its input where shapes allow."""
    entry, at = x, block.scope.replace("/", ".")
    if block.expand != 1:
        x = _convolution(x, f"{at}.expand", block.middle, kernel=1)
        x = _relu6(_norm(x, f"{at}.expand"), f"{at}.expand")
    x = keras.layers.DepthwiseConv2D(
        block.kernel, strides=block.stride, padding="same", use_bias=False, name=f"{at}.depthwise"
    )(x)
    x = _relu6(_norm(x, f"{at}.depthwise"), f"{at}.depthwise")
    x = _norm(_convolution(x, f"{at}.project", block.outputs, kernel=1), f"{at}.project")
    if block.stride == 1 and block.inputs == block.outputs:
        return keras.layers.Add(name=f"{at}.sum")([x, entry])
    return x


def _convolution(x: Any, scope: str, outputs: int, *, kernel: int, stride: int = 1) -> Any:
    return keras.layers.Conv2D(outputs, kernel, strides=stride, padding="same", use_bias=False, name=scope)(x)


def _norm(x: Any, scope: str) -> Any:
    return keras.layers.BatchNormalization(epsilon=BATCH_NORM_EPSILON, name=scope + NORM_SUFFIX)(x)


def _relu6(x: Any, scope: str) -> Any:
    return keras.layers.ReLU(max_value=6.0, name=f"{scope}.relu6")(x)


BUILDERS: dict[str, Callable[[InputSpec, dict[str, JsonValue]], Body]] = {
    variant.name: partial(build, variant) for variant in VARIANTS
}
