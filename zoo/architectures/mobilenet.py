"""MobileNet v2 (Sandler et al. 2018, arXiv:1801.04381) and v3 (Howard et al. 2019, arXiv:1905.02244).

Names are those of Keras Applications' MobileNetV2, MobileNetV3Small and MobileNetV3Large. `width` is the papers' width
multiplier, Keras' `alpha`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from zoo.architectures.facts import (
    ArchitectureFacts,
    Arguments,
    Endpoint,
    KnownSource,
    NameMap,
    PublishedCount,
    Target,
)
from zoo.architectures.keras_layers import (
    Shapes,
    conv,
    depthwise,
    divisible,
    keras_dense,
    keras_names,
    norm,
    width_of,
)
from zoo.architectures.layouts import Layout
from zoo.architectures.publishers import keras
from zoo.errors import Internal
from zoo.input_spec import InputSpec

_SPEC = InputSpec(height=224, width=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


@dataclass(frozen=True, kw_only=True)
class Block:
    """An inverted residual. `squeeze`: channels inside squeeze-and-excite, 0 without."""

    name: str
    inputs: int
    middle: int
    outputs: int
    side: int
    stride: int
    squeeze: int = 0


# expansion, channels, repeats, stride of the first
_V2_STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

# expansion, channels, side of the kernel, stride, squeeze-and-excite
_Row = tuple[float, int, int, int, bool]
_SMALL: tuple[_Row, ...] = (
    (1, 16, 3, 2, True),
    (72 / 16, 24, 3, 2, False),
    (88 / 24, 24, 3, 1, False),
    (4, 40, 5, 2, True),
    (6, 40, 5, 1, True),
    (6, 40, 5, 1, True),
    (3, 48, 5, 1, True),
    (3, 48, 5, 1, True),
    (6, 96, 5, 2, True),
    (6, 96, 5, 1, True),
    (6, 96, 5, 1, True),
)
_LARGE: tuple[_Row, ...] = (
    (1, 16, 3, 1, False),
    (4, 24, 3, 2, False),
    (3, 24, 3, 1, False),
    (3, 40, 5, 2, True),
    (3, 40, 5, 1, True),
    (3, 40, 5, 1, True),
    (6, 80, 3, 2, False),
    (2.5, 80, 3, 1, False),
    (2.3, 80, 3, 1, False),
    (2.3, 80, 3, 1, False),
    (6, 112, 3, 1, True),
    (6, 112, 3, 1, True),
    (6, 160, 5, 2, True),
    (6, 160, 5, 1, True),
    (6, 160, 5, 1, True),
)


def _blocks_v2(width: float) -> Iterator[Block]:
    inputs, number = divisible(32 * width), 0
    for expansion, channels, repeats, stride in _V2_STAGES:
        for place in range(repeats):
            block = Block(
                name=f"block_{number}_" if number else "expanded_conv_",
                inputs=inputs,
                middle=expansion * inputs,
                outputs=divisible(int(channels * width)),
                side=3,
                stride=1 if place else stride,
            )
            yield block
            inputs, number = block.outputs, number + 1


def _blocks_v3(rows: tuple[_Row, ...], width: float) -> Iterator[Block]:
    inputs = 16
    for number, (expansion, channels, side, stride, squeezes) in enumerate(rows):
        middle = divisible(inputs * expansion)
        block = Block(
            name=f"expanded_conv_{number}_" if number else "expanded_conv_",
            inputs=inputs,
            middle=middle,
            outputs=divisible(channels * width),
            side=side,
            stride=stride,
            squeeze=divisible(middle * 0.25) if squeezes else 0,
        )
        yield block
        inputs = block.outputs


def _last_v2(width: float) -> int:
    return divisible(1280 * width) if width > 1 else 1280


def _shapes_v2(arguments: Arguments) -> Shapes:
    width = width_of(arguments, "mobilenet_v2")
    blocks = tuple(_blocks_v2(width))
    shapes = conv("Conv1", 3, 3, blocks[0].inputs) | norm("bn_Conv1", blocks[0].inputs)
    for block in blocks:
        if block.middle != block.inputs:
            shapes |= conv(f"{block.name}expand", 1, block.inputs, block.middle)
            shapes |= norm(f"{block.name}expand_BN", block.middle)
        shapes |= depthwise(f"{block.name}depthwise", 3, block.middle) | norm(f"{block.name}depthwise_BN", block.middle)
        shapes |= conv(f"{block.name}project", 1, block.middle, block.outputs)
        shapes |= norm(f"{block.name}project_BN", block.outputs)
    last = _last_v2(width)
    return shapes | conv("Conv_1", 1, blocks[-1].outputs, last) | norm("Conv_1_bn", last)


def _last_v3(rows: tuple[_Row, ...], width: float) -> int:
    return divisible(tuple(_blocks_v3(rows, width))[-1].outputs * 6)


def _shapes_v3(name: str, rows: tuple[_Row, ...], arguments: Arguments) -> Shapes:
    width = width_of(arguments, name)
    blocks = tuple(_blocks_v3(rows, width))
    shapes = conv("conv", 3, 3, 16) | norm("conv_bn", 16)
    for number, block in enumerate(blocks):
        if number:
            shapes |= conv(f"{block.name}expand", 1, block.inputs, block.middle)
            shapes |= norm(f"{block.name}expand_bn", block.middle)
        shapes |= depthwise(f"{block.name}depthwise", block.side, block.middle)
        shapes |= norm(f"{block.name}depthwise_bn", block.middle)
        if block.squeeze:
            at = f"{block.name}squeeze_excite_conv"
            shapes |= conv(at, 1, block.middle, block.squeeze, bias=True)
            shapes |= conv(f"{at}_1", 1, block.squeeze, block.middle, bias=True)
        shapes |= conv(f"{block.name}project", 1, block.middle, block.outputs)
        shapes |= norm(f"{block.name}project_bn", block.outputs)
    last = _last_v3(rows, width)
    return shapes | conv("conv_1", 1, blocks[-1].outputs, last) | norm("conv_1_bn", last)


def _endpoints(blocks: Iterator[Block]) -> Iterator[Endpoint]:
    """Each block's output, which is a sum or the last BatchNorm: that depends on the width."""
    stride = 2
    for block in blocks:
        stride *= block.stride
        yield Endpoint(name=block.name.removesuffix("_"), stride=stride, channels=block.outputs)


V2 = ArchitectureFacts(
    name="mobilenet_v2",
    paper="Sandler et al. 2018, MobileNetV2: Inverted Residuals and Linear Bottlenecks, arXiv:1801.04381",
    defaults={"width": 1.0},
    tensor_shapes=_shapes_v2,
    feature_dim=lambda arguments: _last_v2(width_of(arguments, "mobilenet_v2")),
    endpoints=(
        Endpoint(name="Conv1_relu", stride=2, channels=32),
        *_endpoints(_blocks_v2(1.0)),
        Endpoint(name="out_relu", stride=32, channels=1280),
    ),
    parameters=2_257_984,
    flops=599_000_000,
    batch_norm_epsilon=1e-3,
    input_spec=_SPEC,
    min_size=32,
    name_maps={
        # All widths have the same names; only their shapes tell them apart.
        "keras" if width == 1.0 else f"keras-{width:g}": NameMap(
            framework="keras",
            backbone=lambda arguments: keras_names(_shapes_v2(arguments)),
            head=keras_dense("Logits"),
            arguments={"width": width},
        )
        for width in (1.0, 0.35, 0.5, 0.75, 1.3, 1.4)
    },
    published=PublishedCount(
        parameters=3_538_984, classes=1000, trainable_only=False, where="Keras Applications' table of models"
    ),
    sources=(keras("MobileNetV2", 71.3),),
)


def _name_of_keras_2(name: str) -> str:
    """Keras 2 named v3's layers after TensorFlow's scopes; the files that Keras Applications publish still do:
    `expanded_conv_3_squeeze_excite_conv_1/bias` is `expanded_conv_3/squeeze_excite/Conv_1/bias` there."""
    layer, _, value = name.rpartition("/")
    found = re.fullmatch(r"(?:(expanded_conv(?:_\d+)?)_(squeeze_excite_)?)?(conv(?:_1)?|[a-z]+?)(_bn)?", layer)
    if found is None:
        raise Internal(f"MobileNet v3 has a layer {layer!r}, which no name of Keras 2 is known for")
    block, squeeze, part, norm_of = found.groups()
    part = part.replace("conv", "Conv")
    scopes = [block, "squeeze_excite" if squeeze else None, part, "BatchNorm" if norm_of else None, value]
    return "/".join(scope for scope in scopes if scope)


_POINT: tuple[tuple[str, Layout], ...] = (("kernel", "conv_as_dense"), ("bias", "same"))


def _maps_v3(shapes: Callable[[Arguments], Shapes]) -> dict[str, NameMap]:
    """Keras 3's and Keras 2's names, each at the two widths that there are weights for.

    The classifier has a hidden layer behind the pooling; both its layers are 1 × 1 convolutions of one pixel.
    """

    def named(arguments: Arguments) -> dict[str, Target]:
        return keras_names(shapes(arguments))

    def named_by_keras_2(arguments: Arguments) -> dict[str, Target]:
        return {_name_of_keras_2(name): target for name, target in named(arguments).items()}

    layouts = (("keras", named, ("conv_2", "logits")), ("keras-2", named_by_keras_2, ("Conv_2", "Logits")))
    return {
        layout if width == 1.0 else f"{layout}-{width:g}": NameMap(
            framework="keras",
            backbone=names,
            head={
                f"{layer}/{value}": Target(name=f"{ours}/{value}", layout=layout_of)
                for layer, ours in zip(top, ("hidden_0", "logits"), strict=True)
                for value, layout_of in _POINT
            },
            head_hidden=("hard_swish",),
            arguments={"width": width},
        )
        for layout, names, top in layouts
        for width in (1.0, 0.75)
    }


def _v3(
    size: str, rows: tuple[_Row, ...], *, parameters: int, flops: int, published: PublishedCount, source: KnownSource
) -> ArchitectureFacts:
    name = f"mobilenet_v3_{size}"
    shapes = partial(_shapes_v3, name, rows)
    return ArchitectureFacts(
        name=name,
        paper="Howard et al. 2019, Searching for MobileNetV3, arXiv:1905.02244",
        defaults={"width": 1.0},
        tensor_shapes=shapes,
        feature_dim=lambda arguments: _last_v3(rows, width_of(arguments, name)),
        endpoints=(
            *_endpoints(_blocks_v3(rows, 1.0)),
            Endpoint(name="conv_1_activation", stride=32, channels=_last_v3(rows, 1.0)),
        ),
        parameters=parameters,
        flops=flops,
        batch_norm_epsilon=1e-3,
        input_spec=_SPEC,
        min_size=32,
        name_maps=_maps_v3(shapes),
        published=published,
        sources=(source,),
    )


V3_SMALL = _v3(
    "small",
    _SMALL,
    parameters=939_120,
    flops=110_000_000,
    published=PublishedCount(
        parameters=2_542_856,
        classes=0,
        trainable_only=True,
        where="torchvision's mobilenet_v3_small",
        extra=577 * 1024 + 1025 * 1000,  # the classifier: 576 → 1024 → 1000
    ),
    source=keras("MobileNetV3Small", 68.1),
)
V3_LARGE = _v3(
    "large",
    _LARGE,
    parameters=2_996_352,
    flops=428_000_000,
    published=PublishedCount(
        parameters=5_483_032,
        classes=0,
        trainable_only=True,
        where="torchvision's mobilenet_v3_large",
        extra=961 * 1280 + 1281 * 1000,  # the classifier: 960 → 1280 → 1000
    ),
    source=keras("MobileNetV3Large", 75.6),
)
