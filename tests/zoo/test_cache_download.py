"""What becomes of downloads that are interrupted, rivalled, too large, or of blobs that several stores have."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from zoo.cache import BlobCache, CacheTooSmall, CorruptBlob, blob_key, download
from zoo.cache.owner import Owner
from zoo.file_hash import CHUNK_BYTES, FileHash, hash_file
from zoo.store.memory import MemoryStore
from zoo.store.object_store import NoAnswer

CHUNKS = 5


class Counting(MemoryStore):
    """Counts the bytes that were streamed; breaks after `until` of them."""

    def __init__(self, until: int | None = None) -> None:
        super().__init__()
        self.streamed = 0
        self.until = until
        self._guard = threading.Lock()

    def stream(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        for piece in super().stream(key, start=start, length=length):
            with self._guard:
                if self.until is not None and self.streamed + len(piece) > self.until:
                    raise NoAnswer("the connection broke")
                self.streamed += len(piece)
            yield piece


@pytest.fixture(scope="module")
def blob(tmp_path_factory: pytest.TempPathFactory) -> FileHash:
    path = tmp_path_factory.mktemp("blob") / "blob"
    size = (CHUNKS - 1) * CHUNK_BYTES + 1000
    path.write_bytes(np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes())
    return hash_file(path)


def opened(cache: BlobCache, store: MemoryStore, blob: FileHash) -> Path:
    return cache.open_blob(store, blob.digest, size=blob.bytes, chunks=blob.chunks, what="backbone of m@1")


def holding(store: Counting, blob: FileHash) -> Counting:
    store.create_from_file(blob_key(blob.digest), blob.path)
    return store


def test_what_an_interrupted_download_has_is_not_fetched_again(
    tmp_path: Path, blob: FileHash, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "THREADS", 1)  # so that it is known which chunks are whole
    with pytest.raises(NoAnswer):
        opened(BlobCache(tmp_path), holding(Counting(until=3 * CHUNK_BYTES), blob), blob)
    sound = holding(Counting(), blob)
    assert opened(BlobCache(tmp_path), sound, blob).read_bytes() == blob.path.read_bytes()
    assert sound.streamed == blob.bytes - 3 * CHUNK_BYTES
    assert list(tmp_path.rglob("*.partial")) == list(tmp_path.rglob("*.lock")) == []


KILLED = """
import os, signal, sys
from pathlib import Path
from tests.zoo.test_cache_download import Counting, blob_key, hash_file, holding, opened
from zoo.cache import BlobCache, download

download.THREADS = 1

class Kills(Counting):
    def stream(self, key, *, start=0, length=None):
        for piece in super().stream(key, start=start, length=length):
            if self.streamed > 3 * (8 << 20):
                os.kill(os.getpid(), signal.SIGKILL)
            yield piece

blob = hash_file(Path(sys.argv[1]))
opened(BlobCache(Path(sys.argv[2])), holding(Kills(), blob), blob)
"""


def test_a_killed_process_leaves_what_it_has_and_its_lock_is_taken_over(tmp_path: Path, blob: FileHash) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED, str(blob.path), str(tmp_path)], check=False)
    assert killed.returncode == -9
    assert len(list(tmp_path.rglob("*.lock"))) == 1
    sound = holding(Counting(), blob)
    assert opened(BlobCache(tmp_path), sound, blob).read_bytes() == blob.path.read_bytes()
    assert sound.streamed == blob.bytes - 3 * CHUNK_BYTES
    assert list(tmp_path.rglob("*.partial")) == list(tmp_path.rglob("*.lock")) == []


def test_two_who_want_the_same_fetch_it_once(tmp_path: Path, blob: FileHash) -> None:
    store = holding(Counting(), blob)
    paths: list[Path] = []
    threads = [
        threading.Thread(target=lambda: paths.append(opened(BlobCache(tmp_path), store, blob))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths == [tmp_path / blob_key(blob.digest)] * 3
    assert store.streamed == blob.bytes


def test_two_stores_share_one_copy(tmp_path: Path, blob: FileHash) -> None:
    one, two = holding(Counting(), blob), holding(Counting(), blob)
    cache = BlobCache(tmp_path)
    assert opened(cache, one, blob) == opened(cache, two, blob)
    assert (one.streamed, two.streamed) == (blob.bytes, 0)


def test_a_half_uploaded_blob_is_refused(tmp_path: Path, blob: FileHash) -> None:
    store = Counting()
    store.put(blob_key(blob.digest), blob.path.read_bytes()[: 2 * CHUNK_BYTES + 5])
    with pytest.raises(CorruptBlob, match=f"{2 * CHUNK_BYTES + 5} bytes, its manifest says {blob.bytes}"):
        opened(BlobCache(tmp_path), store, blob)
    assert not (tmp_path / blob_key(blob.digest)).exists()


def test_only_the_chunks_of_a_range_are_fetched(tmp_path: Path, blob: FileHash) -> None:
    store = holding(Counting(), blob)
    found = BlobCache(tmp_path).read_range(
        store,
        blob.digest,
        size=blob.bytes,
        chunks=blob.chunks,
        start=CHUNK_BYTES + 10,
        length=100,
        what="backbone of m@1",
    )
    assert found == blob.path.read_bytes()[CHUNK_BYTES + 10 : CHUNK_BYTES + 110]
    assert store.streamed == CHUNK_BYTES


def test_a_blob_larger_than_the_cache(tmp_path: Path, blob: FileHash) -> None:
    with pytest.raises(CacheTooSmall, match="backbone of m@1"):
        opened(BlobCache(tmp_path, limit=CHUNK_BYTES), holding(Counting(), blob), blob)


def test_an_owner_is_known_by_its_process(tmp_path: Path) -> None:
    me = Owner.me()
    assert Owner.parse(str(me)) == me
    assert not me.is_dead()
    ended = subprocess.run(
        [sys.executable, "-c", "from zoo.cache.owner import Owner; print(Owner.me())"],
        capture_output=True,
        text=True,
        check=True,
    )
    other = Owner.parse(ended.stdout.strip())
    assert other is not None
    assert other.is_dead()
