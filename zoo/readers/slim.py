"""Reads a TensorFlow checkpoint of variables by name, as TF-Slim, TF 1 and `tf.compat.v1.train.Saver` write them.

Takes a V1 file, a V2 prefix, one of its files, a folder or a `checkpoint` state file. Gives a ForeignCheckpoint.
Next: `zoo.importer`.

Only tensors are read, never a graph, so nothing in it can run. What training kept beside the variables (the moving
averages of weights, optimizer slots, counters) is told apart by name and reported. TensorFlow is imported in the
functions that need it: most imports don't.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo.readers.checkpoint import DamagedCheckpoint, ForeignCheckpoint, NotACheckpoint, ReadOptions, widen
from zoo.readers.slim_files import SlimFiles, find_files
from zoo.readers.slim_index import shard_bytes
from zoo.tensorflow_start import start_tensorflow

EMA = "/ExponentialMovingAverage"  # tf.train.ExponentialMovingAverage's default name
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


def read(source: Path, options: ReadOptions) -> ForeignCheckpoint:
    """Reads every variable that isn't left aside.

    Moving averages stand in for the weights that they are of, under the weights' names, unless `options.raw_weights`.

    Raises:
        MissingCheckpointFile, SeveralCheckpoints: see `zoo.readers.slim_files`.
        NotACheckpoint: no checkpoint, or one that TF 2 wrote for objects, whose names are paths of attributes.
        DamagedCheckpoint: a shard that is too short, of another checkpoint, or whose bytes have changed.
    """
    files = find_files(source)
    if files.version == 2:
        _check_shards(files)
    with files.plainly_named() as plain:
        reader = _open(plain, source)
        shapes = {str(name): tuple(shape) for name, shape in reader.get_variable_to_shape_map().items()}
        _refuse_objects(source, shapes)
        types = {str(name): dtype.base_dtype for name, dtype in reader.get_variable_to_dtype_map().items()}
        _check_sizes(files, shapes, types)
        stored, aside = _plan(shapes, options)
        for name in [name for name, place in stored.items() if types[place].as_numpy_dtype is object]:
            aside[stored.pop(name)] = "text, no numbers"
        # In the order of the stored names, which is the order of the shards' bytes.
        order = sorted(stored.items(), key=lambda pair: pair[1])
        values = {name: _tensor(plain, source, reader, place, types[place]) for name, place in order}
    tensors, widened = widen(values)
    averages = sum(name != place for name, place in stored.items())
    shadows = sum(why == _AVERAGE for why in aside.values())
    return ForeignCheckpoint(
        files=files.files,
        tensors=tensors,
        frameworks=("slim",),
        widened=widened,
        aside=aside,
        recipe=({"ema": True} if averages else {}) | ({"ema": False} if shadows else {}),
        notes=tuple(_notes(averages, shadows, len(stored))),
    )


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


def _check_shards(files: SlimFiles) -> None:
    """Raises DamagedCheckpoint when the index tells of other shards than there are, or of longer ones."""
    index, *shards = files.files
    wanted = shard_bytes(index)
    if wanted is None:
        return
    if len(wanted) != len(shards):
        raise DamagedCheckpoint(
            f"{index.name} is of a checkpoint of {len(wanted)} shards, here are {len(shards)}: "
            f"{', '.join(shard.name for shard in shards[:8])}"
        )
    sizes = [(shard, shard.stat().st_size, wanted[number]) for number, shard in enumerate(shards)]
    short = [f"{shard.name} has {size} of {least} bytes" for shard, size, least in sizes if size < least]
    if short:
        raise DamagedCheckpoint(
            f"{index.parent}: {len(short)} of {len(shards)} shards are cut short: {', '.join(short)}"
        )


def _check_sizes(files: SlimFiles, shapes: Mapping[str, tuple[int, ...]], types: Mapping[str, Any]) -> None:
    """A table can claim any shape: no more memory is asked for than the files have bytes."""
    claimed = sum(
        math.prod(shape) * types[name].size
        for name, shape in shapes.items()
        if types[name].as_numpy_dtype is not object
    )
    # V1 files hold integers as varints, of which the smallest takes one byte of at most eight.
    held = sum(path.stat().st_size for path in files.files) * (8 if files.version == 1 else 1)
    if claimed > held:
        raise DamagedCheckpoint(f"{files.prefix} claims tensors of {claimed} bytes, its files have {held}")


def _refuse_objects(source: Path, names: Iterable[str]) -> None:
    objects = [name for name in names if name.endswith(_OBJECT_GRAPH)]
    if objects:
        raise NotACheckpoint(
            f"{source} is a TF 2 checkpoint of objects: {len(objects)} of its names are paths of attributes, such as "
            f"{objects[0]}; a checkpoint of TF-Slim has variables by name",
            hint="for a Keras model save its weights (model.save_weights('x.weights.h5')) and use `zoo import keras`; "
            "for a SavedModel `zoo import hub`",
        )


def _open(files: SlimFiles, source: Path) -> Any:
    start_tensorflow()
    import tensorflow as tf

    return _translated(source, lambda: tf.train.load_checkpoint(files.pattern))


def _tensor(files: SlimFiles, source: Path, reader: Any, name: str, dtype: Any) -> np.ndarray:
    import tensorflow as tf

    def value() -> np.ndarray:
        try:
            return np.asarray(reader.get_tensor(name))
        except tf.errors.UnimplementedError:  # a variable in slices, in a V1 checkpoint: the operation can, this can't
            restored = tf.raw_ops.RestoreV2(
                prefix=files.pattern, tensor_names=[name], shape_and_slices=[""], dtypes=[dtype]
            )
            return np.asarray(restored[0].numpy())

    return _translated(source, value, name)


def _translated(source: Path, call: Callable[[], Any], name: str | None = None) -> Any:
    """Whatever TensorFlow makes of a damaged file, as one error. Its bindings raise some statuses as Python's own."""
    import tensorflow as tf

    try:
        return call()
    except (tf.errors.OpError, IndexError, ValueError, RuntimeError, SystemError) as error:
        what = f" at the variable {name}" if name else ""
        said = str(getattr(error, "message", error))
        raise DamagedCheckpoint(f"{source} cannot be read{what}: {said[:500]}") from None
