"""The values of a SavedModel's variables.

Takes its folder and ModuleGraph. Gives node → array. Next: `zoo.readers.hub`.

They lie in a TensorFlow checkpoint of objects, `variables/variables`, whose own object graph has the same edges as the
SavedModel's and says under which key each value lies.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zoo.readers.checkpoint import DamagedCheckpoint
from zoo.readers.hub_graph import ModuleGraph, ModuleVariable
from zoo.readers.slim_files import find_files
from zoo.readers.slim_index import shard_bytes

PREFIX = "variables/variables"
_OBJECT_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_VALUE = "VARIABLE_VALUE"


def value_files(folder: Path) -> tuple[Path, ...]:
    """Index and shards, all there and long enough. Raises MissingCheckpointFile, DamagedCheckpoint naming them."""
    index, *shards = find_files(folder / PREFIX).files
    wanted = shard_bytes(index) or {}
    short = [
        f"{shard.name} has {shard.stat().st_size} of {wanted[number]} bytes"
        for number, shard in enumerate(shards)
        if shard.stat().st_size < wanted.get(number, 0)
    ]
    if short:
        raise DamagedCheckpoint(f"{folder}: {len(short)} shards of the variables are cut short: {', '.join(short)}")
    return index, *shards


def read_values(folder: Path, graph: ModuleGraph, variables: Sequence[ModuleVariable]) -> dict[int, np.ndarray]:
    """Raises DamagedCheckpoint: a value isn't there, has another shape or type than its variable, or can't be read."""
    import tensorflow as tf

    try:
        reader = tf.train.load_checkpoint(str(folder / PREFIX))
        keys = _keys(graph, reader.get_tensor(_OBJECT_GRAPH))
        shapes = reader.get_variable_to_shape_map()
        _check(folder, variables, keys, shapes)
        return {each.node: np.asarray(reader.get_tensor(keys[each.node])) for each in variables}
    except (tf.errors.OpError, IndexError, ValueError, RuntimeError, SystemError) as error:
        said = str(getattr(error, "message", error))
        raise DamagedCheckpoint(f"{folder / PREFIX} cannot be read: {said[:500]}") from None


def _check(
    folder: Path, variables: Sequence[ModuleVariable], keys: Mapping[int, str], shapes: Mapping[str, Sequence[int]]
) -> None:
    """Before any memory is asked for: no more than the files have bytes."""
    faults = []
    for each in variables:
        key = keys.get(each.node)
        if key is None or key not in shapes:
            faults.append(f"{each.path} ({each.name}) has no value")
        elif tuple(shapes[key]) != each.shape:
            faults.append(f"{each.path} ({each.name}) is {each.shape}, its value {tuple(shapes[key])}")
    if faults:
        some = ", ".join(faults[:8]) + (f" and {len(faults) - 8} more" if len(faults) > 8 else "")
        raise DamagedCheckpoint(f"{folder}: {len(faults)} variables and the file of their values differ: {some}")
    claimed = sum(math.prod(each.shape) * _width(each) for each in variables)
    held = sum(path.stat().st_size for path in value_files(folder))
    if claimed > held:
        raise DamagedCheckpoint(f"{folder} claims variables of {claimed} bytes, its files have {held}")


def _width(variable: ModuleVariable) -> int:
    import ml_dtypes  # noqa: F401 - makes NumPy know bfloat16

    return 1 if variable.dtype == "text" else np.dtype(variable.dtype).itemsize


def _keys(graph: ModuleGraph, serialised: Any) -> dict[int, str]:
    """The SavedModel's node → the checkpoint's key of its value, by walking both graphs along edges of one name."""
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    stored = trackable_object_graph_pb2.TrackableObjectGraph()
    try:
        stored.ParseFromString(serialised)
    except DecodeError as error:
        raise ValueError(f"its object graph is damaged: {error}") from None
    keys: dict[int, str] = {}
    twins = {0: 0}
    queue = deque([0])
    while queue:
        node = queue.popleft()
        twin = stored.nodes[twins[node]]
        for each in twin.attributes:
            if each.name == _VALUE:
                keys[node] = each.checkpoint_key
        theirs = {each.local_name: each.node_id for each in twin.children}
        for child in graph.nodes[node].children:
            if child.node_id not in twins and child.local_name in theirs:
                twins[child.node_id] = theirs[child.local_name]
                queue.append(child.node_id)
    return keys
