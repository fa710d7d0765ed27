"""Reads a Keras model's configuration as data. Nothing is ever made from it.

Takes the JSON that Keras writes of a model, of any version. Gives its layers, its last dense layers and BatchNorm's
epsilons. Next: `zoo.readers.tfjs`, `zoo.readers.keras_file`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from zoo.readers.checkpoint import DenseLayer, UnsafeCheckpoint

_MAX_DEPTH = 20  # models within models


@dataclass(frozen=True, kw_only=True)
class LayerConfig:
    """A layer, or a model within the model.

    Attributes:
        path: its group in a Keras 3 weights file, e.g. ("layers", "functional", "layers", "conv2d_3"): each container
            counts its layers by class, in its own order, whatever the layers are called.
        kind: the class, e.g. "Conv2D", without the package that it was registered in.
        config: the layer's own arguments.
        inner: it is a model, whose layers follow it.
    """

    path: tuple[str, ...]
    name: str
    kind: str
    config: dict[str, Any]
    inner: bool


def topology_facts(topology: Any) -> tuple[tuple[DenseLayer, ...], frozenset[float]]:
    """The chain of dense layers that ends in the output, first to last, and the epsilons of all BatchNorms.

    Dropout between them is folded into the layer before. The chain is empty where the topology is missing, has several
    outputs, or ends in anything but dense layers; layers of models within the model count as the model's own.
    """
    config = model_config(topology)
    epsilons = frozenset(
        float(value)
        for layer in model_layers(topology)
        if layer.kind in ("BatchNormalization", "BatchNormalizationV1")
        and isinstance(value := layer.config.get("epsilon"), int | float)
    )
    return tuple(reversed(_chain(_upstream(config, 0)))), epsilons


def model_config(topology: Any) -> Any:
    """The `config` of the outermost model: an object with `layers`, or in old files the list of layers itself."""
    config = topology.get("model_config", topology) if isinstance(topology, dict) else None
    return _object(config).get("config")


def model_layers(topology: Any) -> tuple[LayerConfig, ...]:
    """Every layer, in the order of the configuration, which is that of `model.layers`."""
    return tuple(_layers(model_config(topology), (), 0))


def group_name(kind: str) -> str:
    """What Keras 3 calls a layer of class `kind` in a weights file: `SeparableConv2D` is `separable_conv2d`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=.)(?=[A-Z][a-z])", "_", re.sub(r"\W", "", kind)).lower()


def refuse_code(topology: Any, where: str) -> None:
    """Raises UnsafeCheckpoint when the configuration holds code, naming the layer.

    The weights alone would be safe to read. But what such a network computes can't be told without running it, so
    nobody could say that another network with these weights is the same.
    """
    todo: list[tuple[Any, str]] = [(topology, "the model")]
    while todo:
        value, owner = todo.pop()
        if isinstance(value, list):
            todo.extend((entry, owner) for entry in reversed(value))
        if not isinstance(value, dict):
            continue
        name = value.get("name") or _object(value.get("config")).get("name")
        owner = f"layer {name!r}" if isinstance(name, str) and value is not topology else owner
        found = _code(value)
        if found is not None:
            raise UnsafeCheckpoint(
                f"{where}: {owner} {found}; a configuration with code in it is refused, and nothing was loaded",
                hint="replace that layer by one without code where the model was made, and save it again",
                named=owner[:200],
            )
        todo.extend((entry, owner) for entry in reversed(value.values()))


def _code(value: dict[str, Any]) -> str | None:
    kind = _kind(value)
    if kind == "Lambda":
        return "is a Lambda layer: Python code of its maker"
    if kind == "__lambda__" or any(key.endswith("_type") and entry == "lambda" for key, entry in value.items()):
        return "holds a lambda: marshalled Python code"
    code = value.get("value")  # Keras 3.15's way to write an activation that is a lambda: code, defaults, closure
    if set(value) == {"value"} and isinstance(code, list) and len(code) == 3 and isinstance(code[0], str):
        return "holds marshalled Python code"
    return None


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _kind(layer: dict[str, Any]) -> str:
    kind = layer.get("class_name")
    return kind.rpartition(">")[2] if isinstance(kind, str) else ""


def _entries(model: Any) -> list[Any]:
    layers = model if isinstance(model, list) else _object(model).get("layers")
    return layers if isinstance(layers, list) else []


def _is_model(layer: dict[str, Any]) -> bool:
    config = layer.get("config")
    return isinstance(config, list) or isinstance(_object(config).get("layers"), list)


def _layers(model: Any, path: tuple[str, ...], depth: int) -> Iterator[LayerConfig]:
    counts: dict[str, int] = {}
    for layer in _entries(model):
        name, kind = _name(_object(layer)), _kind(_object(layer))
        if name is None:
            continue
        base = group_name(kind)
        counts[base] = counts.get(base, -1) + 1
        own = (*path, "layers", f"{base}_{counts[base]}" if counts[base] else base)
        inner = _is_model(layer) and depth < _MAX_DEPTH
        yield LayerConfig(path=own, name=name, kind=kind, config=_object(layer.get("config")), inner=inner)
        if inner:
            yield from _layers(layer.get("config"), own, depth + 1)


def _upstream(model: Any, depth: int) -> Iterator[dict[str, Any]]:
    """Layers from the output against the flow, as long as each takes what one other gives; {} where that ends."""
    layers = [layer for layer in _entries(model) if isinstance(layer, dict)]
    by_name = {name: layer for layer in layers if (name := _name(layer)) is not None}
    before = _predecessors(layers)
    outputs = _object(model).get("output_layers")
    name = _single_output(outputs) if outputs is not None else next(reversed(by_name), None)
    seen: set[str] = set()
    while name is not None and name in by_name and name not in seen:
        seen.add(name)
        layer = by_name[name]
        if _is_model(layer) and depth < _MAX_DEPTH:
            yield from _upstream(layer["config"], depth + 1)
        else:
            yield layer
        name = before.get(name)
    if outputs is not None and (not seen or _kind(layer) != "InputLayer"):
        yield {}


def _chain(upstream: Iterator[dict[str, Any]]) -> list[DenseLayer]:
    """Dense layers, last to first."""
    chain: list[DenseLayer] = []
    dropout, activation = 0.0, ""
    for layer in upstream:
        config, kind = _object(layer.get("config")), _kind(layer)
        if kind == "Dense":
            own = _activation(config.get("activation") or "linear")
            applied = [part for part in (own, activation) if part not in ("", "linear")]
            chain.append(DenseLayer(name=str(_name(layer)), activation="+".join(applied) or "linear", dropout=dropout))
            dropout, activation = 0.0, ""
        elif kind == "Dropout" and isinstance(config.get("rate"), int | float):
            dropout = float(config["rate"])
        elif kind == "Activation" and isinstance(config.get("activation"), str):
            activation = config["activation"]
        elif kind == "Softmax" and config.get("axis", -1) == -1:
            activation = "softmax"
        elif kind != "InputLayer":
            break
    return chain


def _activation(value: Any) -> str:
    """A name of Keras' own; a function or object of the user's is no such name, whatever it is called."""
    if isinstance(value, str):
        return value
    called = _object(value).get("config")
    return f"custom {called if isinstance(called, str) else _object(value).get('class_name', 'function')}"


def _name(layer: dict[str, Any]) -> str | None:
    name = layer.get("name") or _object(layer.get("config")).get("name")
    return name if isinstance(name, str) else None


def _single_output(outputs: Any) -> str | None:
    """`output_layers` is [["dense_3", 0, 0]], or that one entry itself in newer files."""
    if isinstance(outputs, list) and len(outputs) == 1 and isinstance(outputs[0], list):
        outputs = outputs[0]
    return outputs[0] if isinstance(outputs, list) and outputs and isinstance(outputs[0], str) else None


def _predecessors(layers: list[dict[str, Any]]) -> dict[str, str]:
    """Layer → the one layer that it takes its input from; layers with several inputs are left out.

    A sequential model writes no connections: there it is the layer before.
    """
    before: dict[str, str] = {}
    previous: str | None = None
    connected = any(layer.get("inbound_nodes") for layer in layers)
    for layer in layers:
        name = _name(layer)
        if name is None:
            continue
        if not connected:
            if previous is not None:
                before[name] = previous
            previous = name
            continue
        sources = _sources(layer.get("inbound_nodes"))
        if len(sources) == 1:
            before[name] = sources[0]
    return before


def _sources(nodes: Any) -> list[str]:
    """Names of the layers that the one call of a layer takes; several calls of one layer are no chain.

    Keras 2 and TF.js write `[[["dense_1", 0, 0, {}]]]`; Keras 3 writes `[{"args": […], "kwargs": {…}}]`, in which every
    tensor has a `keras_history`.
    """
    if not isinstance(nodes, list) or len(nodes) != 1:
        return []
    if isinstance(nodes[0], list):
        return [entry[0] for entry in nodes[0] if isinstance(entry, list) and entry and isinstance(entry[0], str)]
    sources: list[str] = []
    todo: list[Any] = [_object(nodes[0]).get("args"), _object(nodes[0]).get("kwargs")]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            history = value.get("keras_history")
            if isinstance(history, list) and history and isinstance(history[0], str):
                sources.append(history[0])
            todo.extend(value.values())
        elif isinstance(value, list):
            todo.extend(value)
    return sources
