"""Matches the names of a foreign checkpoint to an architecture's, one explicit name at a time.

Takes a ForeignCheckpoint, an architecture and one of its name maps. Gives a Match: what fits, what doesn't, and the
tensors in our names and layout. Next: `zoo.importer`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from pydantic import JsonValue

from zoo.architectures.facts import ArchitectureFacts, NameMap, Shape, Target
from zoo.architectures.layouts import turned
from zoo.input_spec import InputSpec
from zoo.readers.checkpoint import DenseLayer, ForeignCheckpoint
from zoo.restore_report import Mismatch, RestoreReport, guess_cause


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
    def label(self) -> str:
        return f"{self.facts.name} ({self.layout} names)"


def match(checkpoint: ForeignCheckpoint, facts: ArchitectureFacts, layout: str, excluded: Mapping[str, str]) -> Match:
    """Fits names and shapes.

    Args:
        excluded: stored name → why the user wants it left out; these count as unused.
    """
    name_map = facts.name_maps[layout]
    arguments = facts.resolved(name_map.arguments)
    backbone = name_map.backbone(arguments)
    shapes = {f"backbone/{name}": shape for name, shape in facts.tensor_shapes(arguments).items()}
    targets = {stored: _within("backbone", target) for stored, target in backbone.items()}
    usable = {name: value for name, value in checkpoint.tensors.items() if name not in excluded}
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
    return Target(name=f"{component}/{target.name}", layout=target.layout, times=target.times)


def _head(checkpoint: ForeignCheckpoint, name_map: NameMap) -> tuple[dict[str, Target], tuple[DenseLayer, ...]]:
    """Stored name → Target of the head: the map's own, or the dense chain that the checkpoint's topology describes."""
    if name_map.head:
        return (
            {stored: _within("head", target) for stored, target in name_map.head.items()},
            (DenseLayer(name="logits", activation="softmax"),),
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
