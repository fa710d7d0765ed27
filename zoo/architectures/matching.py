"""Matches the names of a foreign checkpoint to an architecture's, one explicit name at a time.

Takes a ForeignCheckpoint, an architecture and one of its name maps. Gives a Match: what fits, what doesn't, and the
tensors in our names and layout. Next: `zoo.importer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import numpy as np
from pydantic import JsonValue

from zoo.architectures.facts import ArchitectureFacts, Framework, NameMap, Shape, Target
from zoo.architectures.layouts import turned
from zoo.errors import InvalidArgument
from zoo.input_spec import InputSpec
from zoo.readers.checkpoint import DenseLayer, ForeignCheckpoint
from zoo.restore_report import Mismatch, RestoreReport, guess_cause


class SeveralScopes(InvalidArgument):
    """A checkpoint that has one network several times, each below a scope of its own."""


@dataclass(frozen=True, kw_only=True)
class Match:
    """How well a checkpoint fits one name map of one architecture; no value has been touched yet.

    Attributes:
        targets: stored name → Target, whose name begins with `backbone/` or `head/`; only tensors that are restored.
        dense: the head's layers, first to last; empty for a checkpoint without a head.
        coverage: the share of the map's backbone names that the checkpoint has.
    """

    facts: ArchitectureFacts
    layout: str
    arguments: dict[str, JsonValue]
    targets: dict[str, Target]
    dense: tuple[DenseLayer, ...]
    coverage: float
    report: RestoreReport

    @property
    def usual_input_spec(self) -> InputSpec:
        return self.facts.name_maps[self.layout].input_spec or self.facts.input_spec

    @property
    def framework(self) -> Framework:
        return self.facts.name_maps[self.layout].framework

    @property
    def label(self) -> str:
        return f"{self.facts.name} ({self.layout} names)"


def match(checkpoint: ForeignCheckpoint, facts: ArchitectureFacts, layout: str, excluded: Mapping[str, str]) -> Match:
    """Fits names and shapes.

    A TF-Slim network may lie below a scope, e.g. `tower_0/InceptionV3`, if below one only.

    Args:
        excluded: stored name → why the user wants it left out; these count as unused.
    Raises:
        SeveralScopes, naming them.
    """
    usable = {name: value for name, value in checkpoint.tensors.items() if name not in excluded}
    name_map = facts.name_maps[layout]
    arguments = facts.resolved(name_map.arguments)
    if name_map.framework == "slim":
        name_map = _below(_scope(name_map.backbone(arguments), usable), name_map)
    backbone = name_map.backbone(arguments)
    shapes = {f"backbone/{name}": shape for name, shape in facts.tensor_shapes(arguments).items()}
    targets = {stored: _within("backbone", target) for stored, target in backbone.items()}
    head, dense = _head(checkpoint, name_map)
    if any(stored in usable for stored in head):
        targets |= head
        shapes |= _head_shapes(head, usable, facts.feature_dim(arguments))
    else:
        dense = ()
    present = {stored: target for stored, target in targets.items() if stored in usable}
    return Match(
        facts=facts,
        layout=layout,
        arguments=arguments,
        targets=present,
        dense=dense,
        coverage=sum(stored in checkpoint.tensors for stored in backbone) / len(backbone),
        report=_report(checkpoint, name_map, targets, shapes, usable, excluded),
    )


def _scope(names: Mapping[str, Target], usable: Mapping[str, np.ndarray]) -> str:
    """What stands before every stored name, with its slash; "" where the names are there as they are, or aren't."""
    if any(name in usable for name in names):
        return ""
    first = next(iter(names))
    scopes = sorted(stored.removesuffix(first) for stored in usable if stored.endswith(f"/{first}"))
    if len(scopes) > 1:
        excludes = " ".join(f"--exclude {scope.removesuffix('/')}" for scope in scopes[1:])
        raise SeveralScopes(
            f"the checkpoint has {first} below {len(scopes)} scopes: {', '.join(scopes)}",
            hint=f"keep one: {excludes}",
        )
    return scopes[0] if scopes else ""


def _below(scope: str, name_map: NameMap) -> NameMap:
    """The map with all its foreign names below a scope."""
    if not scope:
        return name_map

    def moved(targets: Mapping[str, Target]) -> dict[str, Target]:
        return {
            scope + stored: replace(target, times=None if target.times is None else scope + target.times)
            for stored, target in targets.items()
        }

    return replace(
        name_map,
        backbone=lambda arguments: moved(name_map.backbone(arguments)),
        head=moved(name_map.head),
        unused={**name_map.unused, **{scope + pattern: why for pattern, why in name_map.unused.items()}},
    )


def convert(checkpoint: ForeignCheckpoint, found: Match) -> dict[str, dict[str, np.ndarray]]:
    """Component → tensor name → float32 array, of a match whose report is complete."""
    components: dict[str, dict[str, np.ndarray]] = {}
    for stored, target in found.targets.items():
        value = turned(checkpoint.tensors[stored], target.layout)
        if target.times is not None:
            value = value * checkpoint.tensors[target.times].astype(np.float32)
        component, _, name = target.name.partition("/")
        components.setdefault(component, {})[name] = np.ascontiguousarray(value, dtype=np.float32)
    return components


def _within(component: str, target: Target) -> Target:
    return replace(target, name=f"{component}/{target.name}")


def _head(checkpoint: ForeignCheckpoint, name_map: NameMap) -> tuple[dict[str, Target], tuple[DenseLayer, ...]]:
    """Stored name → Target of the head: the map's own, or the dense chain that the checkpoint's topology describes."""
    if any(stored in checkpoint.tensors for stored in name_map.head):
        hidden = (
            DenseLayer(name=f"hidden_{place}", activation=activation)
            for place, activation in enumerate(name_map.head_hidden)
        )
        return (
            {stored: _within("head", target) for stored, target in name_map.head.items()},
            (*hidden, DenseLayer(name="logits", activation="softmax")),
        )
    targets: dict[str, Target] = {}
    for place, layer in enumerate(checkpoint.dense):
        ours = "logits" if place == len(checkpoint.dense) - 1 else f"hidden_{place}"
        for part in ("kernel", "bias"):
            targets[f"{layer.name}/{part}"] = Target(name=f"head/{ours}/{part}")
    return targets, checkpoint.dense


def _head_shapes(head: Mapping[str, Target], usable: Mapping[str, np.ndarray], feature_dim: int) -> dict[str, Shape]:
    """What a chain of dense layers must look like: each takes what the one before gives; its width is as stored."""
    stored_of = {target.name: (stored, target) for stored, target in head.items()}
    shapes: dict[str, Shape] = {}
    width = feature_dim
    for name in stored_of:  # in the order of the chain
        if not name.endswith("/kernel"):
            continue
        stored, target = stored_of[name]
        bias = name.removesuffix("kernel") + "bias"
        if stored in usable and usable[stored].ndim == 2:
            units = int(turned(usable[stored], target.layout).shape[-1])
        else:
            units = int(usable[stored_of[bias][0]].size) if stored_of[bias][0] in usable else 0
        shapes[name], shapes[bias] = (width, units), (units,)
        width = units
    return shapes


def _report(
    checkpoint: ForeignCheckpoint,
    name_map: NameMap,
    targets: Mapping[str, Target],
    shapes: Mapping[str, Shape],
    usable: Mapping[str, np.ndarray],
    excluded: Mapping[str, str],
) -> RestoreReport:
    mismatched: list[Mismatch] = []
    missing: list[str] = []
    restored: dict[str, str] = {}  # stored → wanted
    folded: dict[str, list[str]] = {}
    for stored, target in targets.items():
        if stored not in usable:
            missing.append(f"{target.name} (stored as {stored})")
            continue
        if target.times is not None:
            folded.setdefault(target.times, []).append(target.name)
        shape = tuple(turned(usable[stored], target.layout).shape)
        if shape != shapes[target.name]:
            mismatched.append(Mismatch(name=target.name, stored=shape, wanted=shapes[target.name]))
        else:
            restored[stored] = target.name
    for stored, names in folded.items():
        channels = (shapes[names[0]][-1],)
        if stored not in usable:
            missing.append(f"{stored} (to multiply into {names[0]})")
        elif usable[stored].shape != channels:
            mismatched.append(Mismatch(name=stored, stored=tuple(usable[stored].shape), wanted=channels))
    unused = {**checkpoint.aside, **excluded}
    unused |= {stored: "BatchNorm's gamma, multiplied into other tensors" for stored in folded if stored in usable}
    unexplained: list[str] = []
    for stored in usable:
        if stored in targets or stored in unused:
            continue
        reason = next((why for pattern, why in name_map.unused.items() if fnmatchcase(stored, pattern)), None)
        if reason is None:
            unexplained.append(stored)
        else:
            unused[stored] = reason
    return RestoreReport(
        restored=tuple(restored.values()),
        renamed={stored: name for stored, name in restored.items() if stored != name.partition("/")[2]},
        transposed=tuple(name for stored, name in restored.items() if targets[stored].layout != "same"),
        dequantised=tuple(name for stored, name in restored.items() if stored in checkpoint.dequantised),
        widened=tuple(name for stored, name in restored.items() if stored in checkpoint.widened),
        unused=unused,
        unexplained=tuple(unexplained),
        missing=tuple(missing),
        mismatched=tuple(mismatched),
        guess=guess_cause(tuple(mismatched)),
    )
