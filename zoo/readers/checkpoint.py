"""What every reader of a foreign format gives: tensors by their foreign names, and facts about the file.

Takes a path. Gives a ForeignCheckpoint. Next: `zoo.importer`, which maps the names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from pydantic import JsonValue

from zoo.architectures.facts import Framework
from zoo.errors import DataLoss, InvalidArgument, NotFound


class NotACheckpoint(InvalidArgument):
    """A file of another format than asked for, or with contents that this reader does not take."""


class DamagedCheckpoint(DataLoss):
    """A checkpoint of which a part is cut off, or whose parts contradict each other."""


class MissingCheckpointFile(NotFound):
    """A checkpoint, or one of the files that it consists of, is not there."""


class UnsafeCheckpoint(InvalidArgument):
    """A file that asks for more than tensors: code to be run, memory beyond its own size, files beside its own."""


@dataclass(frozen=True, kw_only=True)
class DenseLayer:
    """A dense layer of a classifier's head, as the checkpoint's own topology describes it."""

    name: str  # its tensors are `<name>/kernel` and `<name>/bias`
    activation: str
    dropout: float = 0.0  # the share dropped after it


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """What the user may say about how a checkpoint is read.

    Attributes:
        raw_weights: takes the weights as the last step left them, where the file also has their moving averages.
    """

    raw_weights: bool = False


@dataclass(frozen=True, kw_only=True)
class WholeNetwork:
    """A network with its graph, as a format may hold it, to be kept as it came.

    Attributes:
        architecture, arguments: what the manifest shall say of it.
        tensors: our name → array, types as stored. stored: our name → the checkpoint's.
        assets: files that the network is built from, beside its tensors.
        height, width: of its input; None where it takes any.
        notes: for the user.
    """

    architecture: str
    arguments: Mapping[str, JsonValue]
    tensors: Mapping[str, np.ndarray]
    stored: Mapping[str, str]
    assets: Mapping[str, bytes]
    height: int | None
    width: int | None
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ForeignCheckpoint:
    """A checkpoint read but not understood yet.

    Attributes:
        files: everything that was read, in the order in which the source digest hashes it.
        tensors: foreign name → array; floats are float32, whatever they were on disk.
        frameworks: whose naming the tensors may have.
        dequantised: names stored as integers with a scale. widened: name → the float type on disk.
        dense: the layers after the feature vector, first to last; empty where the format doesn't tell.
        batch_norm_epsilons: those that the topology gives; empty where the format doesn't tell.
        aside: stored names that aren't in `tensors`, since nothing of ours could want them → why.
        recipe: what the file tells of how it was trained, e.g. {"ema": True}.
        notes: what the reader left aside, for the user.
        whole: gives the network itself, for formats that have its graph; raises this module's errors where that graph
            can't be kept. None for the others.
    """

    files: tuple[Path, ...]
    tensors: Mapping[str, np.ndarray]
    frameworks: tuple[Framework, ...]
    dequantised: frozenset[str] = frozenset()
    widened: Mapping[str, str] = field(default_factory=dict)
    dense: tuple[DenseLayer, ...] = ()
    batch_norm_epsilons: frozenset[float] = frozenset()
    aside: Mapping[str, str] = field(default_factory=dict)
    recipe: Mapping[str, JsonValue] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    whole: Callable[[], WholeNetwork] | None = None


def existing_file(path: Path, *, what: str, suffixes: tuple[str, ...]) -> Path:
    """`path` when it is a file. Raises MissingCheckpointFile, naming what a folder holds instead."""
    if path.is_file():
        return path
    if path.is_dir():
        inside = sorted(entry.name for entry in path.iterdir() if entry.name.endswith(suffixes))
        hint = f"name the file: {path / inside[0]}" if inside else None
        raise MissingCheckpointFile(f"{path} is a folder, {what} is a file", hint=hint)
    raise MissingCheckpointFile(f"{path}: looked for {what}; there is none", path=str(path))


def widen(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors with every float type made float32, and name → type of those that were another."""
    result: dict[str, np.ndarray] = {}
    widened: dict[str, str] = {}
    for name, value in tensors.items():
        is_float = value.dtype.kind == "f" or value.dtype.name in ("bfloat16", "float8_e4m3fn", "float8_e5m2")
        if is_float and value.dtype != np.float32:
            widened[name] = value.dtype.name
            result[name] = value.astype(np.float32)
        else:
            result[name] = value
    return result, widened
