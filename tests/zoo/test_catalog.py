"""What the catalogue promises its users: versions, aliases, references, lineage, and clear words."""

from __future__ import annotations

import errno
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from tests.zoo.samples import contents, faulty_store, new_catalog, no_pauses, version
from zoo.atomic_file import NoSpace
from zoo.cache import blob_key
from zoo.catalog import Catalog, ForeignVersion, UnknownComponent, UnstorableManifest, open_catalog
from zoo.errors import DataLoss
from zoo.lineage import family
from zoo.log import Deleted, Event, encode_event
from zoo.lookup import DeletedModel, UnknownModel, UnknownVersion
from zoo.manifest import Lineage
from zoo.manifests import DamagedManifest, NewerManifest, manifest_key
from zoo.names import InvalidName
from zoo.search.index import CatalogIndex
from zoo.store.local import LocalStore
from zoo.store.memory import MemoryStore
from zoo.transfer import ChangedFile, MissingBlob, StrangeFile, WrongBytes


@pytest.fixture(params=["local", "memory", "faulty"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    """On a disk; in memory; and behind a network of which one call in twenty fails, each in its way."""
    if request.param == "local":
        return new_catalog(LocalStore(tmp_path / "store"), tmp_path)
    if request.param == "memory":
        return new_catalog(MemoryStore(), tmp_path)
    no_pauses(monkeypatch)
    seed = zlib.crc32(request.node.name.encode())
    return new_catalog(faulty_store(MemoryStore(), seed=seed), tmp_path)


class TestPublish:
    def test_versions_are_counted(self, catalog: Catalog, tmp_path: Path) -> None:
        before = datetime.now(UTC)
        for number in (1, 2, 3):
            manifest, files = version(tmp_path, head=number)
            published = catalog.publish("team/captioner", manifest, files)
            assert published.version.reference == f"team/captioner@{number}"
            assert published.version.number == number
            assert published.version.digest == manifest.digest()
            assert not published.existing
        assert [v.number for v in catalog.versions("team/captioner")] == [1, 2, 3]
        newest = catalog.get("team/captioner")
        assert newest == published.version
        assert newest.manifest == manifest
        assert before <= newest.created <= datetime.now(UTC)

    def test_what_is_newest_already_is_returned(self, catalog: Catalog, tmp_path: Path) -> None:
        manifest, files = version(tmp_path)
        first = catalog.publish("m", manifest, files)
        second = catalog.publish("m", manifest, files)
        assert second.existing
        assert second.bytes_sent == 0
        assert second.version == first.version
        third = catalog.publish("m", manifest, {}, again=True)
        assert (third.existing, third.version.number, third.version.digest) == (False, 2, first.version.digest)

    def test_an_older_version_can_become_the_newest(self, catalog: Catalog, tmp_path: Path) -> None:
        one, two = version(tmp_path, head=1), version(tmp_path, head=2)
        for manifest, files in (one, two, one):
            catalog.publish("m", manifest, files)
        assert [v.digest for v in catalog.versions("m")] == [one[0].digest(), two[0].digest(), one[0].digest()]
        assert catalog.get(f"m@{one[0].digest()}").number == 3  # of equal versions, the newest

    def test_bytes_sent_are_those_written(self, catalog: Catalog, tmp_path: Path) -> None:
        manifest, files = version(tmp_path, head=1, backbone=1)
        parts = [*manifest.components, *manifest.assets]
        assert catalog.publish("parent", manifest, files).bytes_sent == sum(part.bytes for part in parts)
        child, child_files = version(tmp_path, head=2, backbone=1)
        backbone = child.components[0].digest
        del child_files[backbone]  # the parent's own blob needs no file
        before = contents(catalog.store, "blobs/")
        sent = catalog.publish("child", child, child_files).bytes_sent
        added = {key: data for key, data in contents(catalog.store, "blobs/").items() if key not in before}
        assert sent == sum(map(len, added.values())) == child.components[1].bytes + child.assets[0].bytes
        assert blob_key(backbone) in before

    def test_manifests_are_stored_as_canonical_json(self, catalog: Catalog, tmp_path: Path) -> None:
        manifest, files = version(tmp_path)
        catalog.publish("a/b", manifest, files)
        stored = contents(catalog.store)
        assert (
            stored[f"manifests/sha256/{manifest.digest().removeprefix('sha256:')}.json"] == manifest.canonical_bytes()
        )
        assert [key for key in stored if key.startswith("models/")] == [
            "models/a%2Fb/log/00000000000000000001.json",
            "models/a%2Fb/log/00000000000000000002.json",
        ]

    def test_wrong_bytes_get_no_name(self, catalog: Catalog, tmp_path: Path) -> None:
        manifest, files = version(tmp_path)
        digest = manifest.components[1].digest
        data = files[digest].read_bytes()
        files[digest].write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(WrongBytes, match="head") as caught:
            catalog.publish("m", manifest, files)
        assert digest in caught.value.message
        assert contents(catalog.store) == {}

    def test_a_missing_blob_gets_no_name(self, catalog: Catalog, tmp_path: Path) -> None:
        manifest, files = version(tmp_path)
        del files[manifest.components[0].digest]
        with pytest.raises(MissingBlob, match="backbone"):
            catalog.publish("m", manifest, files)
        assert contents(catalog.store) == {}

    def test_a_missing_file_gets_no_name(self, catalog: Catalog, tmp_path: Path) -> None:
        manifest, files = version(tmp_path)
        files[manifest.components[0].digest] = tmp_path / "nothing"
        with pytest.raises(Exception, match="nothing: no such file"):
            catalog.publish("m", manifest, files)
        assert contents(catalog.store) == {}

    def test_files_that_the_manifest_does_not_name_are_refused(self, catalog: Catalog, tmp_path: Path) -> None:
        manifest, files = version(tmp_path)
        with pytest.raises(StrangeFile, match="sha256:0000"):
            catalog.publish("m", manifest, files | {"sha256:" + "0" * 64: tmp_path})
        assert contents(catalog.store) == {}

    def test_a_file_written_to_meanwhile(self, tmp_path: Path) -> None:
        manifest, files = version(tmp_path)
        victim = files[manifest.components[1].digest]

        class Meanwhile(MemoryStore):
            def create_from_file(self, key: str, path: Path, **options: Any) -> None:
                if path == victim:
                    victim.write_bytes(b"something else")
                super().create_from_file(key, path)

        store = Meanwhile()
        with pytest.raises(ChangedFile, match="head"):
            new_catalog(store, tmp_path).publish("m", manifest, files)
        stored = contents(store)
        assert blob_key(manifest.components[1].digest) not in stored
        assert not [key for key in stored if key.startswith(("models/", "manifests/"))]

    @pytest.mark.parametrize("metric", [float("nan"), float("inf"), "\ud800"])
    def test_values_that_json_does_not_have(self, catalog: Catalog, tmp_path: Path, metric: object) -> None:
        manifest, files = version(tmp_path, metrics={"validation": {"loss": metric}})
        with pytest.raises(UnstorableManifest, match="'m' has a value that JSON does not have"):
            catalog.publish("m", manifest, files)
        assert contents(catalog.store) == {}

    def test_a_disk_that_fills_up_at_any_write(self, tmp_path: Path) -> None:
        manifest, files = version(tmp_path, head=2)
        for room in range(10):  # writes that still fit: three blobs, the manifest, the event
            old = new_catalog(LocalStore(tmp_path / f"store-{room}"), tmp_path)
            old.publish("m", *version(tmp_path, head=1))
            left = iter(range(room))

            class Fills(LocalStore):
                def _write(self, file: BinaryIO, data: bytes, left: Iterator[int] = left) -> None:
                    file.write(data[:7])
                    if next(left, None) is None:
                        raise OSError(errno.ENOSPC, "No space left on device")
                    file.write(data[7:])

            try:
                new_catalog(Fills(tmp_path / f"store-{room}"), tmp_path).publish("m", manifest, files)
            except NoSpace:
                assert [v.number for v in old.versions("m")] == [1]
                assert not list((tmp_path / f"store-{room}").rglob(".tmp-*"))
                assert old.publish("m", manifest, files).version.number == 2
            else:
                break
        # The intent, head, vocabulary, manifest, event; the backbone was there, and the feed's hint may fail.
        assert room == 5

    @pytest.mark.parametrize("name", ["", "/", "a//b", "../x", "a b", "-a", "a.", "é", "a/" * 20 + "a", "n" * 65])
    def test_names_that_cannot_be(self, catalog: Catalog, tmp_path: Path, name: str) -> None:
        manifest, files = version(tmp_path)
        with pytest.raises(InvalidName):
            catalog.publish(name, manifest, files)
        assert contents(catalog.store) == {}

    def test_the_longest_name(self, catalog: Catalog, tmp_path: Path) -> None:
        name = "/".join(["n" * 9] * 20)  # 199 characters, 20 segments
        manifest, files = version(tmp_path)
        catalog.publish(name, manifest, files)
        assert catalog.get(name).name == name

    def test_a_deleted_model_takes_no_versions(self, catalog: Catalog, tmp_path: Path) -> None:
        manifest, files = version(tmp_path)
        catalog.publish("m", manifest, files)
        event = Event.new(seq=3, change=Deleted())
        catalog.store.create("models/m/log/00000000000000000003.json", encode_event(event))
        for call in (
            lambda: catalog.publish("m", manifest, files, again=True),
            lambda: catalog.get("m"),
            lambda: catalog.versions("m"),
            lambda: catalog.set_alias("m", "prod", "m@1"),
        ):
            with pytest.raises(DeletedModel, match="deleted"):
                call()
        assert catalog.list() == []
        assert len(catalog.history("m")) == 3


class TestReferences:
    @pytest.fixture
    def filled(self, catalog: Catalog, tmp_path: Path) -> Catalog:
        for name, heads in (("captioner", (1, 2, 3)), ("zoo/inception", (4,))):
            for head in heads:
                catalog.publish(name, *version(tmp_path, head=head))
        catalog.set_alias("captioner", "prod", "captioner@2")
        return catalog

    def test_every_kind(self, filled: Catalog) -> None:
        digest = filled.versions("captioner")[0].digest
        expected = {"captioner": 3, "captioner@latest": 3, "captioner@1": 1, "captioner@prod": 2}
        expected[f"captioner@{digest}"] = 1
        assert {reference: filled.get(reference).number for reference in expected} == expected
        assert filled.get("zoo/inception@1").name == "zoo/inception"

    def test_list(self, filled: Catalog) -> None:
        assert [v.reference for v in filled.list()] == ["captioner@3", "zoo/inception@1"]

    def test_aliases_move(self, filled: Catalog) -> None:
        assert filled.get("captioner@2").aliases == ("prod",)
        moved = filled.set_alias("captioner", "prod", "captioner@3")
        assert (moved.number, moved.aliases) == (3, ("prod",))
        filled.set_alias("captioner", "best", "captioner@prod")
        assert filled.get("captioner").aliases == ("best", "prod")
        assert filled.get("captioner@2").aliases == ()
        before = len(filled.history("captioner"))
        filled.set_alias("captioner", "best", "captioner")
        assert len(filled.history("captioner")) == before  # nothing changed, so nothing happened

    @pytest.mark.parametrize("alias", ["latest", "", "3", "Prod", "a b", "é", "a" * 65])
    def test_aliases_that_cannot_be(self, filled: Catalog, alias: str) -> None:
        with pytest.raises(InvalidName):
            filled.set_alias("captioner", alias, "captioner@1")

    def test_an_alias_stays_in_its_model(self, filled: Catalog) -> None:
        with pytest.raises(ForeignVersion, match="another model"):
            filled.set_alias("captioner", "prod", "zoo/inception@1")

    def test_unknown_versions_say_what_there_is(self, filled: Catalog) -> None:
        for reference in ("captioner@4", "captioner@nope", "captioner@sha256:" + "0" * 64):
            with pytest.raises(UnknownVersion, match=r"versions 1 to 3 and the aliases prod \(= 2\)") as caught:
                filled.get(reference)
            assert caught.value.hint == "zoo history captioner"
        with pytest.raises(UnknownVersion, match="version 1 and no alias"):
            filled.get("zoo/inception@2")

    def test_unknown_models_say_what_there_is(self, filled: Catalog) -> None:
        for name, near in (("captoner", "captioner"), ("inception", "zoo/inception"), ("Captioner", "captioner")):
            with pytest.raises(UnknownModel, match=f"did you mean {near}") as caught:
                filled.get(name)
            assert caught.value.hint == "zoo list"
        with pytest.raises(UnknownModel, match="has captioner, zoo/inception"):
            filled.history("xyz")

    def test_an_empty_catalogue_says_so(self, catalog: Catalog) -> None:
        with pytest.raises(UnknownModel, match=f"the catalogue at {catalog.store.url} is empty"):
            catalog.get("captioner")

    @pytest.mark.parametrize("reference", ["", "@1", "m@", "m@0", "m@sha256:12", "m@1@2", "m@-1", "m@" + "9" * 5000])
    def test_references_that_cannot_be(self, filled: Catalog, reference: str) -> None:
        with pytest.raises(InvalidName):
            filled.get(reference)

    def test_history(self, filled: Catalog) -> None:
        events = filled.history("captioner")
        assert [event.seq for event in events] == [1, 2, 3, 4, 5]
        assert [event.change.type for event in events] == ["CREATED", *["PUBLISHED"] * 3, "ALIAS_SET"]
        assert len({event.id for event in events}) == 5
        assert sorted(event.time for event in events) == [event.time for event in events]


class TestLineage:
    def test_parents_and_children(self, catalog: Catalog, tmp_path: Path) -> None:
        catalog.publish("parent", *version(tmp_path, head=1))
        catalog.publish("child", *version(tmp_path, head=2, lineage=Lineage(parent="parent@1")))
        catalog.publish("child", *version(tmp_path, head=3, lineage=Lineage(parent="parent@1")))
        catalog.publish("grandchild", *version(tmp_path, head=4, lineage=Lineage(parent="child@2")))
        assert children(catalog, "parent") == ["child@1", "child@2"]
        assert children(catalog, "child@1") == []
        assert children(catalog, "child") == ["grandchild@1"]
        assert ancestors(catalog, "grandchild") == (["child@2", "parent@1"], None)

    def test_a_parent_that_is_elsewhere(self, catalog: Catalog, tmp_path: Path) -> None:
        catalog.publish("child", *version(tmp_path, lineage=Lineage(parent="elsewhere@7")))
        assert ancestors(catalog, "child") == ([], "elsewhere@7")

    def test_a_version_that_names_itself(self, catalog: Catalog, tmp_path: Path) -> None:
        catalog.publish("m", *version(tmp_path, lineage=Lineage(parent="m@1")))
        with CatalogIndex.open(catalog) as index:
            tree = family(catalog, index, "m")
        assert "m@1" in {cut.reference for cut in tree.cuts}
        assert (tree.ancestors, tree.descendants) == ((), ())


def children(catalog: Catalog, reference: str) -> list[str]:
    with CatalogIndex.open(catalog) as index:
        return [node.version.reference for node in family(catalog, index, reference).descendants]


def ancestors(catalog: Catalog, reference: str) -> tuple[list[str], str | None]:
    with CatalogIndex.open(catalog) as index:
        tree = family(catalog, index, reference)
    return [version.reference for version in tree.ancestors], tree.missing


class TestDamage:
    @pytest.fixture
    def published(self, tmp_path: Path) -> tuple[Catalog, str]:
        catalog = new_catalog(MemoryStore(), tmp_path)
        return catalog, catalog.publish("m", *version(tmp_path)).version.digest

    def test_a_manifest_with_other_bytes(self, published: tuple[Catalog, str]) -> None:
        catalog, digest = published
        catalog.store.put(manifest_key(digest), b"{}")
        with pytest.raises(DamagedManifest, match="m@1") as caught:
            catalog.get("m")
        assert caught.value.details["expected"] == digest
        catalog.store.delete(manifest_key(digest))
        with pytest.raises(DamagedManifest, match="is not in memory"):
            catalog.get("m")

    def test_publishing_over_a_damaged_manifest(self, published: tuple[Catalog, str], tmp_path: Path) -> None:
        catalog, digest = published
        catalog.store.put(manifest_key(digest), b"{}")
        with pytest.raises(DamagedManifest):
            catalog.publish("other", *version(tmp_path))
        assert not [key for key in contents(catalog.store) if key.startswith("models/other/")]

    def test_a_blob_of_another_size(self, published: tuple[Catalog, str], tmp_path: Path) -> None:
        catalog, _ = published
        manifest, files = version(tmp_path)
        catalog.store.put(blob_key(manifest.components[0].digest), b"cut")
        with pytest.raises(WrongBytes, match="has 3 bytes"):
            catalog.publish("other", manifest, files)

    def test_a_hole_in_the_log(self, published: tuple[Catalog, str], tmp_path: Path) -> None:
        catalog, _ = published
        catalog.store.delete("models/m/log/00000000000000000001.json")
        with pytest.raises(DataLoss, match="has a hole: after event 0 comes 2"):
            new_catalog(catalog.store, tmp_path).get("m")

    def test_a_manifest_of_a_later_version(self, published: tuple[Catalog, str], tmp_path: Path) -> None:
        import hashlib

        catalog, _ = published
        data = version(tmp_path)[0].canonical_bytes().replace(b'"schema_version":1', b'"schema_version":2')
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        catalog.store.create(manifest_key(digest), data)
        event = f'{{"change":{{"digest":"{digest}","type":"PUBLISHED","version":2}},"id":"{"0" * 32}"'
        event += ',"schema_version":1,"seq":3,"time":"2026-01-01T00:00:00Z"}'
        catalog.store.create("models/m/log/00000000000000000003.json", event.encode())
        with pytest.raises(NewerManifest, match="schema_version") as caught:
            catalog.get("m")
        assert caught.value.hint == "upgrade modelzoo"
        assert catalog.get("m@1").number == 1


class TestOpen:
    def test_components_and_assets(self, catalog: Catalog, tmp_path: Path) -> None:
        manifest, files = version(tmp_path)
        published = catalog.publish("m", manifest, files).version
        for part in manifest.components:
            assert catalog.open_component(published, part.name).read_bytes() == files[part.digest].read_bytes()
        asset = catalog.open_asset(published, "vocabulary.json")
        assert asset.read_bytes() == files[manifest.assets[0].digest].read_bytes()

    def test_what_is_not_there(self, catalog: Catalog, tmp_path: Path) -> None:
        manifest, files = version(tmp_path)
        backbone = manifest.components[0]
        only = manifest.model_copy(update={"components": (backbone,), "assets": ()})
        published = catalog.publish("m", only, {backbone.digest: files[backbone.digest]}).version
        with pytest.raises(UnknownComponent, match="m@1 has no component 'head'; it has: backbone"):
            catalog.open_component(published, "head")
        with pytest.raises(UnknownComponent, match="it has: none"):
            catalog.open_asset(published, "vocabulary.json")

    def test_the_default_catalogue(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MODELZOO_STORE", f"file://{tmp_path}/my store")
        open_catalog().publish("m", *version(tmp_path))
        assert [v.reference for v in open_catalog(f"file://{tmp_path}/my%20store").list()] == ["m@1"]
