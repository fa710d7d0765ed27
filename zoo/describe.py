"""A ModelVersion as JSON values: what `zoo show --format json` promises, for every door."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from typing import Any, get_args

from zoo.catalog import ModelVersion
from zoo.log import Event
from zoo.manifest import Fate, Lineage


def describe(version: ModelVersion) -> dict[str, Any]:
    """Every field of `zoo show`; absent ones are None. `metrics`: split → metric → value."""
    manifest = version.manifest
    return {
        "name": version.name,
        "version": version.number,
        "reference": version.reference,
        "digest": version.digest,
        "aliases": list(version.aliases),
        "archived": version.archived,
        "architecture": manifest.architecture.name,
        "architecture_arguments": dict(manifest.architecture.arguments),
        "components": [
            {"name": c.name, "digest": c.digest, "bytes": c.bytes, "num_tensors": c.num_tensors}
            for c in manifest.components
        ],
        "assets": [{"name": a.name, "digest": a.digest, "bytes": a.bytes} for a in manifest.assets],
        "input_spec": manifest.input_spec.model_dump(mode="json"),
        "head": manifest.head.kind if manifest.head else None,
        "head_arguments": dict(manifest.head.arguments) if manifest.head else None,
        "classes": list(manifest.classes) if manifest.classes is not None else None,
        "class_offset": manifest.class_offset,
        "vocabulary_size": manifest.vocabulary.size if manifest.vocabulary else None,
        "license": manifest.license,
        "lineage": _lineage(manifest.lineage),
        "metrics": {split: dict(values) for split, values in manifest.metrics.items()},
        "spec": manifest.spec,
        "tools": dict(manifest.tools),
        "created": rfc3339(version.created),
    }


def _lineage(lineage: Lineage) -> dict[str, Any]:
    fates = Counter(lineage.tensors.values())
    return {
        "parent": lineage.parent,
        "parent_digest": lineage.parent_digest,
        "job": lineage.job,
        "source": lineage.source.model_dump(mode="json") if lineage.source else None,
        "tensors": {fate: fates[fate] for fate in get_args(Fate)},
        "moved": dict(sorted(lineage.moved.items())),
    }


def describe_event(event: Event) -> dict[str, Any]:
    """One line of `zoo history`: seq, time, type, and what that type has."""
    change = event.change.model_dump(mode="json")
    return {"seq": event.seq, "time": rfc3339(event.time), "type": change.pop("type"), **change, "id": event.id}


def rfc3339(moment: datetime) -> str:
    """UTC, e.g. `2026-02-03T04:05:06.789012Z`."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
