"""EfficientNet v2 B0 (Tan and Le 2021, arXiv:2104.00298), with the names of Keras Applications' EfficientNetV2B0."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from zoo.architectures.facts import ArchitectureFacts, Endpoint, NameMap, PublishedCount
from zoo.architectures.keras_layers import Shapes, conv, depthwise, keras_names, norm
from zoo.architectures.publishers import keras
from zoo.input_spec import InputSpec

# expansion, channels, repeats, stride of the first, fused (one 3 × 3 convolution in place of two and the depthwise one)
_STAGES = (
    (1, 16, 1, 1, True),
    (4, 32, 2, 2, True),
    (4, 48, 2, 2, True),
    (4, 96, 3, 2, False),
    (6, 112, 5, 1, False),
    (6, 192, 8, 2, False),
)


@dataclass(frozen=True, kw_only=True)
class Block:
    name: str
    inputs: int
    outputs: int
    expansion: int
    stride: int
    fused: bool


def _blocks() -> Iterator[Block]:
    inputs = 32
    for stage, (expansion, outputs, repeats, stride, fused) in enumerate(_STAGES, start=1):
        for place in range(repeats):
            yield Block(
                name=f"block{stage}{'abcdefgh'[place]}",
                inputs=inputs,
                outputs=outputs,
                expansion=expansion,
                stride=1 if place else stride,
                fused=fused,
            )
            inputs = outputs


def _shapes() -> Shapes:
    shapes = conv("stem_conv", 3, 3, 32) | norm("stem_bn", 32)
    for block in _blocks():
        middle = block.inputs * block.expansion
        if block.expansion != 1:
            shapes |= conv(f"{block.name}_expand_conv", 3 if block.fused else 1, block.inputs, middle)
            shapes |= norm(f"{block.name}_expand_bn", middle)
        if not block.fused:
            squeeze = block.inputs // 4
            shapes |= depthwise(f"{block.name}_dwconv2", 3, middle) | norm(f"{block.name}_bn", middle)
            shapes |= conv(f"{block.name}_se_reduce", 1, middle, squeeze, bias=True)
            shapes |= conv(f"{block.name}_se_expand", 1, squeeze, middle, bias=True)
        shapes |= conv(f"{block.name}_project_conv", 3 if block.expansion == 1 else 1, middle, block.outputs)
        shapes |= norm(f"{block.name}_project_bn", block.outputs)
    return shapes | conv("top_conv", 1, 192, 1280) | norm("top_bn", 1280)


def _endpoints() -> Iterator[Endpoint]:
    stride = 2
    for block in _blocks():
        stride *= block.stride
        yield Endpoint(name=block.name, stride=stride, channels=block.outputs)


FACTS = ArchitectureFacts(
    name="efficientnet_v2_b0",
    paper="Tan and Le 2021, EfficientNetV2: Smaller Models and Faster Training, arXiv:2104.00298",
    defaults={},
    tensor_shapes=lambda arguments: _shapes(),
    feature_dim=lambda arguments: 1280,
    endpoints=(
        Endpoint(name="stem_activation", stride=2, channels=32),
        *_endpoints(),
        Endpoint(name="top_activation", stride=32, channels=1280),
    ),
    parameters=5_919_312,
    flops=1_434_000_000,
    batch_norm_epsilon=1e-3,
    # Keras' model does this inside itself; here it is done before, as for every network.
    input_spec=InputSpec(height=224, width=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    min_size=32,
    name_maps={"keras": NameMap(framework="keras", backbone=lambda arguments: keras_names(_shapes()))},
    published=PublishedCount(
        parameters=7_139_704, classes=1000, trainable_only=True, where="timm's tf_efficientnetv2_b0, 7.1 million"
    ),
    sources=(keras("EfficientNetV2B0", 78.7),),
)
