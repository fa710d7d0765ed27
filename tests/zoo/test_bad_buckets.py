"""Buckets that others wrote to, that can't be written to, or that hold what only a later version understands."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.zoo.samples import FailingStore, contents, new_catalog, version
from zoo.catalog import Catalog
from zoo.errors import DataLoss, PermissionDenied, ZooError
from zoo.file_hash import hash_file
from zoo.lineage import family
from zoo.log import DamagedLog, Event, NewerLog, VersionPublished, encode_event
from zoo.lookup import UnknownModel
from zoo.manifest import Manifest, canonical_json
from zoo.manifests import DamagedManifest, NewerManifest, manifest_key
from zoo.model_logs import ModelLogs
from zoo.search.index import CatalogIndex
from zoo.store.local import LocalStore
from zoo.store.memory import MemoryStore

BAD_ENDS: dict[str, Callable[[int], bytes]] = {
    "no JSON": lambda seq: b"{",
    "newer type": lambda seq: event_of(seq).replace(b"PUBLISHED", b"PUBLISHED_TWICE"),
    "newer schema": lambda seq: event_of(seq).replace(b'"schema_version":1', b'"schema_version":7'),
    "impossible": lambda seq: event_of(seq).replace(b'"version":3', b'"version":9'),
}


def event_of(seq: int) -> bytes:
    return encode_event(Event.new(seq=seq, change=VersionPublished(version=3, digest="sha256:" + "a" * 64)))


@pytest.fixture(params=["local", "memory"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Catalog:
    store = LocalStore(tmp_path / "store") if request.param == "local" else MemoryStore()
    catalog = new_catalog(store, tmp_path)
    for name in ("m", "other"):
        for head in (1, 2):
            catalog.publish(name, *version(tmp_path, head=head))
    return catalog


class TestALogWithABadEnd:
    @pytest.fixture(params=list(BAD_ENDS))
    def bad(self, catalog: Catalog, request: pytest.FixtureRequest) -> Catalog:
        catalog.store.create("models/m/log/00000000000000000004.json", BAD_ENDS[request.param](4))
        return catalog

    @pytest.mark.parametrize("warm", [True, False])
    def test_what_is_before_can_be_had_by_number(self, bad: Catalog, tmp_path: Path, warm: bool) -> None:
        catalog = bad if warm else new_catalog(bad.store, tmp_path / "new")
        digest = version(tmp_path, head=1)[0].digest()
        assert catalog.get("m@1").digest == catalog.get(f"m@{digest}").digest == digest
        assert catalog.open_component(catalog.get("m@2"), "head").exists()
        for reference in ("m", "m@latest", "m@prod"):
            with pytest.raises(
                (DamagedLog, NewerLog), match="it has the versions 1 to 2, which can be had by"
            ) as caught:
                catalog.get(reference)
            assert (caught.value.hint or "").endswith("; or m@2")

    def test_the_others_are_listed(self, bad: Catalog, caplog: pytest.LogCaptureFixture) -> None:
        problems: list[tuple[str, ZooError]] = []
        listed = bad.list(lambda name, error: problems.append((name, error)))
        assert [v.reference for v in listed] == ["other@2"]
        ((name, error),) = problems
        assert name == "m"
        assert isinstance(error, DamagedLog | NewerLog)
        with caplog.at_level(logging.WARNING):
            assert [v.reference for v in bad.list()] == ["other@2"]
        assert "model m is left out" in caplog.text
        with CatalogIndex.open(bad) as index:
            assert family(bad, index, "other@1").descendants == ()
        assert len(bad.logs.check("m")) == 1

    def test_nothing_is_committed_to_it(self, bad: Catalog, tmp_path: Path) -> None:
        before = contents(bad.store)
        for call in (
            lambda: bad.publish("m", *version(tmp_path, head=5)),
            lambda: bad.set_alias("m", "prod", "m@1"),
            lambda: bad.archive("m@1"),
            lambda: bad.delete("m"),
            lambda: bad.undelete("m"),
            lambda: bad.set_card("m", b"text"),
        ):
            with pytest.raises((DamagedLog, NewerLog)):
                call()
        assert contents(bad.store) == before


class TestNamesThatAreNone:
    KEYS = (
        "models/a b/log/00000000000000000001.json",
        "models/a%2f b/log/00000000000000000001.json",
        "models/%2E%2E/log/00000000000000000001.json",
        "models/..%2Fetc/log/00000000000000000001.json",
        "models/a%2F%2Fb/log/00000000000000000001.json",
        "models/\u00e9/log/00000000000000000001.json",
        "models/" + "n" * 65 + "/log/00000000000000000001.json",
        "models/readme.txt",
        "models/m/log/1.json",
        "models/m/log/00000000000000000000.json",
        "models/m/other/00000000000000000001.json",
        "models/m/snapshot/latest.json",
    )

    def test_they_are_reported_and_not_followed(self) -> None:
        store = MemoryStore()
        for key in self.KEYS:
            store.create(key, b"{}")
        store.create(
            "models/good%2Fone/log/00000000000000000001.json", event_of(1).replace(b'"version":3', b'"version":1')
        )
        logs = ModelLogs(store)
        assert logs.names() == ["good/one", "m"]
        assert sorted(logs.strange_keys()) == sorted(self.KEYS)
        problems: list[str] = []
        assert [state.name for state in logs.states(lambda name, error: problems.append(name))] == ["good/one"]
        assert problems == ["m"]
        assert len(logs.check("m")) == 4 + 1  # the strange keys, and that the log can't be read

    def test_a_log_that_was_wiped_and_begun_again(self, catalog: Catalog, tmp_path: Path) -> None:
        """A server keeps states in memory; the store below it is deleted and filled anew."""
        assert catalog.get("m").number == 2
        for key in contents(catalog.store):
            catalog.store.delete(key)
        with pytest.raises(UnknownModel):
            catalog.get("m")
        new_catalog(catalog.store, tmp_path / "new").publish("m", *version(tmp_path, head=7))
        assert catalog.get("m").digest == version(tmp_path, head=7)[0].digest()
        new_catalog(catalog.store, tmp_path / "new").publish("m", *version(tmp_path, head=8))
        assert [v.number for v in catalog.versions("m")] == [1, 2]
        assert catalog.publish("m", *version(tmp_path, head=9)).version.number == 3


class TestManifests:
    def named(self, catalog: Catalog, change: Callable[[dict], None], tmp_path: Path) -> None:  # type: ignore[type-arg]
        """Makes m@3 a version whose manifest somebody else wrote."""
        value = json.loads(version(tmp_path, head=1)[0].canonical_bytes())
        change(value)
        data = canonical_json(value)
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        catalog.store.create(manifest_key(digest), data)
        catalog.logs.commit("m", lambda state: VersionPublished(version=3, digest=digest))

    @pytest.mark.parametrize("name", ["../../../etc/passwd", "/etc/passwd", "a/b.json", "..", "x.json\n", "a\0.json"])
    def test_a_path_outside_its_folder(self, catalog: Catalog, tmp_path: Path, name: str) -> None:
        self.named(catalog, lambda value: value["assets"][0].update(name=name), tmp_path)
        with pytest.raises(DamagedManifest, match=r"m@3: .* is no plain file name") as caught:
            catalog.get("m")
        assert repr(name) in caught.value.message
        assert caught.value.hint == "zoo verify"
        assert [v.reference for v in catalog.list(lambda *_: None)] == ["other@2"]
        assert catalog.get("m@2").number == 2

    def test_a_component_of_another_name(self, catalog: Catalog, tmp_path: Path) -> None:
        self.named(catalog, lambda value: value["components"][0].update(name="../x"), tmp_path)
        with pytest.raises(DamagedManifest, match=r"components\.0\.name"):
            catalog.get("m")

    @pytest.mark.parametrize(
        "change", [lambda value: value.update(schema_version=2), lambda value: value.update(licence_text="…")]
    )
    def test_of_a_later_version(self, catalog: Catalog, tmp_path: Path, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
        self.named(catalog, change, tmp_path)
        with pytest.raises(NewerManifest, match="m@3: this version of the zoo cannot read") as caught:
            catalog.get("m")
        assert caught.value.hint == "upgrade modelzoo"

    def test_what_is_missing_from_it(self, catalog: Catalog, tmp_path: Path) -> None:
        self.named(catalog, lambda value: value.pop("components"), tmp_path)
        with pytest.raises(DamagedManifest, match="components"):
            catalog.get("m")

    def test_a_remote_one_is_fetched_once_and_kept_verified(self, tmp_path: Path) -> None:
        store = MemoryStore()
        digest = new_catalog(store, tmp_path / "first").publish("m", *version(tmp_path)).version.digest
        counting = FailingStore(store, lambda *_: None)
        for _ in range(3):
            assert new_catalog(counting, tmp_path / "second").get("m").digest == digest
        assert counting.calls.count(("read", manifest_key(digest))) == 1
        kept = tmp_path / "second" / "cache" / manifest_key(digest)
        kept.write_bytes(kept.read_bytes().replace(b"MIT", b"GPL"))
        assert new_catalog(counting, tmp_path / "second").get("m").manifest.license == "MIT"
        assert counting.calls.count(("read", manifest_key(digest))) == 2
        assert kept.read_bytes() == store.read(manifest_key(digest))


class TestReadOnly:
    @pytest.fixture
    def read_only(self, tmp_path: Path) -> Catalog:
        store = MemoryStore()
        full = new_catalog(store, tmp_path)
        full.publish("m", *version(tmp_path, head=1))
        full.set_card("m", b"text")

        def refuse(number: int, name: str, key: str, before: bool) -> None:
            if name not in ("read", "list", "stat", "folders", "stream", "download", "leftovers"):
                raise PermissionDenied(f"{name} {key}: read-only")

        return new_catalog(FailingStore(store, refuse), tmp_path / "reader")

    def test_everything_but_writing_works(self, read_only: Catalog, tmp_path: Path) -> None:
        version_1 = read_only.get("m")
        assert [v.reference for v in read_only.list()] == ["m@1"]
        assert read_only.open_component(version_1, "head").exists()
        assert read_only.read_blob(read_only.logs.state("m").cards[0].digest) == b"text"
        assert len(read_only.history("m")) == 3
        assert read_only.logs.check("m") == []
        assert read_only.publish("m", *version(tmp_path, head=1)).existing  # nothing needs to be written

    def test_writing_says_so(self, read_only: Catalog, tmp_path: Path) -> None:
        for call in (
            lambda: read_only.publish("m", *version(tmp_path, head=2)),
            lambda: read_only.set_alias("m", "prod", "m@1"),
            lambda: read_only.delete("m"),
            lambda: read_only.set_card("m", b"another"),
        ):
            with pytest.raises(PermissionDenied, match="read-only"):
                call()


class TestFiles:
    def test_a_hashed_file_is_not_hashed_again(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        manifest, files = version(tmp_path)
        hashed = {digest: hash_file(path) for digest, path in files.items()}
        read: list[Path] = []
        monkeypatch.setattr("zoo.transfer.hash_file", lambda path: read.append(path) or hash_file(path))
        assert new_catalog(MemoryStore(), tmp_path).publish("m", manifest, hashed).bytes_sent > 0
        assert read == []
        changed = files[manifest.assets[0].digest]
        changed.write_bytes(changed.read_bytes())  # another mark, the same bytes
        new_catalog(MemoryStore(), tmp_path).publish("m", manifest, hashed)
        assert read == [changed]
        changed.write_bytes(b"other bytes")
        with pytest.raises(ZooError, match="is not what the manifest says"):
            new_catalog(MemoryStore(), tmp_path).publish("m", manifest, hashed)

    def test_a_repeat_sends_only_what_is_missing(self, tmp_path: Path) -> None:
        """A publish whose n-th blob fails, again and again: each blob is sent once in all."""
        manifest, files = version(tmp_path)
        store, sent = MemoryStore(), []

        def fail(number: int, name: str, key: str, before: bool) -> None:
            if name == "create_from_file" and before and len(sent) % 2:
                sent.append("")
                raise DataLoss("the disk is on fire")
            if name == "create_from_file" and not before:
                sent.append(key)

        monkey = FailingStore(store, fail)
        for _ in range(10):
            try:
                published = new_catalog(monkey, tmp_path).publish("m", manifest, files)
                break
            except DataLoss:
                continue
        keys = [key for key in sent if key]
        assert sorted(keys) == sorted(set(keys))
        assert len(keys) == 3
        assert published.version.number == 1


def test_manifest_of_the_sample_is_read_back(tmp_path: Path) -> None:
    manifest, _ = version(tmp_path)
    assert Manifest.model_validate_json(manifest.canonical_bytes()) == manifest
