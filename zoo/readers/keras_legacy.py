"""The layout of Keras' legacy HDF5 files: weights alone, as Keras Applications publish them, and whole models.

Takes an OpenH5. Gives named values. Next: `zoo.readers.keras_file`.

A group a layer; the root's (or `model_weights`') attribute `layer_names` lists them, each group's `weight_names` its
values, such as `conv2d_1/kernel:0`. A model within the model is one group, with its layers' weights in one list.
"""

from __future__ import annotations

import json
from typing import Any

from zoo.readers.checkpoint import DamagedCheckpoint, NotACheckpoint
from zoo.readers.keras_h5 import OpenH5, StoredValue
from zoo.readers.keras_names import KINDS, counted_from_zero, renumbering_note
from zoo.readers.keras_topology import LayerConfig, group_name, model_layers
from zoo.readers.keras_v3 import NamedValues

_MODEL = "model_weights"
_OPTIMIZER = "optimizer_weights"
_TOP = "top_level_model_weights"


def is_legacy(h5: OpenH5) -> bool:
    return bool(h5.names(h5.root, "layer_names")) or _MODEL in h5.root


def configuration(h5: OpenH5) -> Any:
    """The configuration of a whole model, as data; None for weights alone. Raises DamagedCheckpoint."""
    text = h5.text(h5.root, "model_config")
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpoint(f"{h5.label}: its model_config is not JSON: {error}") from None


def read_values(h5: OpenH5, config: Any) -> NamedValues:
    """Raises NotACheckpoint: no layers; DamagedCheckpoint: a listed weight isn't there; UnsafeCheckpoint."""
    root = h5.root if h5.names(h5.root, "layer_names") or _MODEL not in h5.root else h5.group(h5.root, _MODEL)
    names = h5.names(root, "layer_names")
    if not names:
        raise NotACheckpoint(f"{h5.label} holds no legacy Keras weights: no attribute layer_names")
    listed = [name for name in (*names, _TOP) if name != _TOP or _TOP in root]
    layers = model_layers(config)
    kinds = {layer.name: layer.kind for layer in layers}
    values: dict[str, StoredValue] = {}
    found: list[tuple[str, str]] = []
    for group_of in listed:
        group = h5.group(root, group_of)
        weights = h5.names(group, "weight_names")
        for stored, (layer, weight) in zip(weights, _split(group_of, weights, layers), strict=True):
            if weight == "kernel" and kinds.get(layer) == "DepthwiseConv2D":
                weight = "depthwise_kernel"  # Keras 3's files call it `kernel`
            elif kinds.get(layer) == "LayerScale":
                weight = "gamma"  # Keras gives it no name, so its files say `variable_35`
            if f"{layer}/{weight}" in values:
                raise DamagedCheckpoint(f"{h5.label}: two weights are named {f'{layer}/{weight}'!r}")
            values[f"{layer}/{weight}"] = h5.value(group, stored)
            found.append((_base(layer, kinds), layer))
    renamed = counted_from_zero(dict.fromkeys(found))
    notes = (renumbering_note(renamed),) if renamed else ()
    aside = {f"{_OPTIMIZER}/{name}": "the optimizer's state" for name in _optimizer_names(h5)}
    return NamedValues(values={_renamed(name, renamed): v for name, v in values.items()}, aside=aside, notes=notes)


def _optimizer_names(h5: OpenH5) -> list[str]:
    return h5.names(h5.group(h5.root, _OPTIMIZER), "weight_names") if _OPTIMIZER in h5.root else []


def _base(layer: str, kinds: dict[str, str]) -> str:
    """What Keras calls the layer's class; by the layer's name where the file doesn't tell the class."""
    if layer in kinds:
        return group_name(kinds[layer])
    base, _, number = layer.rpartition("_")
    base = base if base and number.isdecimal() else layer
    return base if base in KINDS else ""


def _renamed(name: str, renamed: dict[str, str]) -> str:
    layer, _, weight = name.rpartition("/")
    return f"{renamed.get(layer, layer)}/{weight}"


def _split(group: str, weights: list[str], layers: tuple[LayerConfig, ...]) -> list[tuple[str, str]]:
    """(layer, weight) of each weight of a group.

    A layer's own weights belong to the group's name, whether the file says `layer/kernel:0`, `scope/layer/kernel:0` or
    `kernel`; TensorFlow made such scopes unique and so changed them. The weights of a model within the model have
    several scopes and belong to the layer before the last `/`.
    """
    plain = [name.removesuffix(":0") for name in weights]
    inner = next((layer for layer in layers if layer.name == group and layer.inner), None)
    if inner is not None:
        named = sorted((one.name for one in layers if one.path[: len(inner.path)] == inner.path), key=len, reverse=True)
        return [_within(name, named) for name in plain]
    if len({name.rpartition("/")[0] for name in plain}) < 2:
        return [(group, name.rpartition("/")[2]) for name in plain]
    return [_within(name, []) for name in plain]


def _within(name: str, layers: list[str]) -> tuple[str, str]:
    scope, _, weight = name.rpartition("/")
    known = next((layer for layer in layers if scope == layer or scope.endswith(f"/{layer}")), None)
    return known or scope.rpartition("/")[2], weight
