"""The unit that the Inception family is made of: a convolution without bias, a BatchNorm, relu; and its foreign names.

Takes an architecture's units, in the order in which TF-Slim makes them. Gives shapes and name maps. Next: the
architecture's own file, whose `FACTS` hold them.

Our BatchNorm has no gamma, as TF-Slim's and Keras' Inception networks have none. A checkpoint that has one still
fits: gamma · (x * k − m) / s + b is (x * (k · gamma) − m · gamma) / s + b, so it is multiplied into the kernel and the
moving mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from zoo.architectures.facts import Shape, Target
from zoo.input_spec import InputSpec

STATISTICS = ("beta", "moving_mean", "moving_variance")

TORCH_UNUSED: Mapping[str, str] = {"*.num_batches_tracked": "a training-time counter of PyTorch's BatchNorm"}
SLIM_UNUSED: Mapping[str, str] = {
    "*/AuxLogits/*": "the auxiliary classifier only serves training from scratch",
    "global_step": "a counter of the training that made the checkpoint",
}


@dataclass(frozen=True)
class Unit:
    """Convolution, BatchNorm, relu. `scope` is TF-Slim's, `torch` the module's name in torchvision or timm."""

    scope: str
    torch: str
    height: int
    width: int
    inputs: int
    outputs: int


def unit_shapes(units: Iterable[Unit]) -> dict[str, Shape]:
    """Canonical tensor name → shape."""
    shapes: dict[str, Shape] = {}
    for unit in units:
        shapes[f"{unit.scope}/kernel"] = (unit.height, unit.width, unit.inputs, unit.outputs)
        shapes |= {f"{unit.scope}/{name}": (unit.outputs,) for name in STATISTICS}
    return shapes


def slim_names(units: Iterable[Unit], network: str, *, gamma: bool = False) -> dict[str, Target]:
    """TF-Slim's names below `network`, e.g. `InceptionV3`. `gamma`: the checkpoint's BatchNorms have one."""
    names: dict[str, Target] = {}
    for unit in units:
        at, norm = f"{network}/{unit.scope}", f"{network}/{unit.scope}/BatchNorm"
        times = f"{norm}/gamma" if gamma else None
        names[f"{at}/weights"] = Target(name=f"{unit.scope}/kernel", times=times)
        names[f"{norm}/beta"] = Target(name=f"{unit.scope}/beta")
        names[f"{norm}/moving_mean"] = Target(name=f"{unit.scope}/moving_mean", times=times)
        names[f"{norm}/moving_variance"] = Target(name=f"{unit.scope}/moving_variance")
    return names


def torch_names(units: Iterable[Unit], *, conv: str = "conv", norm: str = "bn") -> dict[str, Target]:
    """PyTorch's names: `<module>.conv.weight`, `<module>.bn.weight` (gamma) and so on."""
    names: dict[str, Target] = {}
    for unit in units:
        gamma = f"{unit.torch}.{norm}.weight"
        names[f"{unit.torch}.{conv}.weight"] = Target(name=f"{unit.scope}/kernel", layout="conv_oihw", times=gamma)
        names[f"{unit.torch}.{norm}.bias"] = Target(name=f"{unit.scope}/beta")
        names[f"{unit.torch}.{norm}.running_mean"] = Target(name=f"{unit.scope}/moving_mean", times=gamma)
        names[f"{unit.torch}.{norm}.running_var"] = Target(name=f"{unit.scope}/moving_variance")
    return names


def torch_dense(module: str) -> dict[str, Target]:
    """The head that is PyTorch's dense layer `module`."""
    return {
        f"{module}.weight": Target(name="logits/kernel", layout="linear_oi"),
        f"{module}.bias": Target(name="logits/bias"),
    }


def slim_input_spec(size: int) -> InputSpec:
    """What TF-Slim's inception_preprocessing.py gives its networks when they are evaluated: the centre's 0.875 of each
    side, resized to a square, between −1 and 1. (Its TF 1 resize sampled half a pixel further up and left.)"""
    half = (0.5, 0.5, 0.5)
    return InputSpec(height=size, width=size, mean=half, std=half, crop_fraction=0.875, antialias=False)


def slim_logits(scope: str) -> dict[str, Target]:
    """The head that is TF-Slim's `scope`, e.g. `InceptionV3/Logits/Conv2d_1c_1x1`: a dense layer, or a 1 × 1
    convolution over the pooled map, which is the same."""
    return {
        f"{scope}/weights": Target(name="logits/kernel", layout="conv_as_dense"),
        f"{scope}/biases": Target(name="logits/bias"),
    }
