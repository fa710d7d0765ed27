"""Which function of a TF2 SavedModel makes features of images, and how it is called.

Takes a ModuleGraph. Gives a ModuleCall. Next: `zoo.readers.hub`, which records the choice in the manifest, and
`finetune.models.hub_module`, which calls it.

TensorFlow Hub's convention (https://www.tensorflow.org/hub/common_signatures/images): `module(images, training=…)`
takes float32 [B, height, width, 3] in 0..1 and gives [B, D], or a dictionary whose `default` is that. SavedModels of
other origin have signatures only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from zoo.readers.checkpoint import NotACheckpoint
from zoo.readers.hub_graph import ModuleGraph, ModuleVariable

CALL = "__call__"
BARE = ""  # the key of an output that is one tensor, not a dictionary
_FLOAT32 = 1  # tensorflow.DataType.DT_FLOAT
_SIGNATURES = ("serving_default", "default", "image_feature_vector", "serve")
_VECTORS = ("feature_vector", "default", "features")
_MAPS = ("feature_map", "default", "features")

Side = int | None  # None: any


@dataclass(frozen=True, kw_only=True)
class ModuleCall:
    """A function from images to features.

    Attributes:
        function: `__call__`, or a signature's name.
        keyword: what a signature calls its image; None for `__call__`, which takes it in the first place.
        inference, training: names in the function library; `training` is None where the module has no such mode.
        takes_training: whether `__call__` is told the mode by its argument `training`.
        height, width: of the image; None where it takes any.
        outputs: key → shape of each tensor that it gives, None for what isn't fixed.
    """

    function: str
    keyword: str | None
    inference: str
    training: str | None
    takes_training: bool
    height: Side
    width: Side
    outputs: Mapping[str, tuple[Side, ...]]

    @property
    def functions(self) -> tuple[str, ...]:
        return (self.inference,) if self.training is None else (self.inference, self.training)


@dataclass(frozen=True, kw_only=True)
class _Trace:
    """One concrete function: what it takes besides the image, by argument's name."""

    name: str
    image: Any
    training: bool | None


def find_call(graph: ModuleGraph, where: str, function: str | None = None) -> ModuleCall:
    """The module's call on images, or of `function` if it is given.

    Raises NotACheckpoint naming the functions that there are.
    """
    signatures = _signatures(graph)
    order = (CALL, *(name for name in _SIGNATURES if name in signatures), *sorted(set(signatures) - set(_SIGNATURES)))
    for name in order if function is None else (function,):
        call = _method(graph) if name == CALL else _signature(graph, name, signatures)
        if call is not None:
            return call
    there = [*([CALL] if graph.child(0, CALL) is not None else []), *sorted(signatures)]
    raise NotACheckpoint(
        f"{where} has no function from images, float32 [batch, height, width, 3], to tensors; "
        f"it has {', '.join(there) or 'none'}"
    )


def feature_outputs(call: ModuleCall, where: str) -> dict[str, str]:
    """`feature_vector` and `feature_map` → the key of the output that is it; at least one of them.

    Raises NotACheckpoint when the outputs don't tell.
    """
    vectors = [key for key, shape in call.outputs.items() if len(shape) == 2 and shape[1]]
    maps = [key for key, shape in call.outputs.items() if len(shape) == 4 and shape[3]]
    found = {"feature_vector": _one_of(vectors, _VECTORS), "feature_map": _one_of(maps, _MAPS)}
    outputs = {part: key for part, key in found.items() if key is not None}
    if not outputs:
        shapes = ", ".join(f"{key or 'its output'} {list(shape)}" for key, shape in sorted(call.outputs.items()))
        raise NotACheckpoint(
            f"{where}: {call.function} gives no feature vector [batch, D] nor one feature map [batch, height, width, "
            f"C] that could be told from the others: {shapes[:1000] or 'nothing'}"
        )
    return outputs


def feature_dim(call: ModuleCall, outputs: Mapping[str, str]) -> int:
    """D of what `feature_outputs` chose."""
    key = outputs.get("feature_vector", outputs.get("feature_map"))
    return int(call.outputs[str(key)][-1] or 0)


def trainable_variables(graph: ModuleGraph, call: ModuleCall) -> tuple[ModuleVariable, ...]:
    """What fine-tuning may change: marked trainable, read by the call, and in the module's own list of them, if it has
    one, as reusable SavedModels do."""
    listed = graph.child(0, "trainable_variables")
    allowed = None if listed is None else {each.node_id for each in graph.nodes[listed].children}
    bound = graph.bound(call.functions)
    return tuple(each for each in bound if each.trainable and (allowed is None or each.node in allowed))


def _one_of(keys: list[str], preferred: tuple[str, ...]) -> str | None:
    if len(keys) == 1:
        return keys[0]
    return next((name for name in preferred if name in keys), None)


def _method(graph: ModuleGraph) -> ModuleCall | None:
    node = graph.child(0, CALL)
    if node is None or graph.nodes[node].WhichOneof("kind") != "function":
        return None
    traces = list(_traces(graph, graph.nodes[node].function))
    chosen = next((each for each in traces if each.training is False), None)
    chosen = chosen or next((each for each in traces if each.training is None), None)
    if chosen is None:
        return None
    alike = (each for each in traces if each.training and _sides(each.image) == _sides(chosen.image))
    training = next(alike, None)
    return ModuleCall(
        function=CALL,
        keyword=None,
        inference=chosen.name,
        training=None if training is None else training.name,
        takes_training=chosen.training is not None,
        height=_sides(chosen.image)[1],
        width=_sides(chosen.image)[2],
        outputs=_outputs(graph.concrete(chosen.name).output_signature),
    )


def _traces(graph: ModuleGraph, function: Any) -> Iterator[_Trace]:
    """Traces that take an image in the first place, and nothing else that would have to be given."""
    spec = _fields(function.function_spec.fullargspec)
    names = [each.string_value for each in spec["args"].list_value.values] if "args" in spec else []
    names = names[1:] if names[:1] == ["self"] else names
    defaults = _defaults(spec, names)
    for name in function.concrete_functions:
        inputs = graph.concrete(name).canonicalized_input_signature.tuple_value.values
        first, *rest = (inputs[0].tuple_value.values if len(inputs) == 2 else ()) or [None]
        if first is None or not _is_image(first):
            continue
        keywords = inputs[1]
        others = {**dict(zip(names[1:], rest, strict=False)), **dict(keywords.dict_value.fields)}
        flag = others.pop("training", None)
        odd = [key for key, value in others.items() if not _is_default(value, defaults.get(key))]
        odd += ["?"] if len(rest) > max(0, len(names) - 1) else []
        if odd or (flag is not None and flag.WhichOneof("kind") not in ("bool_value", "none_value")):
            continue
        told = flag is not None and flag.WhichOneof("kind") == "bool_value"
        yield _Trace(name=name, image=first, training=bool(flag.bool_value) if told else None)


def _is_default(value: Any, default: Any) -> bool:
    """Whether the argument may be left out: it was traced with its default, or as a number that the default is."""
    if default is None:
        return False
    number = value.WhichOneof("kind") == "tensor_spec_value" and not _sides(value)
    return bool(value == default) or (number and default.WhichOneof("kind") in ("float64_value", "int64_value"))


def _defaults(spec: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if "defaults" in spec and spec["defaults"].WhichOneof("kind") in ("list_value", "tuple_value"):
        values = spec["defaults"].list_value.values or spec["defaults"].tuple_value.values
        found |= dict(zip(reversed(names), reversed(values), strict=False))
    if "kwonlydefaults" in spec:
        found |= dict(spec["kwonlydefaults"].dict_value.fields)
    return found


def _fields(named_tuple: Any) -> dict[str, Any]:
    return {pair.key: pair.value for pair in named_tuple.named_tuple_value.values}


def _signatures(graph: ModuleGraph) -> dict[str, Any]:
    """Name → SavedConcreteFunction's name."""
    node = graph.child(0, "signatures")
    children = graph.nodes[node].children if node is not None else ()
    found = {}
    for each in children:
        target = graph.nodes[each.node_id]
        kind = target.WhichOneof("kind")
        if kind == "bare_concrete_function":
            found[each.local_name] = target.bare_concrete_function.concrete_function_name
        elif kind == "function" and len(target.function.concrete_functions) == 1:
            found[each.local_name] = target.function.concrete_functions[0]
    return found


def _signature(graph: ModuleGraph, name: str, signatures: Mapping[str, str]) -> ModuleCall | None:
    if name not in signatures:
        return None
    concrete = graph.concrete(signatures[name])
    values = concrete.canonicalized_input_signature.tuple_value.values
    inputs = dict(values[1].dict_value.fields) if len(values) == 2 else {}
    if len(inputs) != 1:
        return None
    ((keyword, image),) = inputs.items()
    if not _is_image(image):
        return None
    return ModuleCall(
        function=name,
        keyword=keyword,
        inference=signatures[name],
        training=None,
        takes_training=False,
        height=_sides(image)[1],
        width=_sides(image)[2],
        outputs=_outputs(concrete.output_signature),
    )


def _is_image(value: Any) -> bool:
    if value.WhichOneof("kind") != "tensor_spec_value" or value.tensor_spec_value.dtype != _FLOAT32:
        return False
    sides = _sides(value)
    return len(sides) == 4 and sides[0] is None and sides[3] in (None, 3)


def _sides(value: Any) -> tuple[Side, ...]:
    spec = value.tensor_spec_value
    return tuple(None if side.size < 0 else int(side.size) for side in spec.shape.dim)


def _outputs(value: Any) -> dict[str, tuple[Side, ...]]:
    """Key → shape; elements of a tuple or list are keyed by number. Only float32 tensors at the top count."""
    kind = value.WhichOneof("kind")
    if kind == "dict_value":
        parts = dict(value.dict_value.fields)
    elif kind in ("tuple_value", "list_value"):
        parts = {str(n): each for n, each in enumerate(getattr(value, kind).values)}
    else:
        parts = {BARE: value}
    return {
        key: _sides(each)
        for key, each in sorted(parts.items())
        if each.WhichOneof("kind") == "tensor_spec_value" and each.tensor_spec_value.dtype == _FLOAT32
    }
