"""Inception v3 (Szegedy et al. 2015, arXiv:1512.00567), as TF-Slim and Keras build it.

Canonical scopes are TF-Slim's, its historical quirks included (`Mixed_5c/Branch_1/Conv_1_0c_5x5`,
`Mixed_6a/Branch_0/Conv2d_1a_1x1`, which is 3 × 3), so that they can be looked up in the literature. Each scope is a
convolution without bias, then a BatchNorm without gamma, then relu.
"""

from __future__ import annotations

from dataclasses import dataclass

from zoo.architectures.facts import ArchitectureFacts, Arguments, Endpoint, NameMap, Shape, Target
from zoo.input_spec import InputSpec


@dataclass(frozen=True)
class Unit:
    """Convolution, BatchNorm, relu. `torch` is the module's name in torchvision and timm."""

    scope: str
    torch: str
    height: int
    width: int
    inputs: int
    outputs: int


def _mixed_5(name: str, inputs: int, pool: int, odd: bool = False) -> tuple[Unit, ...]:
    one, five = ("Conv2d_0b_1x1", "Conv_1_0c_5x5") if odd else ("Conv2d_0a_1x1", "Conv2d_0b_5x5")
    return (
        Unit(f"{name}/Branch_0/Conv2d_0a_1x1", f"{name}.branch1x1", 1, 1, inputs, 64),
        Unit(f"{name}/Branch_1/{one}", f"{name}.branch5x5_1", 1, 1, inputs, 48),
        Unit(f"{name}/Branch_1/{five}", f"{name}.branch5x5_2", 5, 5, 48, 64),
        Unit(f"{name}/Branch_2/Conv2d_0a_1x1", f"{name}.branch3x3dbl_1", 1, 1, inputs, 64),
        Unit(f"{name}/Branch_2/Conv2d_0b_3x3", f"{name}.branch3x3dbl_2", 3, 3, 64, 96),
        Unit(f"{name}/Branch_2/Conv2d_0c_3x3", f"{name}.branch3x3dbl_3", 3, 3, 96, 96),
        Unit(f"{name}/Branch_3/Conv2d_0b_1x1", f"{name}.branch_pool", 1, 1, inputs, pool),
    )


def _mixed_6(name: str, middle: int) -> tuple[Unit, ...]:
    return (
        Unit(f"{name}/Branch_0/Conv2d_0a_1x1", f"{name}.branch1x1", 1, 1, 768, 192),
        Unit(f"{name}/Branch_1/Conv2d_0a_1x1", f"{name}.branch7x7_1", 1, 1, 768, middle),
        Unit(f"{name}/Branch_1/Conv2d_0b_1x7", f"{name}.branch7x7_2", 1, 7, middle, middle),
        Unit(f"{name}/Branch_1/Conv2d_0c_7x1", f"{name}.branch7x7_3", 7, 1, middle, 192),
        Unit(f"{name}/Branch_2/Conv2d_0a_1x1", f"{name}.branch7x7dbl_1", 1, 1, 768, middle),
        Unit(f"{name}/Branch_2/Conv2d_0b_7x1", f"{name}.branch7x7dbl_2", 7, 1, middle, middle),
        Unit(f"{name}/Branch_2/Conv2d_0c_1x7", f"{name}.branch7x7dbl_3", 1, 7, middle, middle),
        Unit(f"{name}/Branch_2/Conv2d_0d_7x1", f"{name}.branch7x7dbl_4", 7, 1, middle, middle),
        Unit(f"{name}/Branch_2/Conv2d_0e_1x7", f"{name}.branch7x7dbl_5", 1, 7, middle, 192),
        Unit(f"{name}/Branch_3/Conv2d_0b_1x1", f"{name}.branch_pool", 1, 1, 768, 192),
    )


def _mixed_7(name: str, inputs: int, tall: str) -> tuple[Unit, ...]:
    return (
        Unit(f"{name}/Branch_0/Conv2d_0a_1x1", f"{name}.branch1x1", 1, 1, inputs, 320),
        Unit(f"{name}/Branch_1/Conv2d_0a_1x1", f"{name}.branch3x3_1", 1, 1, inputs, 384),
        Unit(f"{name}/Branch_1/Conv2d_0b_1x3", f"{name}.branch3x3_2a", 1, 3, 384, 384),
        Unit(f"{name}/Branch_1/{tall}", f"{name}.branch3x3_2b", 3, 1, 384, 384),
        Unit(f"{name}/Branch_2/Conv2d_0a_1x1", f"{name}.branch3x3dbl_1", 1, 1, inputs, 448),
        Unit(f"{name}/Branch_2/Conv2d_0b_3x3", f"{name}.branch3x3dbl_2", 3, 3, 448, 384),
        Unit(f"{name}/Branch_2/Conv2d_0c_1x3", f"{name}.branch3x3dbl_3a", 1, 3, 384, 384),
        Unit(f"{name}/Branch_2/Conv2d_0d_3x1", f"{name}.branch3x3dbl_3b", 3, 1, 384, 384),
        Unit(f"{name}/Branch_3/Conv2d_0b_1x1", f"{name}.branch_pool", 1, 1, inputs, 192),
    )


# In the order in which Keras' builder (and Slim's) makes the layers: entry i is Keras' i-th Conv2D and BatchNorm.
UNITS: tuple[Unit, ...] = (
    Unit("Conv2d_1a_3x3", "Conv2d_1a_3x3", 3, 3, 3, 32),
    Unit("Conv2d_2a_3x3", "Conv2d_2a_3x3", 3, 3, 32, 32),
    Unit("Conv2d_2b_3x3", "Conv2d_2b_3x3", 3, 3, 32, 64),
    Unit("Conv2d_3b_1x1", "Conv2d_3b_1x1", 1, 1, 64, 80),
    Unit("Conv2d_4a_3x3", "Conv2d_4a_3x3", 3, 3, 80, 192),
    *_mixed_5("Mixed_5b", 192, 32),
    *_mixed_5("Mixed_5c", 256, 64, odd=True),
    *_mixed_5("Mixed_5d", 288, 64),
    Unit("Mixed_6a/Branch_0/Conv2d_1a_1x1", "Mixed_6a.branch3x3", 3, 3, 288, 384),
    Unit("Mixed_6a/Branch_1/Conv2d_0a_1x1", "Mixed_6a.branch3x3dbl_1", 1, 1, 288, 64),
    Unit("Mixed_6a/Branch_1/Conv2d_0b_3x3", "Mixed_6a.branch3x3dbl_2", 3, 3, 64, 96),
    Unit("Mixed_6a/Branch_1/Conv2d_1a_1x1", "Mixed_6a.branch3x3dbl_3", 3, 3, 96, 96),
    *_mixed_6("Mixed_6b", 128),
    *_mixed_6("Mixed_6c", 160),
    *_mixed_6("Mixed_6d", 160),
    *_mixed_6("Mixed_6e", 192),
    Unit("Mixed_7a/Branch_0/Conv2d_0a_1x1", "Mixed_7a.branch3x3_1", 1, 1, 768, 192),
    Unit("Mixed_7a/Branch_0/Conv2d_1a_3x3", "Mixed_7a.branch3x3_2", 3, 3, 192, 320),
    Unit("Mixed_7a/Branch_1/Conv2d_0a_1x1", "Mixed_7a.branch7x7x3_1", 1, 1, 768, 192),
    Unit("Mixed_7a/Branch_1/Conv2d_0b_1x7", "Mixed_7a.branch7x7x3_2", 1, 7, 192, 192),
    Unit("Mixed_7a/Branch_1/Conv2d_0c_7x1", "Mixed_7a.branch7x7x3_3", 7, 1, 192, 192),
    Unit("Mixed_7a/Branch_1/Conv2d_1a_3x3", "Mixed_7a.branch7x7x3_4", 3, 3, 192, 192),
    *_mixed_7("Mixed_7b", 1280, "Conv2d_0b_3x1"),
    *_mixed_7("Mixed_7c", 2048, "Conv2d_0c_3x1"),
)


def tensor_shapes(arguments: Arguments) -> dict[str, Shape]:
    """Canonical tensor name → shape; the arguments change none of them."""
    shapes: dict[str, Shape] = {}
    for unit in UNITS:
        shapes[f"{unit.scope}/kernel"] = (unit.height, unit.width, unit.inputs, unit.outputs)
        for name in ("beta", "moving_mean", "moving_variance"):
            shapes[f"{unit.scope}/{name}"] = (unit.outputs,)
    return shapes


def _keras_names(first: int) -> dict[str, Target]:
    """Keras' automatic names, which count layers as they are made; a count of 0 is left out of the name."""
    names: dict[str, Target] = {}
    for number, unit in enumerate(UNITS, start=first):
        suffix = f"_{number}" if number else ""
        names[f"conv2d{suffix}/kernel"] = Target(name=f"{unit.scope}/kernel")
        for name in ("beta", "moving_mean", "moving_variance"):
            names[f"batch_normalization{suffix}/{name}"] = Target(name=f"{unit.scope}/{name}")
    return names


def _torch_names(arguments: Arguments) -> dict[str, Target]:
    """torchvision's and timm's names. Their BatchNorm has a gamma, ours has none: gamma · (x * k − m) / s + b is
    (x * (k · gamma) − m · gamma) / s + b, so it is multiplied into the kernel and the moving mean."""
    names: dict[str, Target] = {}
    for unit in UNITS:
        gamma = f"{unit.torch}.bn.weight"
        names[f"{unit.torch}.conv.weight"] = Target(name=f"{unit.scope}/kernel", layout="conv_oihw", times=gamma)
        names[f"{unit.torch}.bn.bias"] = Target(name=f"{unit.scope}/beta")
        names[f"{unit.torch}.bn.running_mean"] = Target(name=f"{unit.scope}/moving_mean", times=gamma)
        names[f"{unit.torch}.bn.running_var"] = Target(name=f"{unit.scope}/moving_variance")
    return names


FACTS = ArchitectureFacts(
    name="inception_v3",
    paper="Szegedy et al. 2015, Rethinking the Inception Architecture for Computer Vision, arXiv:1512.00567",
    # PyTorch's port counts the zero padding in the 3 × 3 average pooling of its branches, TensorFlow doesn't: features
    # are 12 % apart, so how to pool belongs to the weights' manifest.
    defaults={"pool_counts_padding": False},
    tensor_shapes=tensor_shapes,
    feature_dim=lambda arguments: 2048,
    endpoints=(
        Endpoint(name="Conv2d_2b_3x3", stride=2, channels=64),
        Endpoint(name="Conv2d_4a_3x3", stride=4, channels=192),
        Endpoint(name="Mixed_5d", stride=8, channels=288),
        Endpoint(name="Mixed_6e", stride=16, channels=768),
        Endpoint(name="Mixed_7c", stride=32, channels=2048),
    ),
    parameters=21_802_784,  # keras.applications.InceptionV3(include_top=False)
    flops=11_400_000_000,
    batch_norm_epsilon=1e-3,
    input_spec=InputSpec(height=299, width=299, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    min_size=75,
    name_maps={
        "keras": NameMap(framework="keras", backbone=lambda arguments: _keras_names(1)),  # standalone Keras 2, TF.js
        "keras-from-0": NameMap(framework="keras", backbone=lambda arguments: _keras_names(0)),  # tf.keras, Keras 3
        "torch": NameMap(
            framework="torch",
            backbone=_torch_names,
            head={
                "fc.weight": Target(name="logits/kernel", layout="linear_oi"),
                "fc.bias": Target(name="logits/bias"),
            },
            unused={
                "AuxLogits.*": "the auxiliary classifier only serves training from scratch",
                "*.num_batches_tracked": "a training-time counter of PyTorch's BatchNorm",
            },
            arguments={"pool_counts_padding": True},
        ),
    },
)
