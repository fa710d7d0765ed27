"""A blob is handed out only with the bytes of its digest."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.zoo.samples import FailingStore, new_catalog, version
from zoo.cache import BlobCache, CorruptBlob, blob_key, file_digest
from zoo.cache import blob as blob_module
from zoo.catalog import Catalog, ModelVersion
from zoo.errors import Unavailable
from zoo.store.local import LocalStore
from zoo.store.memory import MemoryStore


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were hashed, in order."""
    seen: list[Path] = []
    real = blob_module.file_digest

    def counting(path: Path) -> str:
        seen.append(path)
        return real(path)

    monkeypatch.setattr(blob_module, "file_digest", counting)
    return seen


@pytest.fixture
def local(tmp_path: Path) -> tuple[Catalog, ModelVersion, Path]:
    catalog = new_catalog(LocalStore(tmp_path / "store"), tmp_path)
    published = catalog.publish("m", *version(tmp_path)).version
    return catalog, published, tmp_path / "store" / blob_key(published.manifest.components[1].digest)


def flip(path: Path, *, keep_time: bool = False) -> None:
    """Changes one byte, not the size."""
    path.chmod(0o644)  # blobs are read-only
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


class TestLocal:
    def test_the_blob_itself_is_used_and_hashed_once(
        self, local: tuple[Catalog, ModelVersion, Path], hashed: list[Path]
    ) -> None:
        catalog, published, blob = local
        for _ in range(3):
            assert catalog.open_component(published, "head") == blob
        assert hashed == [blob]
        assert not (blob.parents[4] / "cache/blobs").exists()

    def test_corruption_names_the_component_and_both_digests(self, local: tuple[Catalog, ModelVersion, Path]) -> None:
        catalog, published, blob = local
        flip(blob)
        with pytest.raises(CorruptBlob, match="component head of m@1") as caught:
            catalog.open_component(published, "head")
        found = file_digest(blob)
        assert found in caught.value.message
        assert published.manifest.components[1].digest in caught.value.message
        assert catalog.open_component(published, "backbone")

    def test_corruption_after_it_was_verified(self, local: tuple[Catalog, ModelVersion, Path]) -> None:
        catalog, published, blob = local
        catalog.open_component(published, "head")
        os.utime(blob, ns=(1, 1))  # so that the change shows whatever the clock's resolution
        flip(blob)
        with pytest.raises(CorruptBlob):
            catalog.open_component(published, "head")

    def test_the_size_is_compared_every_time(self, local: tuple[Catalog, ModelVersion, Path]) -> None:
        catalog, published, blob = local
        catalog.open_component(published, "head")
        blob.chmod(0o644)
        os.truncate(blob, blob.stat().st_size - 1)
        with pytest.raises(CorruptBlob, match=r"has \d+ bytes, its manifest says"):
            catalog.open_component(published, "head")

    def test_a_missing_blob(self, local: tuple[Catalog, ModelVersion, Path]) -> None:
        catalog, published, blob = local
        blob.unlink()
        with pytest.raises(CorruptBlob, match="component head of m@1: its blob sha256:"):
            catalog.open_component(published, "head")

    @pytest.mark.parametrize("stamp", [b"", b"{", b"[]", b'{"size": 1}'])
    def test_a_damaged_stamp_means_hashing_again(
        self, local: tuple[Catalog, ModelVersion, Path], tmp_path: Path, hashed: list[Path], stamp: bytes
    ) -> None:
        catalog, published, blob = local
        catalog.open_component(published, "head")
        (path,) = (tmp_path / "cache/verified").iterdir()
        path.write_bytes(stamp)
        catalog.open_component(published, "head")
        catalog.open_component(published, "head")
        assert hashed == [blob, blob]

    def test_no_stamp_is_no_error(self, local: tuple[Catalog, ModelVersion, Path], hashed: list[Path]) -> None:
        catalog, published, blob = local
        # /proc takes no directories, whoever asks
        sealed = Catalog(catalog.store, BlobCache(Path("/proc/modelzoo-cache")))
        assert sealed.open_component(published, "head") == blob
        assert sealed.open_component(published, "head") == blob
        assert hashed == [blob, blob]

    def test_two_stores_with_the_same_blob_do_not_share_a_stamp(
        self, local: tuple[Catalog, ModelVersion, Path], tmp_path: Path
    ) -> None:
        catalog, published, blob = local
        catalog.open_component(published, "head")
        other = new_catalog(LocalStore(tmp_path / "other"), tmp_path)
        copied = other.publish("m", *version(tmp_path)).version
        flip(tmp_path / "other" / blob.relative_to(tmp_path / "store"))
        with pytest.raises(CorruptBlob):
            other.open_component(copied, "head")
        assert catalog.open_component(published, "head") == blob


class TestRemote:
    @pytest.fixture
    def remote(self, tmp_path: Path) -> tuple[Catalog, ModelVersion, FailingStore]:
        store = FailingStore(MemoryStore(), lambda *_: None)
        catalog = new_catalog(store, tmp_path)
        return catalog, catalog.publish("m", *version(tmp_path)).version, store

    def test_downloaded_once_and_only_what_is_asked(
        self, remote: tuple[Catalog, ModelVersion, FailingStore], tmp_path: Path
    ) -> None:
        catalog, published, store = remote
        paths = {catalog.open_component(published, "backbone") for _ in range(3)}
        digest = published.manifest.components[0].digest
        assert paths == {tmp_path / "cache" / blob_key(digest)}
        assert [call for call in store.calls if call[0] == "stream"] == [("stream", blob_key(digest))]

    def test_a_bad_copy_is_fetched_again(self, remote: tuple[Catalog, ModelVersion, FailingStore]) -> None:
        catalog, published, store = remote
        path = catalog.open_component(published, "head")
        good = path.read_bytes()
        for spoil in (lambda: os.truncate(path, 5), lambda: (os.utime(path, ns=(1, 1)), flip(path))):
            spoil()
            assert catalog.open_component(published, "head").read_bytes() == good
        assert sum(name == "stream" for name, _ in store.calls) == 3

    def test_wrong_bytes_never_get_the_name(
        self, remote: tuple[Catalog, ModelVersion, FailingStore], tmp_path: Path
    ) -> None:
        catalog, published, store = remote
        digest = published.manifest.components[1].digest
        store.put(blob_key(digest), b"x" * published.manifest.components[1].bytes)
        with pytest.raises(CorruptBlob, match="component head of m@1") as caught:
            catalog.open_component(published, "head")
        assert digest in caught.value.message
        assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []

    def test_a_blob_that_the_store_lost(self, remote: tuple[Catalog, ModelVersion, FailingStore]) -> None:
        catalog, published, store = remote
        store.delete(blob_key(published.manifest.components[1].digest))
        with pytest.raises(CorruptBlob, match="is not in memory"):
            catalog.open_component(published, "head")

    def test_a_cut_download_leaves_nothing(self, tmp_path: Path) -> None:
        memory = MemoryStore()
        published = new_catalog(memory, tmp_path).publish("m", *version(tmp_path)).version

        class Cuts(MemoryStore):
            def stream(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
                yield memory.read(key, start=start, length=length)[:10]
                raise Unavailable("the connection broke")

        catalog = new_catalog(Cuts(), tmp_path)
        with pytest.raises(Unavailable):
            catalog.open_component(published, "head")
        assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
