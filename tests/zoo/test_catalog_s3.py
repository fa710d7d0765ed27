"""The catalogue on a real S3 server; what each part does in detail is told by the tests on memory and disks."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from tests.zoo.samples import contents, new_catalog, version
from zoo.cache import CorruptBlob, blob_key
from zoo.file_hash import CHUNK_BYTES, FileHash, hash_file
from zoo.gc import gc
from zoo.lookup import DeletedModel
from zoo.manifest import Component
from zoo.pull import pull
from zoo.store import open_store
from zoo.store_id import store_id
from zoo.tensors import write_safetensors
from zoo.verify import verify


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


def big_backbone(folder: Path) -> tuple[Component, FileHash]:
    """About 90 MB, as Inception v3's."""
    path = folder / "big.safetensors"
    values = np.random.default_rng(1).standard_normal((90, 250_000)).astype(np.float32)
    write_safetensors(path, {f"layer_{row}/kernel": values[row] for row in range(len(values))})
    file = hash_file(path)
    return Component.of("backbone", file, num_tensors=len(values)), file


def test_a_child_of_a_frozen_backbone_sends_its_head_only(s3_url: str, tmp_path: Path) -> None:
    catalog = new_catalog(open_store(s3_url), tmp_path)
    backbone, file = big_backbone(tmp_path)
    parent, _ = version(tmp_path, components=(backbone,), head=1, assets=(), vocabulary=None)
    assert catalog.publish("parent", parent, {backbone.digest: file}).bytes_sent == backbone.bytes > 90_000_000
    before = sum(info.size for info in catalog.store.list("blobs/"))
    child, files = version(tmp_path, head=2)
    files = {digest: path for digest, path in files.items() if digest != child.components[0].digest}
    child = child.model_copy(update={"components": (backbone, child.components[1])})
    sent = catalog.publish("child", child, files).bytes_sent
    added = sum(info.size for info in catalog.store.list("blobs/")) - before
    assert sent == added
    assert sent <= 0.01 * backbone.bytes


def test_a_flipped_byte_is_found_and_never_cached(s3_url: str, tmp_path: Path) -> None:
    store = open_store(s3_url)
    catalog = new_catalog(store, tmp_path)
    backbone, file = big_backbone(tmp_path)
    manifest, _ = version(tmp_path, components=(backbone,), head=1, assets=(), vocabulary=None)
    published = catalog.publish("m", manifest, {backbone.digest: file}).version
    place = 3 * CHUNK_BYTES + 17
    data = bytearray(file.path.read_bytes())
    data[place] ^= 1
    store.put(blob_key(backbone.digest), bytes(data))
    (problem,) = verify(catalog).problems
    assert (problem.reference, problem.part, problem.digest) == ("m@1", "backbone", backbone.digest)
    with pytest.raises(CorruptBlob, match="component backbone of m@1") as caught:
        pull(catalog, published, tmp_path / "pulled")
    assert caught.value.details["offset"] == str(3 * CHUNK_BYTES)
    assert caught.value.details["expected"] == f"sha256:{backbone.chunks[3]}"
    assert caught.value.details["found"] in caught.value.message
    assert not (tmp_path / "cache" / blob_key(backbone.digest)).exists()
    assert list((tmp_path / "cache" / "blobs").rglob("*.partial")) == []
    assert not (tmp_path / "pulled").exists()
