"""Inception-ResNet v2 (Szegedy et al. 2016, arXiv:1602.07261), as TF-Slim and Keras build it.

Canonical scopes are TF-Slim's: a convolution without bias, then a BatchNorm without gamma, then relu. The blocks end
in a 1 × 1 convolution with a bias and neither BatchNorm nor relu (`Repeat/block35_1/Conv2d_1x1`), which is scaled and
added to the block's input. timm's port has the same network, with a gamma in each BatchNorm; whatever has a stride here
has no padding, so the two agree on images of any size.
"""

from __future__ import annotations

from dataclasses import dataclass

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

_LOGITS = "InceptionResnetV2/Logits/Logits"


@dataclass(frozen=True, kw_only=True)
class Residual:
    """A block: its branches are concatenated, brought to the input's width by `up`, scaled, added, and relu follows.

    `up` is a convolution with a bias and without BatchNorm. `keras` is what Keras names it.
    """

    scope: str
    torch: str
    keras: str
    branches: tuple[tuple[Unit, ...], ...]
    scale: float
    channels: int
    relu: bool = True

    @property
    def units(self) -> tuple[Unit, ...]:
        return tuple(unit for branch in self.branches for unit in branch)

    @property
    def up(self) -> str:
        return f"{self.scope}/Conv2d_1x1"

    @property
    def up_shape(self) -> Shape:
        return (1, 1, sum(branch[-1].outputs for branch in self.branches), self.channels)


def _block35(number: int) -> Residual:
    scope, torch = f"Repeat/block35_{number}", f"repeat.{number - 1}"
    branches = (
        (Unit(f"{scope}/Branch_0/Conv2d_1x1", f"{torch}.branch0", 1, 1, 320, 32),),
        (
            Unit(f"{scope}/Branch_1/Conv2d_0a_1x1", f"{torch}.branch1.0", 1, 1, 320, 32),
            Unit(f"{scope}/Branch_1/Conv2d_0b_3x3", f"{torch}.branch1.1", 3, 3, 32, 32),
        ),
        (
            Unit(f"{scope}/Branch_2/Conv2d_0a_1x1", f"{torch}.branch2.0", 1, 1, 320, 32),
            Unit(f"{scope}/Branch_2/Conv2d_0b_3x3", f"{torch}.branch2.1", 3, 3, 32, 48),
            Unit(f"{scope}/Branch_2/Conv2d_0c_3x3", f"{torch}.branch2.2", 3, 3, 48, 64),
        ),
    )
    keras = f"block35_{number}_conv"
    return Residual(scope=scope, torch=torch, keras=keras, branches=branches, scale=0.17, channels=320)


def _block17(number: int) -> Residual:
    scope, torch = f"Repeat_1/block17_{number}", f"repeat_1.{number - 1}"
    branches = (
        (Unit(f"{scope}/Branch_0/Conv2d_1x1", f"{torch}.branch0", 1, 1, 1088, 192),),
        (
            Unit(f"{scope}/Branch_1/Conv2d_0a_1x1", f"{torch}.branch1.0", 1, 1, 1088, 128),
            Unit(f"{scope}/Branch_1/Conv2d_0b_1x7", f"{torch}.branch1.1", 1, 7, 128, 160),
            Unit(f"{scope}/Branch_1/Conv2d_0c_7x1", f"{torch}.branch1.2", 7, 1, 160, 192),
        ),
    )
    keras = f"block17_{number}_conv"
    return Residual(scope=scope, torch=torch, keras=keras, branches=branches, scale=0.10, channels=1088)


def _block8(number: int) -> Residual:
    """Nine in a row, and a tenth beside them: not scaled down, and no relu after it."""
    last = number == 10
    scope, torch = ("Block8", "block8") if last else (f"Repeat_2/block8_{number}", f"repeat_2.{number - 1}")
    branches = (
        (Unit(f"{scope}/Branch_0/Conv2d_1x1", f"{torch}.branch0", 1, 1, 2080, 192),),
        (
            Unit(f"{scope}/Branch_1/Conv2d_0a_1x1", f"{torch}.branch1.0", 1, 1, 2080, 192),
            Unit(f"{scope}/Branch_1/Conv2d_0b_1x3", f"{torch}.branch1.1", 1, 3, 192, 224),
            Unit(f"{scope}/Branch_1/Conv2d_0c_3x1", f"{torch}.branch1.2", 3, 1, 224, 256),
        ),
    )
    return Residual(
        scope=scope,
        torch=torch,
        keras=f"block8_{number}_conv",
        branches=branches,
        scale=1.0 if last else 0.20,
        channels=2080,
        relu=not last,
    )


BLOCKS_35 = tuple(_block35(number) for number in range(1, 11))
BLOCKS_17 = tuple(_block17(number) for number in range(1, 21))
BLOCKS_8 = tuple(_block8(number) for number in range(1, 11))
_BLOCKS = (*BLOCKS_35, *BLOCKS_17, *BLOCKS_8)

# In the order in which Keras' builder (and Slim's) makes the layers: entry i is Keras' i-th Conv2D and BatchNorm that
# has no name of its own; the last one has.
UNITS: tuple[Unit, ...] = (
    Unit("Conv2d_1a_3x3", "conv2d_1a", 3, 3, 3, 32),
    Unit("Conv2d_2a_3x3", "conv2d_2a", 3, 3, 32, 32),
    Unit("Conv2d_2b_3x3", "conv2d_2b", 3, 3, 32, 64),
    Unit("Conv2d_3b_1x1", "conv2d_3b", 1, 1, 64, 80),
    Unit("Conv2d_4a_3x3", "conv2d_4a", 3, 3, 80, 192),
    Unit("Mixed_5b/Branch_0/Conv2d_1x1", "mixed_5b.branch0", 1, 1, 192, 96),
    Unit("Mixed_5b/Branch_1/Conv2d_0a_1x1", "mixed_5b.branch1.0", 1, 1, 192, 48),
    Unit("Mixed_5b/Branch_1/Conv2d_0b_5x5", "mixed_5b.branch1.1", 5, 5, 48, 64),
    Unit("Mixed_5b/Branch_2/Conv2d_0a_1x1", "mixed_5b.branch2.0", 1, 1, 192, 64),
    Unit("Mixed_5b/Branch_2/Conv2d_0b_3x3", "mixed_5b.branch2.1", 3, 3, 64, 96),
    Unit("Mixed_5b/Branch_2/Conv2d_0c_3x3", "mixed_5b.branch2.2", 3, 3, 96, 96),
    Unit("Mixed_5b/Branch_3/Conv2d_0b_1x1", "mixed_5b.branch3.1", 1, 1, 192, 64),
    *(unit for block in BLOCKS_35 for unit in block.units),
    Unit("Mixed_6a/Branch_0/Conv2d_1a_3x3", "mixed_6a.branch0", 3, 3, 320, 384),
    Unit("Mixed_6a/Branch_1/Conv2d_0a_1x1", "mixed_6a.branch1.0", 1, 1, 320, 256),
    Unit("Mixed_6a/Branch_1/Conv2d_0b_3x3", "mixed_6a.branch1.1", 3, 3, 256, 256),
    Unit("Mixed_6a/Branch_1/Conv2d_1a_3x3", "mixed_6a.branch1.2", 3, 3, 256, 384),
    *(unit for block in BLOCKS_17 for unit in block.units),
    Unit("Mixed_7a/Branch_0/Conv2d_0a_1x1", "mixed_7a.branch0.0", 1, 1, 1088, 256),
    Unit("Mixed_7a/Branch_0/Conv2d_1a_3x3", "mixed_7a.branch0.1", 3, 3, 256, 384),
    Unit("Mixed_7a/Branch_1/Conv2d_0a_1x1", "mixed_7a.branch1.0", 1, 1, 1088, 256),
    Unit("Mixed_7a/Branch_1/Conv2d_1a_3x3", "mixed_7a.branch1.1", 3, 3, 256, 288),
    Unit("Mixed_7a/Branch_2/Conv2d_0a_1x1", "mixed_7a.branch2.0", 1, 1, 1088, 256),
    Unit("Mixed_7a/Branch_2/Conv2d_0b_3x3", "mixed_7a.branch2.1", 3, 3, 256, 288),
    Unit("Mixed_7a/Branch_2/Conv2d_1a_3x3", "mixed_7a.branch2.2", 3, 3, 288, 320),
    *(unit for block in BLOCKS_8 for unit in block.units),
    Unit("Conv2d_7b_1x1", "conv2d_7b", 1, 1, 2080, 1536),
)


def tensor_shapes(arguments: Arguments) -> dict[str, Shape]:
    """Canonical tensor name → shape; there are no arguments."""
    shapes = unit_shapes(UNITS)
    for block in _BLOCKS:
        shapes[f"{block.up}/kernel"], shapes[f"{block.up}/bias"] = block.up_shape, (block.channels,)
    return shapes


def _slim_names(*, gamma: bool = False) -> dict[str, Target]:
    names = slim_names(UNITS, "InceptionResnetV2", gamma=gamma)
    for block in _BLOCKS:
        names[f"InceptionResnetV2/{block.up}/weights"] = Target(name=f"{block.up}/kernel")
        names[f"InceptionResnetV2/{block.up}/biases"] = Target(name=f"{block.up}/bias")
    return names


def _timm_names(arguments: Arguments) -> dict[str, Target]:
    names = torch_names(UNITS)
    for block in _BLOCKS:
        names[f"{block.torch}.conv2d.weight"] = Target(name=f"{block.up}/kernel", layout="conv_oihw")
        names[f"{block.torch}.conv2d.bias"] = Target(name=f"{block.up}/bias")
    return names


def _keras_names(first: int) -> dict[str, Target]:
    """Keras names the blocks' last convolutions and the network's; the others it counts, in the order of `UNITS`.

    `first` is the count of the first one; a count of 0 is left out of the name.
    """
    *counted, last = UNITS
    layers = {unit.scope: (f"conv2d_{n}", f"batch_normalization_{n}") for n, unit in enumerate(counted, start=first)}
    if first == 0:
        layers[UNITS[0].scope] = ("conv2d", "batch_normalization")
    layers[last.scope] = ("conv_7b", "conv_7b_bn")
    names: dict[str, Target] = {}
    for scope, (convolution, norm) in layers.items():
        names[f"{convolution}/kernel"] = Target(name=f"{scope}/kernel")
        names |= {f"{norm}/{name}": Target(name=f"{scope}/{name}") for name in STATISTICS}
    for block in _BLOCKS:
        names |= {f"{block.keras}/{part}": Target(name=f"{block.up}/{part}") for part in ("kernel", "bias")}
    return names


FACTS = ArchitectureFacts(
    name="inception_resnet_v2",
    paper="Szegedy et al. 2016, Inception-v4, Inception-ResNet and the Impact of Residual Connections on Learning, "
    "arXiv:1602.07261",
    defaults={},
    tensor_shapes=tensor_shapes,
    feature_dim=lambda arguments: 1536,
    endpoints=(
        Endpoint(name="Conv2d_1a_3x3", stride=2, channels=32),
        Endpoint(name="Conv2d_2a_3x3", stride=2, channels=32),
        Endpoint(name="Conv2d_2b_3x3", stride=2, channels=64),
        Endpoint(name="MaxPool_3a_3x3", stride=4, channels=64),
        Endpoint(name="Conv2d_3b_1x1", stride=4, channels=80),
        Endpoint(name="Conv2d_4a_3x3", stride=4, channels=192),
        Endpoint(name="MaxPool_5a_3x3", stride=8, channels=192),
        Endpoint(name="Mixed_5b", stride=8, channels=320),
        Endpoint(name="Mixed_6a", stride=16, channels=1088),
        Endpoint(name="PreAuxLogits", stride=16, channels=1088),
        Endpoint(name="Mixed_7a", stride=32, channels=2080),
        Endpoint(name="Conv2d_7b_1x1", stride=32, channels=1536),
    ),
    parameters=54_336_736,  # keras.applications.InceptionResNetV2(include_top=False)
    flops=26_300_000_000,  # timm: 13.2 billion multiply-adds
    batch_norm_epsilon=1e-3,
    input_spec=InputSpec(height=299, width=299, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    min_size=75,
    name_maps={
        "keras": NameMap(framework="keras", backbone=lambda arguments: _keras_names(1)),  # standalone Keras 2
        "keras-from-0": NameMap(framework="keras", backbone=lambda arguments: _keras_names(0)),  # tf.keras, Keras 3
        "slim": NameMap(
            framework="slim",
            backbone=lambda arguments: _slim_names(),
            head=slim_logits(_LOGITS),
            unused=SLIM_UNUSED,
            input_spec=slim_input_spec(299),
        ),
        "slim-gamma": NameMap(
            framework="slim",
            backbone=lambda arguments: _slim_names(gamma=True),
            head=slim_logits(_LOGITS),
            unused=SLIM_UNUSED,
            input_spec=slim_input_spec(299),
        ),
        "timm": NameMap(framework="torch", backbone=_timm_names, head=torch_dense("classif"), unused=TORCH_UNUSED),
    },
    published=PublishedCount(
        parameters=55_873_736, classes=1000, trainable_only=False, where="Keras Applications' table of models"
    ),
    sources=(
        keras("InceptionResNetV2", 80.3),
        hub("inception_resnet_v2", 80.4),
        timm("inception_resnet_v2.tf_in1k", 80.462, size=299, crop=0.8975),
        timm("inception_resnet_v2.tf_ens_adv_in1k", 79.978, size=299, crop=0.8975, recipe={"adversarial": True}),
        slim("inception_resnet_v2_2016_08_30", 80.4),
    ),
)
