"""`zoo verify`: what is wrong is found, placed and told, whatever else is; and how far it has come."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.zoo.samples import new_catalog, version
from zoo.cache import blob_key
from zoo.catalog import Catalog
from zoo.file_hash import CHUNK_BYTES, FileHash, hash_file
from zoo.log import Event, VersionPublished, encode_event
from zoo.log_keys import event_key
from zoo.manifest import Component
from zoo.store.local import LocalStore
from zoo.store.memory import MemoryStore
from zoo.store.object_store import NoAnswer
from zoo.verify import Problem, Watcher, verify


@pytest.fixture(params=["local", "memory"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Catalog:
    store = LocalStore(tmp_path / "store") if request.param == "local" else MemoryStore()
    return new_catalog(store, tmp_path)


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> FileHash:
    path = tmp_path_factory.mktemp("big") / "backbone"
    path.write_bytes(np.random.default_rng(0).integers(0, 256, 2 * CHUNK_BYTES + 99, np.uint8).tobytes())
    return hash_file(path)


def publish_big(catalog: Catalog, big: FileHash, tmp_path: Path, name: str = "m") -> Component:
    component = Component.of("backbone", big, num_tensors=1)
    small, files = version(tmp_path)
    manifest = small.model_copy(update={"components": (component, small.components[1])})
    files = {digest: path for digest, path in files.items() if digest != small.components[0].digest}
    catalog.publish(name, manifest, files | {component.digest: big.path})
    return component


class Heard(Watcher):
    def __init__(self) -> None:
        self.plan: tuple[int, int] | None = None
        self.bytes = 0
        self.blobs: list[int] = []
        self.at_once = 0
        self._inside = threading.Lock()

    def planned(self, blobs: int, size: int) -> None:
        self.plan = (blobs, size)

    def read(self, count: int) -> None:
        assert self._inside.acquire(blocking=False), "two threads at once"
        self.bytes += count
        self._inside.release()

    def done(self, blobs: int) -> None:
        self.blobs.append(blobs)


def test_the_first_bad_chunk_is_placed(catalog: Catalog, big: FileHash, tmp_path: Path) -> None:
    component = publish_big(catalog, big, tmp_path)
    data = bytearray(big.path.read_bytes())
    data[CHUNK_BYTES + 5] ^= 1
    data[2 * CHUNK_BYTES + 5] ^= 1
    catalog.store.put(blob_key(component.digest), bytes(data))
    heard = Heard()
    report = verify(catalog, watcher=heard)
    [problem] = report.problems
    assert (problem.part, problem.offset) == ("backbone", CHUNK_BYTES)
    assert problem.expected_chunk == f"sha256:{big.chunks[1]}"
    assert problem.found_chunk not in (None, problem.expected_chunk)
    assert f"at byte {CHUNK_BYTES} (2 of 3)" in problem.found
    assert problem.found_chunk in problem.found
    assert report.bytes == heard.bytes


@pytest.mark.parametrize("index", [0, 2])
def test_the_first_and_the_last_chunk(big: FileHash, tmp_path: Path, index: int) -> None:
    catalog = new_catalog(MemoryStore(), tmp_path)
    component = publish_big(catalog, big, tmp_path)
    data = bytearray(big.path.read_bytes())
    data[index * CHUNK_BYTES] ^= 1
    catalog.store.put(blob_key(component.digest), bytes(data))
    assert [problem.offset for problem in verify(catalog).problems] == [index * CHUNK_BYTES]


def test_chunk_hashes_that_are_not_those_of_a_sound_blob(big: FileHash, tmp_path: Path) -> None:
    """Nobody could fetch one tensor of it; its digest is right."""
    catalog = new_catalog(MemoryStore(), tmp_path)
    component = publish_big(catalog, big, tmp_path)
    small, _ = version(tmp_path)
    wrong = component.model_copy(update={"chunks": (big.chunks[1], *big.chunks[1:])})
    catalog.publish("n", small.model_copy(update={"components": (wrong, small.components[1])}), {})
    [problem] = verify(catalog).problems
    assert (problem.reference, problem.offset) == ("n@1", 0)
    assert "the stored bytes are those of the digest" in problem.found


def test_the_watcher_hears_every_byte_and_blob(catalog: Catalog, big: FileHash, tmp_path: Path) -> None:
    component = publish_big(catalog, big, tmp_path)
    for seed in range(2, 12):
        catalog.publish("n", *version(tmp_path, head=seed, backbone=seed))
    lost = catalog.get("n@3").manifest.components[1]
    catalog.store.delete(blob_key(lost.digest))
    heard = Heard()
    report = verify(catalog, watcher=heard)
    assert [problem.found for problem in report.problems] == ["the blob is missing"]
    assert heard.plan == (report.blobs, heard.bytes)
    assert heard.bytes == report.bytes + lost.bytes > component.bytes
    assert heard.blobs == list(range(1, report.blobs + 1))


def test_cards_are_read_too(catalog: Catalog, tmp_path: Path) -> None:
    catalog.publish("m", *version(tmp_path))
    event = catalog.set_card("m", b"# card")
    assert event is not None
    assert verify(catalog).blobs == 4
    digest = catalog.logs.state("m").cards[0].digest
    catalog.store.put(blob_key(digest), b"# cart")
    [problem] = verify(catalog).problems
    assert (problem.reference, problem.part, problem.digest) == ("m", "card", digest)


def test_logs_are_checked_and_strange_keys_told(tmp_path: Path) -> None:
    catalog = new_catalog(MemoryStore(), tmp_path)
    for name in ("m", "n", "newer"):
        catalog.publish(name, *version(tmp_path))
    catalog.store.put("models/m/notes.txt", b"mine")
    catalog.store.put("models/strange%2f/x", b"whose?")
    catalog.store.delete("models/n/log/00000000000000000001.json")
    newer = encode_event(Event.new(seq=3, change=VersionPublished(version=2, digest="sha256:" + "a" * 64)))
    catalog.store.create(event_key("newer", 3), newer.replace(b"PUBLISHED", b"RENAMED"))
    report = verify(catalog)
    found = {(problem.reference, problem.part): problem.found for problem in report.problems}
    assert set(found) == {("m", "log"), ("n", "log"), ("newer", "log"), ("models/strange%2f/x", "key")}
    assert "notes.txt" in found["m", "log"]
    assert "hole" in found["n", "log"]
    assert "newer version" in found["newer", "log"]
    assert (report.versions, report.logs) == (2, 3)  # of `newer` the version that can be read was read
    only = verify(catalog, "n@1")
    assert [(problem.reference, problem.part) for problem in only.problems] == [("n", "log")]


def test_few_are_read_at_once(tmp_path: Path) -> None:
    under_way: list[int] = [0, 0]  # now, at most
    lock = threading.Lock()

    class Slow(MemoryStore):
        def stream(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
            with lock:
                under_way[0] += 1
                under_way[1] = max(under_way)
            time.sleep(0.02)
            yield from super().stream(key, start=start, length=length)
            with lock:
                under_way[0] -= 1

    catalog = new_catalog(Slow(), tmp_path)
    for seed in range(20):
        catalog.publish("m", *version(tmp_path, head=seed, backbone=seed))
    assert verify(catalog).problems == ()
    assert 2 <= under_way[1] <= 8


def test_a_store_that_stops_answering_ends_it(tmp_path: Path) -> None:
    streams: list[str] = []

    class Gone(MemoryStore):
        def stream(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
            streams.append(key)
            if len(streams) > 3:
                raise NoAnswer("nobody there")
            yield from super().stream(key, start=start, length=length)

    catalog = new_catalog(Gone(), tmp_path)
    for seed in range(30):
        catalog.publish("m", *version(tmp_path, head=seed, backbone=seed))
    with pytest.raises(NoAnswer):
        verify(catalog)
    assert len(streams) < 15  # the others aren't asked for


def test_a_file_that_the_disk_does_not_give_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zoo.atomic_file import DiskFault

    store = LocalStore(tmp_path / "store")
    catalog = new_catalog(store, tmp_path)
    one = catalog.publish("m", *version(tmp_path)).version.manifest
    real, bad = store.stream, blob_key(one.components[0].digest)

    def stream(key: str, **more: int) -> Iterator[bytes]:
        if key == bad:
            raise DiskFault(f"cannot read {key}: Input/output error")
        return real(key, **more)

    monkeypatch.setattr(store, "stream", stream)
    catalog.store.put(blob_key(one.components[1].digest), bytes(one.components[1].bytes))
    found = {problem.part: problem.found for problem in verify(catalog).problems}
    assert set(found) == {"backbone", "head"}
    assert "Input/output error" in found["backbone"]


def test_a_problem_is_plain_data() -> None:
    from dataclasses import asdict

    assert set(asdict(Problem(reference="m@1", part="head", digest=None, found="x"))) == {
        "reference",
        "part",
        "digest",
        "found",
        "offset",
        "expected_chunk",
        "found_chunk",
    }
