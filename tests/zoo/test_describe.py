"""`zoo show --format json` is a promise; these are its fields."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

from tests.zoo.samples import new_catalog, version
from zoo.cli.look import moved_text
from zoo.describe import describe, describe_event, rfc3339
from zoo.input_spec import InputSpec
from zoo.manifest import Architecture, Lineage
from zoo.store.memory import MemoryStore

PROMISED = {
    "name",
    "version",
    "digest",
    "aliases",
    "architecture",
    "components",
    "input_spec",
    "head",
    "classes",
    "vocabulary_size",
    "license",
    "lineage",
    "metrics",
    "created",
}


def test_every_promised_field(tmp_path: Path) -> None:
    catalog = new_catalog(MemoryStore(), tmp_path)
    manifest, files = version(tmp_path)
    catalog.publish("m", manifest, files)
    published = catalog.set_alias("m", "prod", "m@1")
    value = json.loads(json.dumps(describe(published)))
    assert set(value) >= PROMISED
    backbone, head = manifest.components
    expected = {
        "name": "m",
        "version": 1,
        "digest": manifest.digest(),
        "aliases": ["prod"],
        "architecture": "inception_v3",
        "components": [
            {"name": "backbone", "digest": backbone.digest, "bytes": backbone.bytes, "num_tensors": 2},
            {"name": "head", "digest": head.digest, "bytes": head.bytes, "num_tensors": 2},
        ],
        "input_spec": json.loads(InputSpec(height=299, width=299).model_dump_json()),
        "head": "captioner",
        "classes": None,
        "vocabulary_size": 3,
        "license": "MIT",
        "lineage": {
            "parent": None,
            "parent_digest": None,
            "job": "job-1",
            "source": {"kind": "tfjs", "location": "folder", "digest": None},
            "tensors": {"restored": 0, "renamed": 0, "frozen": 2, "trained": 0, "fresh": 1},
            "moved": {},
        },
        "metrics": {"validation": {"bleu_4": 0.15}},
        "created": rfc3339(published.created),
    }
    assert {key: value[key] for key in PROMISED} == expected


def test_a_version_with_next_to_nothing(tmp_path: Path) -> None:
    catalog = new_catalog(MemoryStore(), tmp_path)
    manifest, files = version(
        tmp_path,
        architecture=Architecture(name="efficientnet_lite0", arguments={"width": 0.125}),
        classes=("cat", "dog"),
        class_offset=1,
        vocabulary=None,
        license=None,
        lineage=Lineage(),
        metrics={},
    )
    value = describe(catalog.publish("m", manifest.model_copy(update={"head": None}), files).version)
    assert (value["head"], value["vocabulary_size"], value["license"], value["metrics"]) == (None, None, None, {})
    assert (value["classes"], value["class_offset"], value["aliases"]) == (["cat", "dog"], 1, [])
    assert (value["architecture"], value["architecture_arguments"]) == ("efficientnet_lite0", {"width": 0.125})
    assert value["lineage"]["source"] is None


def test_events(tmp_path: Path) -> None:
    catalog = new_catalog(MemoryStore(), tmp_path)
    manifest, files = version(tmp_path)
    catalog.publish("m", manifest, files)
    created, published = [describe_event(event) for event in catalog.history("m")]
    assert (created["seq"], created["type"]) == (1, "CREATED")
    assert {key: published[key] for key in ("seq", "type", "version", "digest")} == {
        "seq": 2,
        "type": "PUBLISHED",
        "version": 1,
        "digest": manifest.digest(),
    }


def test_times_are_utc() -> None:
    assert rfc3339(datetime(2026, 2, 3, 4, 5, 6, 789012, tzinfo=UTC)) == "2026-02-03T04:05:06.789012Z"
    east = timezone(timedelta(hours=2))
    assert rfc3339(datetime(2026, 2, 3, 4, 5, 6, tzinfo=east)) == "2026-02-03T02:05:06.000000Z"


def test_what_moved_is_said_in_a_line() -> None:
    moved = {
        "backbone/top/kernel": 0.25,
        "backbone/top/beta": 0.5,
        "backbone/a": 0.001,
        "backbone/b": 0.001,
        "c": 0.002,
    }
    said = "5 tensors, by 0.2 % in the middle, most backbone/top/beta 50 %, backbone/top/kernel 25 %, c 0.2 %"
    assert moved_text(moved) == said
    assert moved_text({}) == ""
