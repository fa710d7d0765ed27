"""The catalogue on a real S3 server; what each part does in detail is told by the tests on memory and disks."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.zoo.samples import contents, new_catalog, version
from zoo.cache import blob_key
from zoo.gc import gc
from zoo.lookup import DeletedModel
from zoo.store import open_store
from zoo.store_id import store_id


def test_the_life_of_a_model(s3_url: str, tmp_path: Path) -> None:
    catalog = new_catalog(open_store(s3_url), tmp_path / "one")
    assert catalog.list() == []
    samples = [version(tmp_path, head=head) for head in (1, 2, 3)]
    for manifest, files in samples:
        assert not catalog.publish("team/m", manifest, files).existing
    assert catalog.publish("team/m", *samples[2]).existing
    catalog.set_alias("team/m", "prod", "team/m@2")
    catalog.archive("team/m@1")
    catalog.set_card("team/m", b"# card")
    other = new_catalog(open_store(s3_url), tmp_path / "other")
    assert [(v.number, v.aliases, v.archived) for v in other.versions("team/m")] == [
        (1, (), True),
        (2, ("prod",), False),
        (3, (), False),
    ]
    head = samples[1][0].components[1]
    assert (
        other.open_component(other.get("team/m@prod"), "head").read_bytes() == samples[1][1][head.digest].read_bytes()
    )
    state = catalog.delete("team/m")
    assert state.deleted
    with pytest.raises(DeletedModel):
        other.get("team/m")
    assert other.undelete("team/m").card
    assert other.logs.check("team/m") == other.logs.strange_keys() == []
    assert store_id(catalog.store)
    assert list(catalog.store.list("intents/")) == []


def test_threads_of_many_clients_race(s3_url: str, tmp_path: Path) -> None:
    """Losers of a race of three or more wait about a second each on this server."""
    workers, each = 3, 3
    samples = [version(tmp_path, head=number) for number in range(workers * each)]
    barrier = threading.Barrier(workers)

    def publish(worker: int) -> list[int]:
        catalog = new_catalog(open_store(s3_url), tmp_path / str(worker))
        barrier.wait(timeout=60)
        return [catalog.publish("m", *samples[worker * each + i]).version.number for i in range(each)]

    with ThreadPoolExecutor(workers) as pool:
        numbers = [number for mine in pool.map(publish, range(workers)) for number in mine]
    assert sorted(numbers) == list(range(1, workers * each + 1))
    versions = new_catalog(open_store(s3_url), tmp_path / "reader").versions("m")
    assert {v.digest for v in versions} == {manifest.digest() for manifest, _ in samples}


def test_gc(s3_url: str, tmp_path: Path) -> None:
    catalog = new_catalog(open_store(s3_url), tmp_path)
    catalog.publish("m", *version(tmp_path))
    named = contents(catalog.store, "blobs/")
    catalog.store.create(blob_key("sha256:" + "a" * 64), b"12345")
    assert gc(catalog).removed == {}
    assert contents(catalog.store, "blobs/").keys() > named.keys()
    report = gc(catalog, now=datetime.now(UTC) + timedelta(days=2))
    assert report.problems == ()
    assert {kind: tally.count for kind, tally in report.removed.items() if kind != "probes"} == {"blobs": 1}
    assert contents(catalog.store, "blobs/") == named
