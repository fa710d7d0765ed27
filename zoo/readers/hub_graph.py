"""What a TF2 SavedModel says of itself: its variables, its functions, and what those consist of. As data: nothing is
loaded, let alone called.

Takes the bytes of a `saved_model.pb`. Gives a ModuleGraph. Next: `zoo.readers.hub`, which reads the variables' values,
and `finetune.models.hub_module`, which asks `check_safe` again before it lets TensorFlow load what a store holds.

Format: `tensorflow/core/protobuf/saved_object_graph.proto`. An object graph (nodes and named edges from the root) says
which objects there are; a function's node names its traces, which lie in the graph's function library, and for each the
variables that it is bound to.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from zoo.readers.checkpoint import DamagedCheckpoint, NotACheckpoint, UnsafeCheckpoint
from zoo.readers.hub_operations import ALLOWED_OPERATIONS

GRAPH_FILE = "saved_model.pb"

# Kinds of nodes that loading only makes objects of. The others (tables and other resources, files) bring functions of
# their own that loading calls.
_PLAIN_KINDS = ("user_object", "variable", "function", "bare_concrete_function", "constant", "captured_tensor", None)


class LegacyModule(NotACheckpoint):
    """A module for TensorFlow 1, whose graph has no functions that could be called or trained."""


@dataclass(frozen=True, kw_only=True)
class ModuleVariable:
    """`path`: the names of the attributes that lead to it from the root, the shortest first; stable, and unique.
    `name`: what its maker called it, e.g. `InceptionV3/Conv2d_1a_3x3/weights`, or `conv2d_7/kernel`."""

    path: str
    name: str
    node: int
    dtype: str  # NumPy's name
    shape: tuple[int, ...]
    trainable: bool


@dataclass(frozen=True, kw_only=True)
class ModuleGraph:
    """`proto` is the MetaGraphDef, `variables` in the order of their paths."""

    proto: Any
    variables: tuple[ModuleVariable, ...]

    @property
    def nodes(self) -> Any:
        return self.proto.object_graph_def.nodes

    def child(self, node: int, name: str) -> int | None:
        return next((each.node_id for each in self.nodes[node].children if each.local_name == name), None)

    def concrete(self, function: str) -> Any:
        """The SavedConcreteFunction of a name in the library. Raises DamagedCheckpoint."""
        concrete = self.proto.object_graph_def.concrete_functions
        if function not in concrete:
            raise DamagedCheckpoint(f"{GRAPH_FILE}: the function {function!r} is named and not there")
        return concrete[function]

    def bound(self, functions: Iterable[str]) -> tuple[ModuleVariable, ...]:
        """The variables that any of the functions reads or changes, in the order of their paths."""
        wanted = {node for name in functions for node in self.concrete(name).bound_inputs}
        return tuple(each for each in self.variables if each.node in wanted)


def parse(data: bytes, where: str) -> ModuleGraph:
    """Raises NotACheckpoint, LegacyModule (no object graph), DamagedCheckpoint."""
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise DamagedCheckpoint(f"{where} is cut off, or no SavedModel: {error}") from None
    if not model.meta_graphs:
        raise NotACheckpoint(f"{where} is no SavedModel: it has no graph")
    meta = model.meta_graphs[0]
    if len(model.meta_graphs) > 1 or not meta.object_graph_def.nodes:
        tags = "; ".join(",".join(each.meta_info_def.tags) or "none" for each in model.meta_graphs)
        raise LegacyModule(
            f"{where} is a SavedModel of TensorFlow 1 (graphs tagged {tags}): it has no functions that could be called "
            "or trained, only a graph to be fed by name"
        )
    return ModuleGraph(proto=meta, variables=tuple(_variables(meta.object_graph_def, where)))


def _variables(graph: Any, where: str) -> Iterator[ModuleVariable]:
    """Breadth first, children in the file's order, as TensorFlow names the values in its checkpoints."""
    import tensorflow as tf

    paths = {0: ""}
    queue = deque([0])
    while queue:
        node = queue.popleft()
        for child in graph.nodes[node].children:
            if not 0 <= child.node_id < len(graph.nodes):
                raise DamagedCheckpoint(f"{where}: the object {child.local_name!r} is named and not there")
            if child.node_id not in paths:
                name = child.local_name.replace(".", "..").replace("/", ".S")  # its escapes
                paths[child.node_id] = f"{paths[node]}/{name}".lstrip("/")
                queue.append(child.node_id)
    for node, path in sorted(paths.items(), key=lambda pair: pair[1]):
        if graph.nodes[node].WhichOneof("kind") != "variable":
            continue
        stored = graph.nodes[node].variable
        try:
            dtype = tf.dtypes.as_dtype(stored.dtype).as_numpy_dtype
        except TypeError:
            raise DamagedCheckpoint(f"{where}: variable {path} has an unknown type ({stored.dtype})") from None
        yield ModuleVariable(
            path=path,
            name=stored.name.removesuffix(":0"),
            node=node,
            dtype="text" if dtype is object else _numpy_name(dtype),
            shape=tuple(int(side.size) for side in stored.shape.dim),
            trainable=bool(stored.trainable),
        )


def _numpy_name(dtype: Any) -> str:
    import numpy as np

    return np.dtype(dtype).name


def reachable(graph: ModuleGraph, functions: Iterable[str]) -> dict[str, Any]:
    """Name → FunctionDef of everything that a call of `functions`, or of their gradients, may come to.

    Raises DamagedCheckpoint on a function that isn't there.
    """
    library = graph.proto.graph_def.library
    known = {each.signature.name: each for each in library.function}
    gradients = {each.function_name: each.gradient_func for each in library.gradient}
    registered: dict[str, list[str]] = {}
    for each in library.registered_gradients:
        registered.setdefault(each.registered_op_type, []).append(each.gradient_func)
    alike: dict[bytes, list[str]] = {}  # Grappler may call one in place of another that says to do the same
    for name, function in known.items():
        if "api_implements" in function.attr:
            alike.setdefault(function.attr["api_implements"].s, []).append(name)
    found: dict[str, Any] = {}
    queue = list(functions)
    while queue:
        name = queue.pop()
        if name in found:
            continue
        if name not in known:
            raise DamagedCheckpoint(f"{GRAPH_FILE}: the function {name!r} is called and not there")
        found[name] = function = known[name]
        queue += [gradients[name]] if name in gradients else []
        queue += alike.get(function.attr["api_implements"].s, []) if "api_implements" in function.attr else []
        queue += [each for each in _named(function.attr) if each in known]
        for node in function.node_def:
            queue += [node.op] if node.op in known else []
            queue += _called(node.attr)
            queue += registered.get(_text(node.attr, "_gradient_op_type"), [])
    return found


def _registered(operation: str) -> bool:
    import tensorflow as tf

    return operation.startswith("_") or hasattr(tf.raw_ops, operation)


def _own_savers(node: Any) -> Iterator[str]:
    if node.registered_saver:
        yield node.registered_saver
    if node.WhichOneof("kind") != "variable":
        yield from node.saveable_objects


def _called(attributes: Mapping[str, Any]) -> Iterator[str]:
    for value in attributes.values():
        kind = value.WhichOneof("value")
        if kind == "func":
            yield value.func.name
            yield from _called(value.func.attr)
        elif kind == "list":
            for function in value.list.func:
                yield function.name
                yield from _called(function.attr)


def _named(attributes: Mapping[str, Any]) -> Iterator[str]:
    """Functions that an attribute names as text, e.g. `backward_function_name`."""
    for value in attributes.values():
        if value.WhichOneof("value") == "s":
            yield value.s.decode(errors="replace")


def _text(attributes: Mapping[str, Any], key: str) -> str:
    return str(attributes[key].s.decode(errors="replace")) if key in attributes else ""


def check_safe(graph: ModuleGraph, functions: Iterable[str], where: str) -> None:
    """That loading the module runs nothing, and calling `functions` does nothing but arithmetic on tensors and on its
    own variables. Raises UnsafeCheckpoint naming every operation or object that is more; DamagedCheckpoint."""
    import tensorflow as tf

    objects = sorted({str(kind) for each in graph.nodes if (kind := each.WhichOneof("kind")) not in _PLAIN_KINDS})
    objects += sorted({each.registered_name for each in graph.nodes if each.registered_name})
    objects += sorted({f"save functions of {name!r}" for each in graph.nodes for name in _own_savers(each)})
    if objects:
        raise UnsafeCheckpoint(
            f"{where} holds more than variables and functions: {', '.join(objects)[:500]}; loading it would call "
            "functions of its own or read files"
        )
    library = graph.proto.graph_def.library.function
    known = {each.signature.name for each in library}
    strange = {
        node.op for each in library for node in each.node_def if node.op not in known and not _registered(node.op)
    }
    if strange:  # in functions that nobody calls, too: loading makes all of them
        raise UnsafeCheckpoint(
            f"{where} has operations that TensorFlow {tf.__version__} doesn't know: {', '.join(sorted(strange))[:500]}",
            operations=",".join(sorted(strange))[:500],
        )
    addresses = (tf.resource.as_datatype_enum, tf.variant.as_datatype_enum)
    refused: dict[str, str] = {}
    called = reachable(graph, functions)
    for name, function in called.items():
        for node in function.node_def:
            if node.op not in ALLOWED_OPERATIONS and node.op not in called:
                refused.setdefault(node.op, f"{node.op} ({name}: {node.name})")
            if node.op == "Const" and node.attr["dtype"].type in addresses:
                refused.setdefault("Const", f"a constant of resources ({name}: {node.name})")
    if refused:
        raise UnsafeCheckpoint(
            f"{where} calls {len(refused)} operations that are more than arithmetic on its own variables (files, "
            f"network, Python, other programs, or unknown here): {', '.join(sorted(refused.values()))[:1000]}",
            operations=",".join(sorted(refused))[:500],
        )
