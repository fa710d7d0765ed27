"""The layout of Keras 3's weights (`.weights.h5`, and `model.weights.h5` within a `.keras`), after its `saving_lib`.

Takes an OpenH5 and, where there is one, the model's configuration. Gives named values. Next: `zoo.readers.keras_file`.

A layer's values lie in `layers/<class>_<n>/vars/0`, `/1`, …, where n counts the layers of that class in the order of
`model.layers`. For a functional model that is the order of depth, not the one in which layers were made, so the group
tells no name: the configuration does, or the group's attribute `name`, which Keras writes since 3.6. Without either,
which of a network's many alike convolutions a group is can't be told, and the file is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from zoo.readers.checkpoint import DamagedCheckpoint, NotACheckpoint
from zoo.readers.keras_h5 import OpenH5, StoredValue, ValueGroup
from zoo.readers.keras_names import KINDS, counted_from_zero, renumbering_note, value_names
from zoo.readers.keras_topology import LayerConfig, group_name

_CONTAINER = "layers"
_OLD_CONTAINER = "_layer_checkpoint_dependencies"  # tf.keras 2.12 and 2.13
ROOTS = (_CONTAINER, _OLD_CONTAINER, "vars")

_ASIDE = {
    "optimizer": "the optimizer's state",
    "_compile_metrics": "a metric's state",
    "_compile_loss": "a loss tracker's state",
    "metrics": "a metric's state",  # tf.keras
    "_metrics": "a metric's state",
}
_SEEDS = "seed_generator"


@dataclass(kw_only=True)
class NamedValues:
    """Values by `<layer>/<weight>`; `aside` and `notes` as in ForeignCheckpoint."""

    values: dict[str, StoredValue]
    aside: dict[str, str]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """What is known of a group: `config` is None where only the file itself tells."""

    path: tuple[str, ...]
    name: str
    kind: str
    config: Mapping[str, Any] | None


def read_values(h5: OpenH5, layers: tuple[LayerConfig, ...]) -> NamedValues:
    """`layers`: none where there is no configuration, or one of the user's own class, which tells none.

    Raises NotACheckpoint: a layer can't be told, or is quantised; DamagedCheckpoint: file and configuration
    contradict each other; UnsafeCheckpoint, from `zoo.readers.keras_h5`."""
    groups = _groups(h5)
    known = _from_config(h5, groups, layers) if layers else _from_titles(h5, groups)
    renamed, notes = _renumbered(known.values())
    read = NamedValues(values={}, aside={}, notes=())
    for path, group in groups.items():
        reason = _reason_aside(path, group)
        if reason is not None:
            read.aside |= dict.fromkeys((f"{'/'.join(group.path)}/{key}" for key in group.keys), reason)
            continue
        layer = known.get(path)
        at = h5.group(h5.root, "/".join(group.path)) if group.path else h5.root
        stored = {key: h5.value(at, key) for key in sorted(group.keys, key=lambda key: (len(key), key))}
        names, remark = _names(h5, path, layer, stored, known)
        if remark is not None:
            notes = dict.fromkeys((*notes, remark))
        owner = _owner(path, known)
        scope = path if owner is None else (renamed.get(owner.path, owner.name),)
        for name, value in names.items():
            full = "/".join((*scope, name))
            if full in read.values:
                raise DamagedCheckpoint(f"{h5.label}: two weights are named {full!r}; layers need names of their own")
            read.values[full] = value
    read.notes = tuple(notes)
    return read


def _groups(h5: OpenH5) -> dict[tuple[str, ...], ValueGroup]:
    groups: dict[tuple[str, ...], ValueGroup] = {}
    for group in h5.value_groups():
        path = _layer_path(group.path)
        if path in groups:
            raise DamagedCheckpoint(f"{h5.label}: two groups hold the values of {'/'.join(path)!r}")
        groups[path] = group
    return groups


def _layer_path(path: tuple[str, ...]) -> tuple[str, ...]:
    """The group of the layer that a group `vars` belongs to."""
    path = tuple(_CONTAINER if step == _OLD_CONTAINER else step for step in path)
    return path[:-1] if path and path[-1] == "vars" else path


def _from_config(
    h5: OpenH5, groups: Mapping[tuple[str, ...], ValueGroup], layers: tuple[LayerConfig, ...]
) -> dict[tuple[str, ...], _Layer]:
    """Goes by the groups' titles where there are any, else by their counts of classes.

    The counts alone can mislead: a configuration also lists operations that are no layers, such as `x + y` beside the
    layer Add. None of them has weights; a layer of a class with weights counts the same in both.
    """
    titled: dict[tuple[str, ...], dict[str, tuple[str, ...]]] = {}
    for path, group in groups.items():
        if len(path) > 1 and path[-2] == _CONTAINER and group.title is not None:
            titled.setdefault(path[:-2], {})[group.title] = path
    known: dict[tuple[str, ...], _Layer] = {}
    place: dict[tuple[str, ...], tuple[str, ...]] = {(): ()}  # a model's group by its count → its group in the file
    claimed: set[tuple[str, ...]] = set()
    for each in layers:
        owner = place.get(each.path[:-2])
        if owner is None:  # within a model of which the file has nothing
            continue
        found = titled[owner].get(each.name) if owner in titled else (*owner, *each.path[-2:])
        if found is None or (found not in groups and not each.inner):
            continue
        if _base(found[-1]) != _base(each.path[-1]):
            raise DamagedCheckpoint(
                f"{h5.label}: layer {each.name!r} lies in {'/'.join(found)!r}, the configuration says {each.kind}: "
                "the two are not of one model"
            )
        claimed.add(found)
        if each.inner:
            place[each.path] = found
        else:
            known[found] = _Layer(path=found, name=each.name, kind=each.kind, config=each.config)
    for owner in set(place.values()) & titled.keys():
        for title, path in titled[owner].items():
            if path not in claimed and groups[path].keys:
                raise DamagedCheckpoint(
                    f"{h5.label}: group {'/'.join(path)!r} is layer {title!r}, which the configuration doesn't have: "
                    "the two are not of one model"
                )
    return known


def _base(group: str) -> str:
    """`conv2d_7` is the group of a `conv2d`."""
    base, _, number = group.rpartition("_")
    return base if base and number.isdecimal() else group


def _from_titles(h5: OpenH5, groups: Mapping[tuple[str, ...], ValueGroup]) -> dict[tuple[str, ...], _Layer]:
    known: dict[tuple[str, ...], _Layer] = {}
    nameless = []
    for path, group in groups.items():
        listed = len(path) > 1 and path[-2] == _CONTAINER
        if listed and group.keys and group.title is None:
            nameless.append("/".join(path))
        if group.title is None or not path or _reason_aside(path, group) is not None:
            continue
        # Only in a list of layers is a group named after the class; elsewhere after an attribute of its owner.
        kind = KINDS.get(_base(path[-1]), _base(path[-1])) if listed else ""
        known[path] = _Layer(path=path, name=group.title, kind=kind, config=None)
    if nameless:
        raise NotACheckpoint(
            f"{h5.label}: {len(nameless)} groups such as {nameless[0]!r} don't say which layers they are: Keras before "
            "3.6 wrote only their classes and a count in an order of its own, so which is which would be a guess",
            hint="load it into its model and save that whole, which tells the names: model.save('model.keras')",
        )
    return known


def _reason_aside(path: tuple[str, ...], group: ValueGroup) -> str | None:
    if path and path[0] in _ASIDE:
        return _ASIDE[path[0]]
    generator = any(step.startswith(_SEEDS) for step in path) or (group.title or "").startswith(_SEEDS)
    return "the state of a random number generator" if generator else None


def _renumbered(layers: Iterable[_Layer]) -> tuple[dict[tuple[str, ...], str], dict[str, None]]:
    """Group of a layer → its name counted from 0, where it isn't; each model within the model counts for itself."""
    containers: dict[tuple[str, ...], list[_Layer]] = {}
    for layer in layers:
        containers.setdefault(layer.path[:-1], []).append(layer)
    renamed: dict[tuple[str, ...], str] = {}
    notes: dict[str, None] = {}
    for inside in containers.values():
        new = counted_from_zero((group_name(layer.kind), layer.name) for layer in inside)
        renamed |= {layer.path: new[layer.name] for layer in inside if layer.name in new}
        if new:
            notes[renumbering_note(new)] = None
    return renamed, notes


def _owner(path: tuple[str, ...], known: Mapping[tuple[str, ...], _Layer]) -> _Layer | None:
    """The layer that a group is, or lies within."""
    return next((known[path[:end]] for end in range(len(path), 0, -1) if path[:end] in known), None)


def _names(
    h5: OpenH5,
    path: tuple[str, ...],
    layer: _Layer | None,
    stored: Mapping[str, StoredValue],
    known: Mapping[tuple[str, ...], _Layer],
) -> tuple[dict[str, StoredValue], str | None]:
    """The values by their names within the layer; where those can't be told, by their numbers."""
    if layer is not None:
        where = f"{h5.label}: layer {layer.name!r}"
        _refuse_quantised(where, layer, stored)
        names, remark = (
            value_names(layer.kind, len(stored), layer.config, where)
            if list(stored) == [str(place) for place in range(len(stored))] and stored
            else (None, None)
        )
        if names is not None:
            for name, value in zip(names, stored.values(), strict=True):
                if name.rank not in (None, value.array.ndim):
                    raise DamagedCheckpoint(
                        f"{where}: its {name.name} has the shape {value.array.shape}, expected {name.rank} sides"
                    )
            return {name.name: value for name, value in zip(names, stored.values(), strict=True)}, remark
    owner = _owner(path, known)
    inside = "" if owner is None else "".join(f"{step}/" for step in path[len(owner.path) :])
    return {f"{inside}vars/{key}": value for key, value in stored.items()}, None


def _refuse_quantised(where: str, layer: _Layer, stored: Mapping[str, StoredValue]) -> None:
    odd = sorted({value.type for value in stored.values() if value.array.dtype.kind in "iub" and value.array.size > 1})
    if odd and layer.kind in KINDS.values():
        raise NotACheckpoint(
            f"{where} is stored as {', '.join(odd)}: quantised weights of Keras are not read",
            hint="save the model as it was before model.quantize(…)",
        )
