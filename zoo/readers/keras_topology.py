"""Reads a Keras model's configuration as data, to learn what its last dense layers are. Nothing is ever made from it.

Takes the JSON that Keras writes of a model. Gives DenseLayers and BatchNorm epsilons. Next: `zoo.readers.tfjs`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from zoo.readers.checkpoint import DenseLayer

_MAX_DEPTH = 20  # models within models


def topology_facts(topology: Any) -> tuple[tuple[DenseLayer, ...], frozenset[float]]:
    """The chain of dense layers that ends in the output, first to last, and the epsilons of all BatchNorms.

    Dropout between them is folded into the layer before. The chain is empty where the topology is missing, has several
    outputs, or ends in anything but dense layers.
    """
    config = topology.get("model_config", topology) if isinstance(topology, dict) else None
    model = _object(config).get("config")
    layers = model if isinstance(model, list) else _object(model).get("layers")
    if not isinstance(layers, list):
        return (), frozenset()
    epsilons = frozenset(
        float(value)
        for layer in _layers(layers, 0)
        if layer.get("class_name") in ("BatchNormalization", "BatchNormalizationV1")
        and isinstance(value := _object(layer.get("config")).get("epsilon"), int | float)
    )
    return tuple(reversed(_chain(layers, _object(model).get("output_layers")))), epsilons


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _layers(layers: list[Any], depth: int) -> Iterator[dict[str, Any]]:
    for layer in layers:
        if not isinstance(layer, dict):
            continue
        yield layer
        inner = _object(layer.get("config")).get("layers")
        if isinstance(inner, list) and depth < _MAX_DEPTH:
            yield from _layers(inner, depth + 1)


def _chain(layers: list[Any], outputs: Any) -> list[DenseLayer]:
    """Dense layers, last to first, walked from the output against the flow."""
    by_name = {name: layer for layer in layers if (name := _name(_object(layer))) is not None}
    before = _predecessors(layers)
    name = _single_output(outputs) if outputs is not None else next(reversed(by_name), None)
    chain: list[DenseLayer] = []
    dropout, activation = 0.0, ""
    seen: set[str] = set()
    while name is not None and name in by_name and name not in seen:
        seen.add(name)
        layer = by_name[name]
        config, kind = _object(layer.get("config")), layer.get("class_name")
        if kind == "Dense":
            own = str(config.get("activation") or "linear")
            applied = [part for part in (own, activation) if part not in ("", "linear")]
            chain.append(DenseLayer(name=name, activation="+".join(applied) or "linear", dropout=dropout))
            dropout, activation = 0.0, ""
        elif kind == "Dropout" and isinstance(config.get("rate"), int | float):
            dropout = float(config["rate"])
        elif kind == "Activation" and isinstance(config.get("activation"), str):
            activation = config["activation"]
        else:
            break
        name = before.get(name)
    return chain


def _name(layer: dict[str, Any]) -> str | None:
    name = layer.get("name") or _object(layer.get("config")).get("name")
    return name if isinstance(name, str) else None


def _single_output(outputs: Any) -> str | None:
    """`output_layers` is [["dense_3", 0, 0]], or that one entry itself in newer files."""
    if isinstance(outputs, list) and len(outputs) == 1 and isinstance(outputs[0], list):
        outputs = outputs[0]
    return outputs[0] if isinstance(outputs, list) and outputs and isinstance(outputs[0], str) else None


def _predecessors(layers: list[Any]) -> dict[str, str]:
    """Layer → the one layer that it takes its input from; layers with several inputs are left out.

    A sequential model writes no connections: there it is the layer before.
    """
    before: dict[str, str] = {}
    previous: str | None = None
    connected = any(_object(layer).get("inbound_nodes") for layer in layers)
    for layer in layers:
        name = _name(_object(layer))
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
    """Names in `[[["dense_1", 0, 0, {}]]]` of one call; several calls of one layer are no chain."""
    if not isinstance(nodes, list) or len(nodes) != 1 or not isinstance(nodes[0], list):
        return []
    return [entry[0] for entry in nodes[0] if isinstance(entry, list) and entry and isinstance(entry[0], str)]
