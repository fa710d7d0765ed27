"""What the catalogue knows of an architecture, as data: no network is built here and no framework imported.

Takes the arguments of a manifest's `architecture`. Gives names, shapes, figures and name maps. Next: `zoo.importer`,
which needs them to read foreign checkpoints, and `finetune.models`, whose networks are tested against them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import JsonValue

from zoo.errors import InvalidArgument
from zoo.input_spec import InputSpec

Shape = tuple[int, ...]
Arguments = Mapping[str, JsonValue]

# How a foreign tensor's axes become ours, which are TensorFlow's: (height, width, in, out) for a convolution,
# (height, width, channel, multiplier) for a depthwise one, (in, out) for a dense layer.
Layout = Literal["same", "conv_oihw", "depthwise_oihw", "linear_oi"]
AXES: dict[Layout, tuple[int, ...] | None] = {
    "same": None,
    "conv_oihw": (2, 3, 1, 0),
    "depthwise_oihw": (2, 3, 0, 1),
    "linear_oi": (1, 0),
}


class InvalidArguments(InvalidArgument):
    """Arguments that an architecture does not take."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where one foreign tensor goes: a canonical name of ours, and how its axes turn.

    `times` names another foreign tensor, one value a channel, that our network doesn't have: it is multiplied in along
    our last axis (BatchNorm's gamma folded into the kernel and the moving mean).
    """

    name: str
    layout: Layout = "same"
    times: str | None = None


@dataclass(frozen=True, kw_only=True)
class NameMap:
    """One foreign naming of one architecture, written out name by name.

    Attributes:
        framework: whose files have these names; `zoo.readers` says which frameworks a kind of file may hold.
        backbone: arguments → foreign name → Target in the backbone component.
        head: foreign name → Target in the head component, for heads of one dense layer. Keras layouts leave it empty:
            their heads are chains of dense layers that the file's own topology describes.
        unused: pattern (of `fnmatch`) of foreign names that nothing wants → why. Anything else left over is an error.
        arguments: what these files imply for the architecture, e.g. how pooling counts its padding.
    """

    framework: Literal["keras", "torch"]
    backbone: Callable[[Arguments], dict[str, Target]]
    head: Mapping[str, Target] = field(default_factory=dict)
    unused: Mapping[str, str] = field(default_factory=dict)
    arguments: Arguments = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An activation that users may cut the network at."""

    name: str
    stride: int  # pixels of the input a step
    channels: int


@dataclass(frozen=True, kw_only=True)
class ArchitectureFacts:
    """An entry of `ARCHITECTURES`.

    Attributes:
        paper: where the network comes from.
        defaults: every argument that the builder takes, with its default.
        tensor_shapes: arguments → canonical tensor name → shape, of the backbone.
        feature_dim: arguments → D of `feature_vector [B, D]`.
        parameters: values in the backbone with the default arguments, BatchNorm's moving statistics included.
        flops: of one forward pass at the usual input size, a multiply-add counted as two.
        input_spec: the usual one, for imports that don't bring their own.
        min_size: pixels of the smallest side that the network can take.
        name_maps: foreign naming → map.
    """

    name: str
    paper: str
    defaults: Arguments
    tensor_shapes: Callable[[Arguments], dict[str, Shape]]
    feature_dim: Callable[[Arguments], int]
    endpoints: tuple[Endpoint, ...]
    parameters: int
    flops: int
    batch_norm_epsilon: float
    input_spec: InputSpec
    min_size: int
    name_maps: Mapping[str, NameMap]

    def resolved(self, arguments: Arguments) -> dict[str, JsonValue]:
        """`arguments` over the defaults. Raises InvalidArguments on one that is unknown or of another type."""
        unknown = sorted(set(arguments) - set(self.defaults))
        if unknown:
            raise InvalidArguments(
                f"architecture {self.name!r} takes no argument {', '.join(map(repr, unknown))}; "
                f"it takes {', '.join(sorted(self.defaults)) or 'none'}",
                architecture=self.name,
            )
        for key, value in arguments.items():
            default = self.defaults[key]
            numeric = isinstance(default, float) and isinstance(value, int | float) and not isinstance(value, bool)
            if not numeric and type(value) is not type(default):
                raise InvalidArguments(
                    f"architecture {self.name!r}: argument {key!r} is a {type(default).__name__} "
                    f"such as {default!r}, got {value!r}",
                    architecture=self.name,
                )
        return {**self.defaults, **arguments}
