"""Reads SavedModels as TensorFlow Hub publishes them, by path or by handle.

Takes a folder with `saved_model.pb` and `variables/`, or a handle such as `https://tfhub.dev/…` or
`https://www.kaggle.com/models/…`. Gives a ForeignCheckpoint. Next: `zoo.importer`.

A SavedModel is a graph, and graphs can do more than arithmetic. Here it is read as data: variables have names, which
may be those of an architecture that is known (then only their values are taken), and the whole may be kept as it is
(`whole`), which needs a function from images to features that consists of nothing but allowed operations.
TensorFlow and tensorflow_hub are imported in the functions that need them.
"""

from __future__ import annotations

import dataclasses
import socket
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from zoo.errors import Unavailable
from zoo.readers import slim
from zoo.readers.checkpoint import (
    DenseLayer,
    ForeignCheckpoint,
    MissingCheckpointFile,
    NotACheckpoint,
    ReadOptions,
    WholeNetwork,
    widen,
)
from zoo.readers.hub_call import ModuleCall, feature_dim, feature_outputs, find_call, trainable_variables
from zoo.readers.hub_graph import GRAPH_FILE, LegacyModule, ModuleGraph, ModuleVariable, check_safe, parse, reachable
from zoo.readers.hub_values import PREFIX, read_values, value_files
from zoo.readers.keras_names import counted_from_zero, renumbering_note
from zoo.tensorflow_start import start_tensorflow

ARCHITECTURE = "hub_module"
ANSWER_SECONDS = 60.0  # how long whoever a handle names may be silent
PREDICTIONS = "predictions"  # what Keras Applications name their classifier, a dense layer with softmax
_MAX_GRAPH_BYTES = (2 << 30) - 1  # protobuf's own limit
_NOT_READ = "the function that makes features doesn't read it"


class ModuleUnavailable(Unavailable):
    """A handle that could not be fetched."""


def read(source: str, options: ReadOptions) -> ForeignCheckpoint:
    """Reads the variables that the module's call on images uses (all, where it has no such call), by their own names.

    Raises:
        ModuleUnavailable: a handle, and nobody answers.
        MissingCheckpointFile, NotACheckpoint: no SavedModel there.
        DamagedCheckpoint: graph and variables are cut off or contradict each other.
    """
    start_tensorflow()
    folder = _folder(source)
    graph_file = folder / GRAPH_FILE
    if graph_file.stat().st_size > _MAX_GRAPH_BYTES:
        raise NotACheckpoint(f"{graph_file} has {graph_file.stat().st_size} bytes, above protobuf's limit of 2 GiB")
    data = graph_file.read_bytes()
    try:
        graph = parse(data, str(graph_file))
    except LegacyModule as legacy:
        return _read_legacy(folder, options, legacy)
    values = value_files(folder) if graph.variables else ()
    try:
        call: ModuleCall | None = find_call(graph, str(folder))
    except NotACheckpoint:
        call = None
    used = graph.variables if call is None else graph.bound(call.functions)
    numbers = tuple(each for each in used if each.dtype != "text")
    arrays = read_values(folder, graph, numbers) if numbers else {}
    names, notes = _names(numbers)
    tensors, widened = widen({names[each.node]: arrays[each.node] for each in numbers})
    aside = {each.path: "text, no numbers" for each in used if each.dtype == "text"}
    aside |= {each.path: _NOT_READ for each in graph.variables if each not in used}
    head = f"{PREDICTIONS}/kernel" in tensors
    return ForeignCheckpoint(
        files=(graph_file, *values),
        tensors=tensors,
        frameworks=("keras", "slim"),
        widened=widened,
        dense=(DenseLayer(name=PREDICTIONS, activation="softmax"),) if head else (),
        batch_norm_epsilons=frozenset(() if call is None else _epsilons(graph, call)),
        aside=aside,
        notes=notes,
        whole=lambda: _whole(folder, graph, data, arrays, names),
    )


def _folder(source: str) -> Path:
    if "://" in source:
        return _with_graph(_resolved(source))
    path = Path(source)
    return _with_graph(path.parent if path.name == GRAPH_FILE else path)


def _resolved(handle: str) -> Path:
    """What tensorflow_hub's resolver makes of the handle: its cache (TFHUB_CACHE_DIR), else a download into it."""
    if not handle.startswith("https://"):
        raise NotACheckpoint(f"{handle}: a handle begins with https://, e.g. https://tfhub.dev/… ; else name a folder")
    import tensorflow as tf

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it imports pkg_resources, which its owner would like to see go
        import tensorflow_hub
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(ANSWER_SECONDS)  # it sets none itself, and would wait for ever
    try:
        return Path(tensorflow_hub.resolve(handle))
    except (OSError, ValueError, tf.errors.OpError) as error:  # URLError is an OSError
        raise ModuleUnavailable(
            f"{handle} could not be fetched: {str(error)[:300] or type(error).__name__}",
            hint="download the module by hand (Download, TensorFlow 2 format), unpack it and give the folder; "
            "or put it in tensorflow_hub's cache, which TFHUB_CACHE_DIR names",
            handle=handle[:500],
        ) from None
    finally:
        socket.setdefaulttimeout(before)


def _with_graph(folder: Path) -> Path:
    if (folder / GRAPH_FILE).is_file():
        return folder
    if not folder.is_dir():
        raise MissingCheckpointFile(f"there is no SavedModel at {folder}: it is a folder with {GRAPH_FILE}")
    others = [name for name in ("saved_model.pbtxt", "saved_model.cpb") if (folder / name).exists()]
    if others:
        raise NotACheckpoint(f"{folder} holds {others[0]}; only {GRAPH_FILE} is read: save it again in that form")
    below = sorted(path.parent.name for path in folder.glob(f"*/{GRAPH_FILE}"))
    hint = f"name the folder {folder / below[-1]}" if below else None
    inside = ", ".join(sorted(path.name for path in folder.iterdir())[:8])
    raise MissingCheckpointFile(f"{folder} has no {GRAPH_FILE}; it holds {inside or 'nothing'}", hint=hint)


def _read_legacy(folder: Path, options: ReadOptions, legacy: LegacyModule) -> ForeignCheckpoint:
    """A module of TensorFlow 1: its variables have names of their own, as a checkpoint of TF-Slim has."""
    if not (folder / "variables").is_dir():
        raise legacy
    plain = slim.read(folder / PREFIX, options)

    def whole() -> WholeNetwork:
        raise LegacyModule(
            f"{legacy.message}; it can't be kept whole nor fine-tuned. Only modules of TensorFlow 2 can, or ones whose "
            "variables have the names of an architecture known here",
            hint="take the module's newer version (TF2 SavedModel), or see zoo architectures",
        )

    return dataclasses.replace(
        plain,
        files=(folder / GRAPH_FILE, *plain.files),
        notes=(*plain.notes, "a module of TensorFlow 1: its variables were taken, its graph wasn't"),
        whole=whole,
    )


def _names(variables: Iterable[ModuleVariable]) -> tuple[dict[int, str], tuple[str, ...]]:
    """Node → the variable's name as name maps know it, and what to tell the user. A name that several have says
    nothing: those go by their paths."""
    chosen = tuple(variables)
    often = Counter(each.name for each in chosen)
    own = {each.node: each.name if often[each.name] == 1 else each.path for each in chosen}
    own = {each.node: _depthwise(own[each.node], each.shape) for each in chosen}
    layers = {name.rpartition("/")[0] for name in own.values()}
    if len(set(own.values())) < len(own):
        return {each.node: each.path for each in chosen}, ("variables of one name: paths stand for all names",)
    renamed = counted_from_zero((_base(layer), layer) for layer in sorted(layers))
    if not renamed:
        return own, ()
    again = {node: "/".join((renamed.get(layer, layer), weight)) for node, (layer, _, weight) in _split(own)}
    return again, (renumbering_note(renamed),)


def _split(names: Mapping[int, str]) -> Iterator[tuple[int, tuple[str, str, str]]]:
    for node, name in names.items():
        yield node, name.rpartition("/")


def _base(layer: str) -> str:
    head, _, number = layer.rpartition("_")
    return head if head and number.isdigit() else layer


def _depthwise(name: str, shape: tuple[int, ...]) -> str:
    """Keras 3 calls a depthwise kernel `kernel`, everybody else, and our name maps, `depthwise_kernel`. It can be told
    by its shape: a convolution of many channels into one is in no network here."""
    layer, _, weight = name.rpartition("/")
    depthwise = weight == "kernel" and len(shape) == 4 and shape[3] == 1 and shape[2] > 1
    return f"{layer}/depthwise_kernel" if depthwise else name


def _epsilons(graph: ModuleGraph, call: ModuleCall) -> Iterator[float]:
    """BatchNorms' epsilons: an attribute of the fused operation, or the constant that TensorFlow's and Keras' own
    `batchnorm` scope adds to the variance."""
    import tensorflow as tf

    for function in reachable(graph, call.functions).values():
        for node in function.node_def:
            if node.op.startswith("FusedBatchNorm") and "epsilon" in node.attr:
                yield float(node.attr["epsilon"].f)
            elif node.op == "Const" and node.name.endswith("batchnorm/add/y"):
                value = np.asarray(tf.make_ndarray(node.attr["value"].tensor))
                if value.ndim == 0 and value.dtype.kind == "f":
                    yield float(value)


def _whole(
    folder: Path, graph: ModuleGraph, data: bytes, arrays: Mapping[int, np.ndarray], names: Mapping[int, str]
) -> WholeNetwork:
    """Raises NotACheckpoint (no function from images to features), UnsafeCheckpoint."""
    where = str(folder)
    call = find_call(graph, where)
    outputs = feature_outputs(call, where)
    check_safe(graph, call.functions, where)
    used = graph.bound(call.functions)
    text = [each.path for each in used if each.dtype == "text"]
    if text:
        raise NotACheckpoint(
            f"{where}: {call.function} reads text variables, which can't be kept: {', '.join(text[:5])}"
        )
    trainable = len(trainable_variables(graph, call))
    notes = [
        f"kept as it came: {call.function} gives {' and '.join(sorted(outputs))}"
        + ("" if "feature_map" in outputs else "; it gives no feature map, so that is the vector as 1 × 1")
        + f"; {trainable} of {len(used)} variables are trainable",
        "which range of values it wants isn't in a SavedModel: 0 to 1 is taken, TensorFlow Hub's convention for "
        "images; --input-spec says otherwise",
    ]
    return WholeNetwork(
        architecture=ARCHITECTURE,
        arguments={
            "function": call.function,
            "outputs": dict(outputs),
            "feature_dim": feature_dim(call, outputs),
        },
        tensors={each.path: arrays[each.node] for each in used},
        stored={each.path: names[each.node] for each in used},
        assets={GRAPH_FILE: data},
        height=call.height,
        width=call.width,
        notes=tuple(notes),
    )
