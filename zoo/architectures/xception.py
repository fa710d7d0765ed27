"""Xception (Chollet 2017, arXiv:1610.02357), as Keras builds it.

Canonical scopes are Keras' layer names (`block2_sepconv1`); a convolution's BatchNorm, with a gamma, shares its scope.
The 1 × 1 convolutions beside blocks 2, 3, 4 and 13, to which Keras gives no name, are `block2_residual` and so on.

timm's port computes something else with the same tensors: its max pooling pads both sides alike where TensorFlow's
"same" pads the right and lower side only (an even side under stride 2), and its BatchNorm has the epsilon 1e-5.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from zoo.architectures.facts import ArchitectureFacts, Arguments, Endpoint, NameMap, PublishedCount, Shape, Target
from zoo.architectures.publishers import keras
from zoo.architectures.units import TORCH_UNUSED, torch_dense
from zoo.input_spec import InputSpec

_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
_TORCH_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


@dataclass(frozen=True)
class Convolution:
    """A convolution without bias, and the BatchNorm after it.

    `separable`: 3 × 3 of each channel, then 1 × 1 across them. `torch`, `torch_norm`: the modules' names in timm.
    """

    scope: str
    torch: str
    torch_norm: str
    inputs: int
    outputs: int
    separable: bool = True
    side: int = 3


@dataclass(frozen=True, kw_only=True)
class Block:
    """Separable convolutions, and where there is a `residual` convolution a max pooling of stride 2 after them."""

    name: str
    convolutions: tuple[Convolution, ...]
    residual: Convolution | None


def _block(number: int, *outputs: int, inputs: int, pooled: bool) -> Block:
    """timm's block n is Keras' block n + 1: the entry's two plain convolutions are no block there."""
    name, torch = f"block{number}", f"block{number - 1}"
    convolutions = []
    first = 0 if number == 2 else 1  # relu comes first, except in block 2
    before = inputs
    for place, width in enumerate(outputs):
        at = first + 3 * place
        convolutions.append(
            Convolution(f"{name}_sepconv{place + 1}", f"{torch}.rep.{at}", f"{torch}.rep.{at + 1}", before, width)
        )
        before = width
    residual = Convolution(f"{name}_residual", f"{torch}.skip", f"{torch}.skipbn", inputs, before, False, 1)
    return Block(name=name, convolutions=tuple(convolutions), residual=residual if pooled else None)


ENTRY = (
    Convolution("block1_conv1", "conv1", "bn1", 3, 32, False),
    Convolution("block1_conv2", "conv2", "bn2", 32, 64, False),
)
BLOCKS = (
    _block(2, 128, 128, inputs=64, pooled=True),
    _block(3, 256, 256, inputs=128, pooled=True),
    _block(4, 728, 728, inputs=256, pooled=True),
    *(_block(number, 728, 728, 728, inputs=728, pooled=False) for number in range(5, 13)),
    _block(13, 728, 1024, inputs=728, pooled=True),
)
EXIT = (
    Convolution("block14_sepconv1", "conv3", "bn3", 1024, 1536),
    Convolution("block14_sepconv2", "conv4", "bn4", 1536, 2048),
)


def _convolutions() -> Iterator[Convolution]:
    yield from ENTRY
    for block in BLOCKS:
        yield from block.convolutions
        if block.residual is not None:
            yield block.residual
    yield from EXIT


def tensor_shapes(arguments: Arguments) -> dict[str, Shape]:
    """Canonical tensor name → shape; the arguments change none of them."""
    shapes: dict[str, Shape] = {}
    for each in _convolutions():
        if each.separable:
            shapes[f"{each.scope}/depthwise_kernel"] = (3, 3, each.inputs, 1)
            shapes[f"{each.scope}/pointwise_kernel"] = (1, 1, each.inputs, each.outputs)
        else:
            shapes[f"{each.scope}/kernel"] = (each.side, each.side, each.inputs, each.outputs)
        shapes |= {f"{each.scope}/{name}": (each.outputs,) for name in _NORM}
    return shapes


def _keras_names(first: int) -> dict[str, Target]:
    """Keras' names. The four convolutions without one are counted as they are made; a count of 0 is left out."""
    names: dict[str, Target] = {}
    number = first
    for each in _convolutions():
        layer, norm = each.scope, f"{each.scope}_bn"
        if each.scope.endswith("_residual"):
            suffix = f"_{number}" if number else ""
            layer, norm = f"conv2d{suffix}", f"batch_normalization{suffix}"
            number += 1
        for kernel in ("depthwise_kernel", "pointwise_kernel") if each.separable else ("kernel",):
            names[f"{layer}/{kernel}"] = Target(name=f"{each.scope}/{kernel}")
        names |= {f"{norm}/{name}": Target(name=f"{each.scope}/{name}") for name in _NORM}
    return names


def _timm_names(arguments: Arguments) -> dict[str, Target]:
    names: dict[str, Target] = {}
    for each in _convolutions():
        if each.separable:
            depthwise = Target(name=f"{each.scope}/depthwise_kernel", layout="depthwise_oihw")
            names[f"{each.torch}.conv1.weight"] = depthwise
            pointwise = Target(name=f"{each.scope}/pointwise_kernel", layout="conv_oihw")
            names[f"{each.torch}.pointwise.weight"] = pointwise
        else:
            names[f"{each.torch}.weight"] = Target(name=f"{each.scope}/kernel", layout="conv_oihw")
        for name in _NORM:
            names[f"{each.torch_norm}.{_TORCH_NORM[name]}"] = Target(name=f"{each.scope}/{name}")
    return names


FACTS = ArchitectureFacts(
    name="xception",
    paper="Chollet 2017, Xception: Deep Learning with Depthwise Separable Convolutions, arXiv:1610.02357",
    defaults={"batch_norm_epsilon": 1e-3, "pool_pads_both_sides": False},
    tensor_shapes=tensor_shapes,
    feature_dim=lambda arguments: 2048,
    endpoints=(
        Endpoint(name="block1", stride=2, channels=64),
        Endpoint(name="block2", stride=4, channels=128),
        Endpoint(name="block3", stride=8, channels=256),
        *(Endpoint(name=f"block{number}", stride=16, channels=728) for number in range(4, 13)),
        Endpoint(name="block13", stride=32, channels=1024),
        Endpoint(name="block14", stride=32, channels=2048),
    ),
    parameters=20_861_480,  # keras.applications.Xception(include_top=False)
    flops=16_700_000_000,  # timm: 8.4 billion multiply-adds
    batch_norm_epsilon=1e-3,
    input_spec=InputSpec(height=299, width=299, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    min_size=7,  # Keras refuses what is below 71, which gives a map of 3 × 3
    name_maps={
        "keras": NameMap(framework="keras", backbone=lambda arguments: _keras_names(1)),  # standalone Keras 2
        "keras-from-0": NameMap(framework="keras", backbone=lambda arguments: _keras_names(0)),  # tf.keras, Keras 3
        "timm": NameMap(
            framework="torch",
            backbone=_timm_names,
            head=torch_dense("fc"),
            unused=TORCH_UNUSED,
            arguments={"batch_norm_epsilon": 1e-5, "pool_pads_both_sides": True},
        ),
    },
    published=PublishedCount(
        parameters=22_910_480, classes=1000, trainable_only=False, where="Keras Applications' table of models"
    ),
    sources=(keras("Xception", 79.0),),
)
