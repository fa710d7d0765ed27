"""Copies for the user, and the check of everything stored."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.zoo.samples import new_catalog, version
from zoo.atomic_file import FileTaken
from zoo.cache import CorruptBlob, blob_key
from zoo.catalog import Catalog, UnknownComponent
from zoo.manifest import Manifest
from zoo.manifests import manifest_key
from zoo.pull import pull
from zoo.store.local import LocalStore
from zoo.store.memory import MemoryStore
from zoo.verify import verify


@pytest.fixture(params=["local", "memory"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Catalog:
    store = LocalStore(tmp_path / "store") if request.param == "local" else MemoryStore()
    return new_catalog(store, tmp_path)


class TestPull:
    def test_everything(self, catalog: Catalog, tmp_path: Path) -> None:
        manifest, files = version(tmp_path)
        published = catalog.publish("m", manifest, files).version
        pulled = pull(catalog, published, tmp_path / "new/folder")
        names = ["backbone.safetensors", "head.safetensors", "vocabulary.json", "manifest.json"]
        assert [(file.path.name, file.existing) for file in pulled] == [(name, False) for name in names]
        for part, file in zip([*manifest.components, *manifest.assets], pulled, strict=False):
            assert (file.digest, file.bytes) == (part.digest, part.bytes)
            assert file.path.read_bytes() == files[part.digest].read_bytes()
        assert Manifest.model_validate_json((tmp_path / "new/folder/manifest.json").read_bytes()) == manifest
        assert {path.name for path in (tmp_path / "new/folder").iterdir()} == set(names)

    def test_one_component(self, catalog: Catalog, tmp_path: Path) -> None:
        published = catalog.publish("m", *version(tmp_path)).version
        pull(catalog, published, tmp_path / "out", component="head")
        assert {path.name for path in (tmp_path / "out").iterdir()} == {"head.safetensors", "manifest.json"}
        with pytest.raises(UnknownComponent):
            pull(catalog, published, tmp_path / "out", component="tail")

    def test_changing_the_copy_does_not_change_the_store(self, catalog: Catalog, tmp_path: Path) -> None:
        published = catalog.publish("m", *version(tmp_path)).version
        for file in pull(catalog, published, tmp_path / "out"):
            with file.path.open("r+b") as copy:
                copy.write(b"mine")
        assert verify(catalog, "m@1").problems == ()
        catalog.open_component(published, "head")

    def test_again(self, catalog: Catalog, tmp_path: Path) -> None:
        published = catalog.publish("m", *version(tmp_path)).version
        pull(catalog, published, tmp_path / "out", component="backbone")
        again = {file.path.name: file.existing for file in pull(catalog, published, tmp_path / "out")}
        assert again == {
            "backbone.safetensors": True,
            "head.safetensors": False,
            "vocabulary.json": False,
            "manifest.json": True,
        }

    def test_nothing_is_replaced(self, catalog: Catalog, tmp_path: Path) -> None:
        published = catalog.publish("m", *version(tmp_path)).version
        (tmp_path / "out").mkdir()
        (tmp_path / "out/head.safetensors").write_bytes(b"mine")
        with pytest.raises(FileTaken, match=r"head\.safetensors is in the way"):
            pull(catalog, published, tmp_path / "out")
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {"head.safetensors": b"mine"}


class TestVerify:
    def test_all_as_published(self, catalog: Catalog, tmp_path: Path) -> None:
        one, _ = version(tmp_path, head=1)
        two, _ = version(tmp_path, head=2)
        catalog.publish("m", *version(tmp_path, head=1))
        catalog.publish("m", *version(tmp_path, head=2))
        report = verify(catalog)
        parts = {part.digest: part.bytes for m in (one, two) for part in (*m.components, *m.assets)}
        assert (report.versions, report.blobs, report.bytes, report.problems) == (2, 5, sum(parts.values()), ())

    @pytest.mark.parametrize(
        ("spoil", "found"),
        [
            (lambda data: data[:-1] + bytes([data[-1] ^ 1]), "digest sha256:"),
            (lambda data: data[:-1], "bytes are stored"),
        ],
        ids=["other bytes", "cut"],
    )
    def test_damage(self, catalog: Catalog, tmp_path: Path, spoil: object, found: str) -> None:
        """The shared backbone is damaged: both versions are named, the whole head isn't."""
        manifest, files = version(tmp_path, head=1)
        catalog.publish("m", manifest, files)
        catalog.publish("m", *version(tmp_path, head=2))
        key = blob_key(manifest.components[0].digest)
        catalog.store.put(key, spoil(catalog.store.read(key)))  # type: ignore[operator]
        problems = verify(catalog).problems
        assert [(p.reference, p.part, p.digest) for p in problems] == [
            ("m@1", "backbone", manifest.components[0].digest),
            ("m@2", "backbone", manifest.components[0].digest),
        ]
        assert all(found in p.found for p in problems)

    def test_a_missing_blob(self, catalog: Catalog, tmp_path: Path) -> None:
        manifest, files = version(tmp_path)
        published = catalog.publish("m", manifest, files).version
        catalog.store.delete(blob_key(manifest.assets[0].digest))
        (problem,) = verify(catalog, "m@1").problems
        assert (problem.part, problem.found) == ("vocabulary.json", "the blob is missing")
        with pytest.raises(CorruptBlob):
            catalog.open_asset(published, "vocabulary.json")

    def test_damage_to_one_does_not_hide_the_others(self, catalog: Catalog, tmp_path: Path) -> None:
        for number, name in enumerate("abcd"):
            catalog.publish(name, *version(tmp_path, head=number))
        catalog.store.delete(manifest_key(catalog.get("a").digest))
        catalog.store.delete("models/b/log/00000000000000000001.json")
        catalog.store.delete(blob_key(catalog.get("c").manifest.components[1].digest))
        report = verify(catalog)
        assert report.versions == 2
        assert sorted((p.reference, p.part) for p in report.problems) == [
            ("a@1", "manifest"),
            ("b", "log"),
            ("c@1", "head"),
        ]
