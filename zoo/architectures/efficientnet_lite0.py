"""EfficientNet-Lite0: EfficientNet-B0 (Tan and Le 2019, arXiv:1905.11946) without squeeze-and-excite, with relu6.

Facts from the TPU repository's `efficientnet_lite_builder.py` and its PyTorch port efficientnet_lite_pytorch.
Canonical scopes: `stem`, `block_<n>/{expand,depthwise,project}` (n = 0 … 15), `top`; each is a convolution without
bias and a BatchNorm; relu6 follows all but `project`. Block 0 doesn't expand.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from zoo.architectures.facts import (
    ArchitectureFacts,
    Arguments,
    Endpoint,
    InvalidArguments,
    NameMap,
    PublishedCount,
    Shape,
    Target,
)
from zoo.input_spec import InputSpec

STATISTICS = ("gamma", "beta", "moving_mean", "moving_variance")


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
_STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192))
_LAST_STAGE = (1, 3, 1, 6, 320)


def channels(count: int, width: float) -> int:
    """`count · width` rounded to a multiple of 8, at least 8 and at most 10 % below, as EfficientNet rounds."""
    scaled = count * width
    rounded = max(8, int(scaled + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * scaled else rounded


def plan(arguments: Arguments) -> Plan:
    """The network at `width`, which scales every layer, stem and top too (Lite1 to Lite4 keep those two)."""
    width = arguments.get("width", 1.0)
    if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width <= 4:
        raise InvalidArguments(f"architecture 'efficientnet_lite0': width is above 0 and at most 4, got {width!r}")
    inputs = stem = channels(32, width)
    blocks: list[Block] = []
    for stage, (repeats, kernel, stride, expand, outputs) in enumerate((*_STAGES, _LAST_STAGE)):
        for place in range(repeats):
            blocks.append(
                Block(
                    scope=f"block_{len(blocks)}",
                    kernel=kernel,
                    stride=1 if place else stride,
                    expand=expand,
                    inputs=inputs,
                    outputs=channels(outputs, width),
                    stage=stage,
                    place=place,
                )
            )
            inputs = blocks[-1].outputs
    return Plan(stem=stem, blocks=tuple(blocks), top=channels(1280, width))


def tensor_shapes(arguments: Arguments) -> dict[str, Shape]:
    """Canonical tensor name → shape."""
    net = plan(arguments)
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


def _torch_names(arguments: Arguments) -> dict[str, Target]:
    """efficientnet_lite_pytorch: blocks in one row; `_bn0` follows the expansion, which block 0 doesn't have."""
    net = plan(arguments)
    names = _unit("_conv_stem", "_bn0", "stem")
    for number, block in enumerate(net.blocks):
        at = f"_blocks.{number}"
        if block.expand != 1:
            names |= _unit(f"{at}._expand_conv", f"{at}._bn0", f"{block.scope}/expand")
        names |= _unit(f"{at}._depthwise_conv", f"{at}._bn1", f"{block.scope}/depthwise", depthwise=True)
        names |= _unit(f"{at}._project_conv", f"{at}._bn2", f"{block.scope}/project")
    return names | _unit("_conv_head", "_bn1", "top")


def _timm_names(arguments: Arguments) -> dict[str, Target]:
    """timm's tf_efficientnet_lite0: blocks by stage and place; the first stage's names lack the expansion."""
    net = plan(arguments)
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


def _dense(name: str) -> dict[str, Target]:
    return {
        f"{name}.weight": Target(name="logits/kernel", layout="linear_oi"),
        f"{name}.bias": Target(name="logits/bias"),
    }


def _strides(net: Plan) -> Iterator[tuple[Block, int]]:
    """Each block, and how many pixels of the input a step of its output is."""
    stride = 2
    for block in net.blocks:
        stride *= block.stride
        yield block, stride


_UNUSED = {"*.num_batches_tracked": "a training-time counter of PyTorch's BatchNorm"}

FACTS = ArchitectureFacts(
    name="efficientnet_lite0",
    paper="Tan and Le 2019, EfficientNet, arXiv:1905.11946; the Lite variants of March 2020",
    defaults={"width": 1.0},
    tensor_shapes=tensor_shapes,
    feature_dim=lambda arguments: plan(arguments).top,
    endpoints=(
        *(Endpoint(name=block.scope, stride=stride, channels=block.outputs) for block, stride in _strides(plan({}))),
        Endpoint(name="top", stride=32, channels=1280),
    ),
    parameters=3_413_024,
    flops=814_000_000,  # 407 million multiply-adds, as its authors publish
    batch_norm_epsilon=1e-3,
    input_spec=InputSpec(
        height=224, width=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bicubic"
    ),
    min_size=32,
    published=PublishedCount(
        parameters=4_652_008, classes=1000, trainable_only=True, where="timm's and the authors' 4.7 million"
    ),
    name_maps={
        "torch": NameMap(framework="torch", backbone=_torch_names, head=_dense("_fc"), unused=_UNUSED),
        "timm": NameMap(framework="torch", backbone=_timm_names, head=_dense("classifier"), unused=_UNUSED),
    },
)
