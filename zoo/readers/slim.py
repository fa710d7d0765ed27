"""Reads a TensorFlow checkpoint of variables by name, as TF-Slim, TF 1 and `tf.compat.v1.train.Saver` write them.

Takes a V1 file, a V2 prefix, one of its files, a folder or a `checkpoint` state file. Gives a ForeignCheckpoint.
Next: `zoo.importer`.

Only tensors are read, never a graph, so nothing in it can run. What training kept beside the variables (the moving
averages of weights, optimizer slots, counters) is told apart by name and reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np

from zoo.readers.checkpoint import DamagedCheckpoint, ForeignCheckpoint, NotACheckpoint, ReadOptions
from zoo.readers.slim_bundle import Bundle
from zoo.readers.slim_files import SlimFiles, find_files
from zoo.readers.slim_index import BundleIndex, read_index
from zoo.readers.slim_tensorflow import TensorFlowReader

EMA = "/ExponentialMovingAverage"  # tf.train.ExponentialMovingAverage's default name
_WIDENED = ("float16", "bfloat16", "float64")
_OBJECT_GRAPH = ("/.ATTRIBUTES/VARIABLE_VALUE", "_CHECKPOINTABLE_OBJECT_GRAPH")

# What TF 1's optimizers call their slots, each below the variable that it belongs to; `_1`, `_2` count further ones.
_SLOTS = (
    "AMSGrad|Adadelta|Adagrad|AdagradAccum|AdagradDA|Adam|AdamAsync|AdaMax|Ftrl|GradientDescentAccum|LARSOptimizer"
    "|LazyAdam|Momentum|ProximalAdagrad|RMSProp|SM3"
)
# Pattern of a whole name → why nothing wants it. The first that fits counts.
_ASIDE: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(rf".+/(?:{_SLOTS})(?:_\d+)?"), "a slot of the optimizer that trained the checkpoint"),
    (re.compile(r"(?:.+/)?beta[12]_power(?:_\d+)?"), "a counter of the optimizer that trained the checkpoint"),
    (re.compile(r"(?:.+/)?OptimizeLoss/learning_rate|(?:.+/)?learning_rate"), "the learning rate of its training"),
    (re.compile(r"(?:.+/)?global_step"), "a counter of the training that made the checkpoint"),
    (re.compile(r".+/(?:biased|local_step)"), "a counter of a moving average, for its first steps only"),
)
_RAW = "the weights as the last step left them; their moving average is taken (--raw-weights takes these)"
_AVERAGE = "the moving average of weights, of which the raw values are taken (--raw-weights)"


class Variables(Protocol):
    """What a checkpoint holds: shapes and NumPy's names of types ("other" for text and the like) by variable."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    @property
    def types(self) -> Mapping[str, str]: ...

    def value(self, name: str) -> np.ndarray:
        """Of a type that isn't "other". Raises DamagedCheckpoint."""
        ...


def read(source: Path, options: ReadOptions) -> ForeignCheckpoint:
    """Reads every variable that isn't left aside.

    Moving averages stand in for the weights that they are of, under the weights' names, unless `options.raw_weights`.

    Raises:
        MissingCheckpointFile, SeveralCheckpoints: see `zoo.readers.slim_files`.
        NotACheckpoint: no checkpoint, or one that TF 2 wrote for objects, whose names are paths of attributes.
        DamagedCheckpoint: a shard that is too short, of another checkpoint, or whose bytes have changed.
    """
    files = find_files(source)
    with files.plainly_named() as plain:
        variables = _variables(source, files, plain)
        _refuse_objects(source, variables.shapes)
        stored, aside = _plan(variables.shapes, options)
        for name in [name for name, place in stored.items() if variables.types[place] == "other"]:
            aside[stored.pop(name)] = "text, or of another type that is no plain number"
        # In the order of the stored names, which is the order of the shards' bytes.
        order = sorted(stored.items(), key=lambda pair: pair[1])
        widened = {name: variables.types[place] for name, place in order if variables.types[place] in _WIDENED}
        values = {name: variables.value(place) for name, place in order}
    averages = sum(name != place for name, place in stored.items())
    shadows = sum(why == _AVERAGE for why in aside.values())
    return ForeignCheckpoint(
        files=files.files,
        tensors={name: value.astype(np.float32) if name in widened else value for name, value in values.items()},
        frameworks=("slim",),
        widened=widened,
        aside=aside,
        recipe=({"ema": True} if averages else {}) | ({"ema": False} if shadows else {}),
        notes=tuple(_notes(averages, shadows, len(stored))),
    )


def _variables(source: Path, files: SlimFiles, plain: SlimFiles) -> Variables:
    index = None
    if files.version == 2:
        index = read_index(files.files[0])
        if index is not None:
            _check_shards(files, index)
    if index is not None and index.plain:
        return Bundle(source, index, files.files[1:])
    return TensorFlowReader(source, plain)


def _notes(averages: int, shadows: int, variables: int) -> Iterable[str]:
    if averages:
        yield (
            f"of {averages} of {variables} variables the moving average is taken, as it was kept for evaluation; "
            "for the last step's own values: --raw-weights"
        )
    if shadows:
        yield f"{shadows} variables have a moving average, which is not taken: --raw-weights"


def _plan(names: Iterable[str], options: ReadOptions) -> tuple[dict[str, str], dict[str, str]]:
    """(name of ours → stored name, for all that is read; stored name → why it isn't)."""
    stored: dict[str, str] = {}
    aside: dict[str, str] = {}
    averages: list[str] = []
    for name in sorted(names):
        reason = next((why for pattern, why in _ASIDE if pattern.fullmatch(name)), None)
        if reason is not None:
            aside[name] = reason
        elif name.endswith(EMA):
            averages.append(name)
        else:
            stored[name] = name
    for average in averages:
        name = average.removesuffix(EMA)
        if options.raw_weights:
            aside[average] = _AVERAGE
            continue
        if name in stored:
            aside[name] = _RAW
        stored[name] = average
    return stored, aside


def _check_shards(files: SlimFiles, index: BundleIndex) -> None:
    """Raises DamagedCheckpoint when the index tells of other shards than there are, or of longer ones."""
    file, *shards = files.files
    wanted = index.shard_bytes()
    if len(wanted) != len(shards):
        raise DamagedCheckpoint(
            f"{file.name} is of a checkpoint of {len(wanted)} shards, here are {len(shards)}: "
            f"{', '.join(shard.name for shard in shards[:8])}"
        )
    sizes = [(shard, shard.stat().st_size, wanted[number]) for number, shard in enumerate(shards)]
    short = [f"{shard.name} has {size} of {least} bytes" for shard, size, least in sizes if size < least]
    if short:
        raise DamagedCheckpoint(
            f"{file.parent}: {len(short)} of {len(shards)} shards are cut short: {', '.join(short)}"
        )


def _refuse_objects(source: Path, names: Iterable[str]) -> None:
    objects = sorted((name for name in names if name.endswith(_OBJECT_GRAPH)), key=lambda name: name[0] == "_")
    if objects:
        raise NotACheckpoint(
            f"{source} is a TF 2 checkpoint of objects: {len(objects)} of its names are paths of attributes, such as "
            f"{objects[0]}; a checkpoint of TF-Slim has variables by name",
            hint="for a Keras model save its weights (model.save_weights('x.weights.h5')) and use `zoo import keras`; "
            "for a SavedModel `zoo import hub`",
        )
