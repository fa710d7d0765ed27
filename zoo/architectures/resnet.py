"""ResNet-50 (He et al. 2015, arXiv:1512.03385) and its second version (He et al. 2016, arXiv:1603.05027).

Names are those of Keras Applications' ResNet50 and ResNet50V2. Keras' second version strides in the last block of a
stage, not in the first.
"""

from __future__ import annotations

from collections.abc import Iterator

from zoo.architectures.facts import ArchitectureFacts, Endpoint, NameMap, PublishedCount
from zoo.architectures.keras_layers import Shapes, conv, keras_dense, keras_names, norm
from zoo.architectures.publishers import keras
from zoo.input_spec import InputSpec

# stage, filters, blocks; each block gives four times the filters.
_STAGES = (("conv2", 64, 3), ("conv3", 128, 4), ("conv4", 256, 6), ("conv5", 512, 3))


def _blocks() -> Iterator[tuple[str, int, int, bool]]:
    """Name, channels that go in, filters, and whether it is the first of its stage."""
    inputs = 64
    for stage, filters, blocks in _STAGES:
        for number in range(1, blocks + 1):
            yield f"{stage}_block{number}", inputs, filters, number == 1
            inputs = 4 * filters


def _shapes() -> Shapes:
    shapes = conv("conv1_conv", 7, 3, 64, bias=True) | norm("conv1_bn", 64)
    for name, inputs, filters, first in _blocks():
        if first:
            shapes |= conv(f"{name}_0_conv", 1, inputs, 4 * filters, bias=True) | norm(f"{name}_0_bn", 4 * filters)
        shapes |= conv(f"{name}_1_conv", 1, inputs, filters, bias=True) | norm(f"{name}_1_bn", filters)
        shapes |= conv(f"{name}_2_conv", 3, filters, filters, bias=True) | norm(f"{name}_2_bn", filters)
        shapes |= conv(f"{name}_3_conv", 1, filters, 4 * filters, bias=True) | norm(f"{name}_3_bn", 4 * filters)
    return shapes


def _shapes_v2() -> Shapes:
    shapes = conv("conv1_conv", 7, 3, 64, bias=True)
    for name, inputs, filters, first in _blocks():
        shapes |= norm(f"{name}_preact_bn", inputs)
        if first:
            shapes |= conv(f"{name}_0_conv", 1, inputs, 4 * filters, bias=True)
        shapes |= conv(f"{name}_1_conv", 1, inputs, filters) | norm(f"{name}_1_bn", filters)
        shapes |= conv(f"{name}_2_conv", 3, filters, filters) | norm(f"{name}_2_bn", filters)
        shapes |= conv(f"{name}_3_conv", 1, filters, 4 * filters, bias=True)
    return shapes | norm("post_bn", 2048)


def _endpoints(*, strided: str) -> Iterator[Endpoint]:
    """The blocks' outputs. `strided`: which block of a stage halves the map."""
    stride = 4
    for stage, filters, blocks in _STAGES:
        for number in range(1, blocks + 1):
            halves = stage != "conv2" and number == 1 if strided == "first" else stage != "conv5" and number == blocks
            stride *= 2 if halves else 1
            yield Endpoint(name=f"{stage}_block{number}_out", stride=stride, channels=4 * filters)


FACTS = ArchitectureFacts(
    name="resnet50",
    paper="He et al. 2015, Deep Residual Learning for Image Recognition, arXiv:1512.03385",
    defaults={},
    tensor_shapes=lambda arguments: _shapes(),
    feature_dim=lambda arguments: 2048,
    endpoints=(
        Endpoint(name="conv1_relu", stride=2, channels=64),
        Endpoint(name="pool1_pool", stride=4, channels=64),
        *_endpoints(strided="first"),
    ),
    parameters=23_587_712,
    flops=7_712_000_000,
    batch_norm_epsilon=1.001e-5,
    # Keras' weights saw 0 to 255 less ImageNet's mean, not divided by anything, with blue first (Caffe's way). The name
    # map turns the first convolution round, so that images stay red, green, blue everywhere here.
    input_spec=InputSpec(height=224, width=224, scale=1.0, mean=(123.68, 116.779, 103.939)),
    min_size=32,
    name_maps={
        "keras": NameMap(
            framework="keras",
            backbone=lambda arguments: keras_names(_shapes(), {"conv1_conv/kernel": "conv_bgr"}),
            head=keras_dense("probs"),
        )
    },
    published=PublishedCount(
        parameters=25_636_712, classes=1000, trainable_only=False, where="Keras Applications' table of models"
    ),
    sources=(keras("ResNet50", 74.9),),
)

FACTS_V2 = ArchitectureFacts(
    name="resnet50_v2",
    paper="He et al. 2016, Identity Mappings in Deep Residual Networks, arXiv:1603.05027",
    defaults={},
    tensor_shapes=lambda arguments: _shapes_v2(),
    feature_dim=lambda arguments: 2048,
    endpoints=(
        Endpoint(name="conv1_conv", stride=2, channels=64),
        Endpoint(name="pool1_pool", stride=4, channels=64),
        *_endpoints(strided="last"),
        Endpoint(name="post_relu", stride=32, channels=2048),
    ),
    parameters=23_564_800,
    flops=6_960_000_000,
    batch_norm_epsilon=1.001e-5,
    input_spec=InputSpec(height=224, width=224, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    min_size=32,
    name_maps={
        "keras": NameMap(
            framework="keras", backbone=lambda arguments: keras_names(_shapes_v2()), head=keras_dense("probs")
        )
    },
    published=PublishedCount(
        parameters=25_613_800, classes=1000, trainable_only=False, where="Keras Applications' table of models"
    ),
    sources=(keras("ResNet50V2", 76.0),),
)
