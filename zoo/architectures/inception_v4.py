"""Inception v4 (Szegedy et al. 2016, arXiv:1602.07261), as TF-Slim builds it.

Canonical scopes are TF-Slim's. Each is a convolution without bias, then a BatchNorm without gamma, then relu. timm's
port has the same network with a gamma in each BatchNorm, its modules counted in one row (`features.<n>`); its average
pooling leaves the zero padding out of the mean, as TensorFlow's does. Whatever has a stride here has no padding, so
the two agree on images of any size, and neither argument nor other input range is needed.
"""

from __future__ import annotations

from zoo.architectures.facts import ArchitectureFacts, Arguments, Endpoint, NameMap, PublishedCount, Shape
from zoo.architectures.publishers import slim, timm
from zoo.architectures.units import (
    SLIM_UNUSED,
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

_LOGITS = "InceptionV4/Logits/Logits"


def _inception_a(name: str, place: int) -> tuple[Unit, ...]:
    torch = f"features.{place}"
    return (
        Unit(f"{name}/Branch_0/Conv2d_0a_1x1", f"{torch}.branch0", 1, 1, 384, 96),
        Unit(f"{name}/Branch_1/Conv2d_0a_1x1", f"{torch}.branch1.0", 1, 1, 384, 64),
        Unit(f"{name}/Branch_1/Conv2d_0b_3x3", f"{torch}.branch1.1", 3, 3, 64, 96),
        Unit(f"{name}/Branch_2/Conv2d_0a_1x1", f"{torch}.branch2.0", 1, 1, 384, 64),
        Unit(f"{name}/Branch_2/Conv2d_0b_3x3", f"{torch}.branch2.1", 3, 3, 64, 96),
        Unit(f"{name}/Branch_2/Conv2d_0c_3x3", f"{torch}.branch2.2", 3, 3, 96, 96),
        Unit(f"{name}/Branch_3/Conv2d_0b_1x1", f"{torch}.branch3.1", 1, 1, 384, 96),
    )


def _inception_b(name: str, place: int) -> tuple[Unit, ...]:
    torch = f"features.{place}"
    return (
        Unit(f"{name}/Branch_0/Conv2d_0a_1x1", f"{torch}.branch0", 1, 1, 1024, 384),
        Unit(f"{name}/Branch_1/Conv2d_0a_1x1", f"{torch}.branch1.0", 1, 1, 1024, 192),
        Unit(f"{name}/Branch_1/Conv2d_0b_1x7", f"{torch}.branch1.1", 1, 7, 192, 224),
        Unit(f"{name}/Branch_1/Conv2d_0c_7x1", f"{torch}.branch1.2", 7, 1, 224, 256),
        Unit(f"{name}/Branch_2/Conv2d_0a_1x1", f"{torch}.branch2.0", 1, 1, 1024, 192),
        Unit(f"{name}/Branch_2/Conv2d_0b_7x1", f"{torch}.branch2.1", 7, 1, 192, 192),
        Unit(f"{name}/Branch_2/Conv2d_0c_1x7", f"{torch}.branch2.2", 1, 7, 192, 224),
        Unit(f"{name}/Branch_2/Conv2d_0d_7x1", f"{torch}.branch2.3", 7, 1, 224, 224),
        Unit(f"{name}/Branch_2/Conv2d_0e_1x7", f"{torch}.branch2.4", 1, 7, 224, 256),
        Unit(f"{name}/Branch_3/Conv2d_0b_1x1", f"{torch}.branch3.1", 1, 1, 1024, 128),
    )


def _inception_c(name: str, place: int) -> tuple[Unit, ...]:
    torch = f"features.{place}"
    return (
        Unit(f"{name}/Branch_0/Conv2d_0a_1x1", f"{torch}.branch0", 1, 1, 1536, 256),
        Unit(f"{name}/Branch_1/Conv2d_0a_1x1", f"{torch}.branch1_0", 1, 1, 1536, 384),
        Unit(f"{name}/Branch_1/Conv2d_0b_1x3", f"{torch}.branch1_1a", 1, 3, 384, 256),
        Unit(f"{name}/Branch_1/Conv2d_0c_3x1", f"{torch}.branch1_1b", 3, 1, 384, 256),
        Unit(f"{name}/Branch_2/Conv2d_0a_1x1", f"{torch}.branch2_0", 1, 1, 1536, 384),
        Unit(f"{name}/Branch_2/Conv2d_0b_3x1", f"{torch}.branch2_1", 3, 1, 384, 448),
        Unit(f"{name}/Branch_2/Conv2d_0c_1x3", f"{torch}.branch2_2", 1, 3, 448, 512),
        Unit(f"{name}/Branch_2/Conv2d_0d_1x3", f"{torch}.branch2_3a", 1, 3, 512, 256),
        Unit(f"{name}/Branch_2/Conv2d_0e_3x1", f"{torch}.branch2_3b", 3, 1, 512, 256),
        Unit(f"{name}/Branch_3/Conv2d_0b_1x1", f"{torch}.branch3.1", 1, 1, 1536, 256),
    )


UNITS: tuple[Unit, ...] = (
    Unit("Conv2d_1a_3x3", "features.0", 3, 3, 3, 32),
    Unit("Conv2d_2a_3x3", "features.1", 3, 3, 32, 32),
    Unit("Conv2d_2b_3x3", "features.2", 3, 3, 32, 64),
    Unit("Mixed_3a/Branch_1/Conv2d_0a_3x3", "features.3.conv", 3, 3, 64, 96),
    Unit("Mixed_4a/Branch_0/Conv2d_0a_1x1", "features.4.branch0.0", 1, 1, 160, 64),
    Unit("Mixed_4a/Branch_0/Conv2d_1a_3x3", "features.4.branch0.1", 3, 3, 64, 96),
    Unit("Mixed_4a/Branch_1/Conv2d_0a_1x1", "features.4.branch1.0", 1, 1, 160, 64),
    Unit("Mixed_4a/Branch_1/Conv2d_0b_1x7", "features.4.branch1.1", 1, 7, 64, 64),
    Unit("Mixed_4a/Branch_1/Conv2d_0c_7x1", "features.4.branch1.2", 7, 1, 64, 64),
    Unit("Mixed_4a/Branch_1/Conv2d_1a_3x3", "features.4.branch1.3", 3, 3, 64, 96),
    Unit("Mixed_5a/Branch_0/Conv2d_1a_3x3", "features.5.conv", 3, 3, 192, 192),
    *_inception_a("Mixed_5b", 6),
    *_inception_a("Mixed_5c", 7),
    *_inception_a("Mixed_5d", 8),
    *_inception_a("Mixed_5e", 9),
    Unit("Mixed_6a/Branch_0/Conv2d_1a_3x3", "features.10.branch0", 3, 3, 384, 384),
    Unit("Mixed_6a/Branch_1/Conv2d_0a_1x1", "features.10.branch1.0", 1, 1, 384, 192),
    Unit("Mixed_6a/Branch_1/Conv2d_0b_3x3", "features.10.branch1.1", 3, 3, 192, 224),
    Unit("Mixed_6a/Branch_1/Conv2d_1a_3x3", "features.10.branch1.2", 3, 3, 224, 256),
    *_inception_b("Mixed_6b", 11),
    *_inception_b("Mixed_6c", 12),
    *_inception_b("Mixed_6d", 13),
    *_inception_b("Mixed_6e", 14),
    *_inception_b("Mixed_6f", 15),
    *_inception_b("Mixed_6g", 16),
    *_inception_b("Mixed_6h", 17),
    Unit("Mixed_7a/Branch_0/Conv2d_0a_1x1", "features.18.branch0.0", 1, 1, 1024, 192),
    Unit("Mixed_7a/Branch_0/Conv2d_1a_3x3", "features.18.branch0.1", 3, 3, 192, 192),
    Unit("Mixed_7a/Branch_1/Conv2d_0a_1x1", "features.18.branch1.0", 1, 1, 1024, 256),
    Unit("Mixed_7a/Branch_1/Conv2d_0b_1x7", "features.18.branch1.1", 1, 7, 256, 256),
    Unit("Mixed_7a/Branch_1/Conv2d_0c_7x1", "features.18.branch1.2", 7, 1, 256, 320),
    Unit("Mixed_7a/Branch_1/Conv2d_1a_3x3", "features.18.branch1.3", 3, 3, 320, 320),
    *_inception_c("Mixed_7b", 19),
    *_inception_c("Mixed_7c", 20),
    *_inception_c("Mixed_7d", 21),
)


def tensor_shapes(arguments: Arguments) -> dict[str, Shape]:
    """Canonical tensor name → shape; there are no arguments."""
    return unit_shapes(UNITS)


FACTS = ArchitectureFacts(
    name="inception_v4",
    paper="Szegedy et al. 2016, Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning, "
    "arXiv:1602.07261",
    defaults={},
    tensor_shapes=tensor_shapes,
    feature_dim=lambda arguments: 1536,
    endpoints=(
        Endpoint(name="Conv2d_1a_3x3", stride=2, channels=32),
        Endpoint(name="Conv2d_2a_3x3", stride=2, channels=32),
        Endpoint(name="Conv2d_2b_3x3", stride=2, channels=64),
        Endpoint(name="Mixed_3a", stride=4, channels=160),
        Endpoint(name="Mixed_4a", stride=4, channels=192),
        *(Endpoint(name=f"Mixed_5{letter}", stride=8, channels=384) for letter in "abcde"),
        *(Endpoint(name=f"Mixed_6{letter}", stride=16, channels=1024) for letter in "abcdefgh"),
        *(Endpoint(name=f"Mixed_7{letter}", stride=32, channels=1536) for letter in "abcd"),
    ),
    parameters=41_174_400,
    flops=24_500_000_000,  # timm: 12.3 billion multiply-adds
    batch_norm_epsilon=1e-3,
    input_spec=InputSpec(height=299, width=299, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    min_size=75,
    name_maps={
        "slim": NameMap(
            framework="slim",
            backbone=lambda arguments: slim_names(UNITS, "InceptionV4"),
            head=slim_logits(_LOGITS),
            unused=SLIM_UNUSED,
            input_spec=slim_input_spec(299),
        ),
        "slim-gamma": NameMap(
            framework="slim",
            backbone=lambda arguments: slim_names(UNITS, "InceptionV4", gamma=True),
            head=slim_logits(_LOGITS),
            unused=SLIM_UNUSED,
            input_spec=slim_input_spec(299),
        ),
        "timm": NameMap(
            framework="torch",
            backbone=lambda arguments: torch_names(UNITS),
            head=torch_dense("last_linear"),
            unused=TORCH_UNUSED,
        ),
    },
    published=PublishedCount(
        parameters=42_679_816,
        classes=1000,
        trainable_only=True,
        where="timm's inception_v4",
        extra=sum(unit.outputs for unit in UNITS),  # the gammas of timm's BatchNorms
    ),
    sources=(
        timm("inception_v4.tf_in1k", 80.156, size=299, crop=0.875),
        slim("inception_v4_2016_09_09", 80.2),
    ),
)
