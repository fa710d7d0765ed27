"""ConvNeXt Tiny (Liu et al. 2022, arXiv:2201.03545), with the names of Keras Applications' ConvNeXtTiny.

The feature map is the last stage's output. The feature vector is its mean, *normalised*: a LayerNorm after the pooling
belongs to the network, in the paper and in Keras alike, with or without a classifier on top.
"""

from __future__ import annotations

from zoo.architectures.facts import ArchitectureFacts, Endpoint, NameMap, PublishedCount, Target
from zoo.architectures.keras_layers import Shapes, conv, dense, keras_dense, keras_names, layer_norm
from zoo.architectures.publishers import keras
from zoo.input_spec import InputSpec

NETWORK = "convnext_tiny"
HEAD_NORM = f"{NETWORK}_head_layernorm"
_STAGES = ((3, 96), (3, 192), (9, 384), (3, 768))  # blocks, channels


def block_names() -> tuple[str, ...]:
    return tuple(
        f"{NETWORK}_stage_{stage}_block_{place}" for stage, (blocks, _) in enumerate(_STAGES) for place in range(blocks)
    )


def _shapes() -> Shapes:
    shapes: Shapes = {}
    inputs = 3
    for stage, (blocks, channels) in enumerate(_STAGES):
        if stage == 0:
            shapes |= conv(f"{NETWORK}_stem_conv", 4, inputs, channels, bias=True)
            shapes |= layer_norm(f"{NETWORK}_stem_layernorm", channels)
        else:
            shapes |= layer_norm(f"{NETWORK}_downsampling_layernorm_{stage - 1}", inputs)
            shapes |= conv(f"{NETWORK}_downsampling_conv_{stage - 1}", 2, inputs, channels, bias=True)
        for place in range(blocks):
            at = f"{NETWORK}_stage_{stage}_block_{place}"
            shapes |= conv(f"{at}_depthwise_conv", 7, 1, channels, bias=True)  # a convolution in groups of one
            shapes |= layer_norm(f"{at}_layernorm", channels)
            shapes |= dense(f"{at}_pointwise_conv_1", channels, 4 * channels)
            shapes |= dense(f"{at}_pointwise_conv_2", 4 * channels, channels)
            shapes[f"{at}_layer_scale/gamma"] = (channels,)
        inputs = channels
    return shapes | layer_norm(HEAD_NORM, inputs)


def _keras_names(*, top: bool) -> dict[str, Target]:
    """Keras 3's names. Without a classifier Keras gives the last LayerNorm no name of its own."""
    norm = HEAD_NORM if top else "layer_normalization"
    return {
        name.replace(HEAD_NORM, norm) if name.startswith(HEAD_NORM) else name: target
        for name, target in keras_names(_shapes()).items()
    }


def _names_of_keras_2(*, top: bool) -> dict[str, Target]:
    """The names in the files that Keras Applications publish. A LayerScale's value is called there as TensorFlow calls
    what has no name."""
    return {
        f"{name.removesuffix('gamma')}Variable" if "_layer_scale/" in name else name: target
        for name, target in _keras_names(top=top).items()
    }


def _endpoints() -> tuple[Endpoint, ...]:
    channels = {f"stage_{stage}": (4 * 2**stage, channels) for stage, (_, channels) in enumerate(_STAGES)}
    found = []
    for name in block_names():
        stride, width = channels[name.removeprefix(f"{NETWORK}_").rpartition("_block")[0]]
        found.append(Endpoint(name=name, stride=stride, channels=width))
    return tuple(found)


FACTS = ArchitectureFacts(
    name=NETWORK,
    paper="Liu et al. 2022, A ConvNet for the 2020s, arXiv:2201.03545",
    defaults={},
    tensor_shapes=lambda arguments: _shapes(),
    feature_dim=lambda arguments: 768,
    endpoints=_endpoints(),
    parameters=27_820_128,
    flops=8_910_000_000,
    batch_norm_epsilon=1e-6,  # of its LayerNorms; it has no BatchNorm
    input_spec=InputSpec(height=224, width=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    min_size=32,
    name_maps={
        "keras": NameMap(
            framework="keras",
            backbone=lambda arguments: _keras_names(top=True),
            head=keras_dense(f"{NETWORK}_head_dense"),
        ),
        "keras-no-top": NameMap(framework="keras", backbone=lambda arguments: _keras_names(top=False)),
        "keras-2": NameMap(
            framework="keras",
            backbone=lambda arguments: _names_of_keras_2(top=True),
            head=keras_dense(f"{NETWORK}_head_dense"),
        ),
        "keras-2-no-top": NameMap(framework="keras", backbone=lambda arguments: _names_of_keras_2(top=False)),
    },
    published=PublishedCount(
        parameters=28_589_128, classes=1000, trainable_only=False, where="torchvision's convnext_tiny"
    ),
    sources=(keras("ConvNeXtTiny", 81.3),),
)
