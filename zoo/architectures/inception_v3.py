"""Inception v3 (Szegedy et al. 2015, arXiv:1512.00567), as TF-Slim and Keras build it.

Canonical scopes are TF-Slim's, its historical quirks included (`Mixed_5c/Branch_1/Conv_1_0c_5x5`,
`Mixed_6a/Branch_0/Conv2d_1a_1x1`, which is 3 × 3), so that they can be looked up in the literature. Each scope is a
convolution without bias, then a BatchNorm without gamma, then relu.
"""

from __future__ import annotations

from zoo.architectures.facts import ArchitectureFacts, Arguments, Endpoint, NameMap, PublishedCount, Shape, Target
from zoo.architectures.publishers import hub, keras, slim, timm
from zoo.architectures.units import (
    SLIM_UNUSED,
    STATISTICS,
    TORCH_UNUSED,
    Unit,
    slim_input_spec,
    slim_logits,
    slim_names,
    torch_dense,
    torch_names,
    unit_shapes,
)
from zoo.input_spec import InputSpec


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
    return unit_shapes(UNITS)


def _keras_names(first: int) -> dict[str, Target]:
    """Keras' automatic names, which count layers as they are made; a count of 0 is left out of the name."""
    names: dict[str, Target] = {}
    for number, unit in enumerate(UNITS, start=first):
        suffix = f"_{number}" if number else ""
        names[f"conv2d{suffix}/kernel"] = Target(name=f"{unit.scope}/kernel")
        for name in STATISTICS:
            names[f"batch_normalization{suffix}/{name}"] = Target(name=f"{unit.scope}/{name}")
    return names


_RECIPE = {"label_smoothing": 0.1}  # of TensorFlow's weights, as the paper says

FACTS = ArchitectureFacts(
    name="inception_v3",
    paper="Szegedy et al. 2015, Rethinking the Inception Architecture for Computer Vision, arXiv:1512.00567",
    # PyTorch's port counts the zero padding in the 3 × 3 average pooling of its branches, TensorFlow doesn't: features
    # are 12 % apart, so how to pool belongs to the weights' manifest.
    defaults={"pool_counts_padding": False},
    tensor_shapes=tensor_shapes,
    feature_dim=lambda arguments: 2048,
    endpoints=(
        Endpoint(name="Conv2d_1a_3x3", stride=2, channels=32),
        Endpoint(name="Conv2d_2a_3x3", stride=2, channels=32),
        Endpoint(name="Conv2d_2b_3x3", stride=2, channels=64),
        Endpoint(name="MaxPool_3a_3x3", stride=4, channels=64),
        Endpoint(name="Conv2d_3b_1x1", stride=4, channels=80),
        Endpoint(name="Conv2d_4a_3x3", stride=4, channels=192),
        Endpoint(name="MaxPool_5a_3x3", stride=8, channels=192),
        Endpoint(name="Mixed_5b", stride=8, channels=256),
        Endpoint(name="Mixed_5c", stride=8, channels=288),
        Endpoint(name="Mixed_5d", stride=8, channels=288),
        Endpoint(name="Mixed_6a", stride=16, channels=768),
        Endpoint(name="Mixed_6b", stride=16, channels=768),
        Endpoint(name="Mixed_6c", stride=16, channels=768),
        Endpoint(name="Mixed_6d", stride=16, channels=768),
        Endpoint(name="Mixed_6e", stride=16, channels=768),
        Endpoint(name="Mixed_7a", stride=32, channels=1280),
        Endpoint(name="Mixed_7b", stride=32, channels=2048),
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
        "slim": NameMap(
            framework="slim",
            backbone=lambda arguments: slim_names(UNITS, "InceptionV3"),
            head=slim_logits("InceptionV3/Logits/Conv2d_1c_1x1"),
            unused=SLIM_UNUSED,
            input_spec=slim_input_spec(299),
        ),
        "slim-gamma": NameMap(
            framework="slim",
            backbone=lambda arguments: slim_names(UNITS, "InceptionV3", gamma=True),
            head=slim_logits("InceptionV3/Logits/Conv2d_1c_1x1"),
            unused=SLIM_UNUSED,
            input_spec=slim_input_spec(299),
        ),
        "torch": NameMap(  # torchvision's and timm's
            framework="torch",
            backbone=lambda arguments: torch_names(UNITS),
            head=torch_dense("fc"),
            unused={"AuxLogits.*": "the auxiliary classifier only serves training from scratch", **TORCH_UNUSED},
            arguments={"pool_counts_padding": True},
        ),
    },
    published=PublishedCount(
        parameters=23_851_784, classes=1000, trainable_only=False, where="Keras Applications' table of models"
    ),
    sources=(
        keras("InceptionV3", 77.9),
        hub("inception_v3", 78.0, _RECIPE),
        timm("inception_v3.tf_in1k", 77.862, size=299, crop=0.875, recipe=_RECIPE),
        timm("inception_v3.tf_adv_in1k", 77.592, size=299, crop=0.875, recipe={"adversarial": True}),
        slim("inception_v3_2016_08_28", 78.0, _RECIPE),
    ),
)
