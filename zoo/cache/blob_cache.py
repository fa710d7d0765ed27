"""BlobCache: a verified local file for a blob.

Takes a store and a digest. Gives the path of a file with exactly those bytes. Next: `zoo.tensors`.

A blob of a store on this machine's disk is used where it lies; one of a remote store is downloaded once, under its
digest, whichever store it comes from. Either is hashed when it is first opened; a small stamp then remembers
(size, mtime, inode), so that later opens only compare those. Nothing rests on a lock: a file gets its final name by a
rename, after it was verified.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from zoo.atomic_file import NoSpace, fsync_directory, make_directories, storage_error
from zoo.byte_count import OnBytes, nobody_listens
from zoo.cache.blob import Blob, CorruptBlob, Span
from zoo.cache.download import Download
from zoo.cache.eviction import cache_limit, make_room
from zoo.cache.lock import DownloadLock, take_or_wait
from zoo.cache.owner import Owner
from zoo.cache.partial import Partial, read_at
from zoo.cache.stamps import Stamps, boot_id
from zoo.errors import InvalidArgument
from zoo.store.object_store import ObjectStore


def default_cache_root() -> Path:
    """`MODELZOO_CACHE`, else the user's cache directory."""
    from platformdirs import user_cache_path

    chosen = os.environ.get("MODELZOO_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else user_cache_path("modelzoo")


class BlobCache:
    """Safe to share between threads and processes; `root` is made when it is first needed.

    limit: bytes that `root/blobs` may hold, 0 for any number; None means `MODELZOO_CACHE_LIMIT`, else 20 GB.
    """

    def __init__(self, root: Path, *, limit: int | None = None) -> None:
        self._root = root
        self._limit = limit
        self._stamps = Stamps(root / "verified")

    @property
    def root(self) -> Path:
        return self._root

    def open_blob(
        self,
        store: ObjectStore,
        digest: str,
        *,
        size: int,
        what: str,
        chunks: Sequence[str] = (),
        on_bytes: OnBytes = nobody_listens,
    ) -> Path:
        """A local file with the blob's bytes, verified. `what` names it in errors, e.g. `head of captioner@3`.

        What another process is downloading is waited for; what an interrupted one has left is gone on with. `on_bytes`
        is called with counts that add up to `size`, from one thread at a time. The path is good for some minutes; a
        file that is open by then stays whole whatever becomes of its name.
        Raises CorruptBlob saying where which digest was expected and found, CacheTooSmall, InvalidCacheLimit, and the
        errors of the store and the disk.
        """
        blob = Blob(digest=digest, size=size, what=what, chunks=tuple(chunks))
        path = store.local_path(blob.key)
        if path is not None:
            self._verify(path, blob)
            on_bytes(size)
            return path
        path = self._root / blob.key
        if self._is_cached(path, blob):
            on_bytes(size)
        else:
            self._fetch(store, path, blob, on_bytes)
        return path

    def read_range(
        self,
        store: ObjectStore,
        digest: str,
        *,
        size: int,
        start: int,
        length: int,
        what: str,
        chunks: Sequence[str] = (),
        on_bytes: OnBytes = nobody_listens,
    ) -> bytes:
        """Some of the blob's bytes. Of a remote one only the chunks that hold them are fetched, verified and kept.

        A blob whose chunk hashes aren't known is fetched whole. Raises InvalidArgument for a range that isn't inside
        the blob, and as `open_blob`.
        """
        if start < 0 or length < 0 or start + length > size:
            raise InvalidArgument(f"{what}: bytes {start} to {start + length} are not inside its {size} bytes")
        blob = Blob(digest=digest, size=size, what=what, chunks=tuple(chunks))
        cached = self._root / blob.key
        wanted = [s for s in blob.spans() if s.start < start + length and start < s.start + s.length]
        whole = store.local_path(blob.key) is not None or not blob.hashes or len(wanted) == len(blob.spans())
        try:
            if whole or self._is_cached(cached, blob):
                path = self.open_blob(store, digest, size=size, what=what, chunks=chunks, on_bytes=on_bytes)
                with path.open("rb") as file:
                    return read_at(file.fileno(), length, start)
            make_directories(cached.parent)
            self._make_room(cached, blob, sum(span.length for span in wanted))
            partial = Partial(cached, blob, Owner.me())
            try:
                self._fill(store, partial, blob, wanted, on_bytes)
                return read_at(partial.descriptor, length, start)
            finally:
                partial.leave()
        except OSError as error:
            raise storage_error(error, "write", cached) from error

    def _fetch(self, store: ObjectStore, path: Path, blob: Blob, on_bytes: OnBytes) -> None:
        heard = 0

        def waited(done: int) -> None:
            nonlocal heard
            if heard < done <= blob.size:
                on_bytes(done - heard)
                heard = done

        try:
            make_directories(path.parent)
            lock = take_or_wait(path.with_name(path.name + ".lock"), path.exists, waited)
            try:
                if self._is_cached(path, blob):
                    on_bytes(blob.size - heard)
                    return
                self._make_room(path, blob, blob.size)
                self._download(store, path, blob, lock, _after(heard, on_bytes))
            finally:
                if lock is not None:
                    lock.release()
        except OSError as error:
            raise storage_error(error, "write", path) from error

    def _download(
        self, store: ObjectStore, path: Path, blob: Blob, lock: DownloadLock | None, on_bytes: OnBytes
    ) -> None:
        partial = Partial(path, blob, lock.owner if lock else Owner.me())
        try:
            self._fill(store, partial, blob, None, on_bytes, lock)
            durable = boot_id() is None  # else its stamp holds until the machine's next start only
            partial.become_final(durable=durable)
        except CorruptBlob:
            partial.discard()
            raise
        except BaseException:
            if blob.chunks:
                partial.leave()
            else:
                partial.discard()
            raise
        if durable:
            fsync_directory(path.parent)
        self._stamps.write(path, blob.digest, durable=durable)

    def _fill(
        self,
        store: ObjectStore,
        partial: Partial,
        blob: Blob,
        wanted: list[Span] | None,
        on_bytes: OnBytes,
        lock: DownloadLock | None = None,
    ) -> None:
        """Fetches `wanted` (None: all, and the digest of the whole is proved) into `partial`, less what is there."""
        done = 0

        def on_step() -> None:
            if lock is not None:
                lock.beat(done)

        def count(received: int) -> None:
            nonlocal done
            done += received
            on_bytes(received)

        spans = blob.spans() if wanted is None else wanted
        there = partial.whole_chunks(spans, on_step)
        count(sum(span.length for span in spans if span.index in there))
        self._check_space(partial.path, blob, sum(span.length for span in spans if span.index not in there))
        download = Download(store, blob, partial.descriptor, on_bytes=count, on_step=on_step)
        if wanted is None:
            download.fetch_all(there=there)
        else:
            download.fetch(spans, there=there)

    def _make_room(self, path: Path, blob: Blob, size: int) -> None:
        limit = cache_limit(os.environ.get("MODELZOO_CACHE_LIMIT")) if self._limit is None else self._limit
        make_room(self._root, self._stamps, size, limit, what=blob.what, wanted=path)

    def _check_space(self, path: Path, blob: Blob, size: int) -> None:
        free = shutil.disk_usage(path.parent).free
        if size > free:
            raise NoSpace(
                f"cannot fetch {blob.what} to {path.parent}: {size} bytes are needed, {free} are free on that disk",
                hint="free some space, or choose another directory with MODELZOO_CACHE",
                path=str(path.parent),
            )

    def _is_cached(self, path: Path, blob: Blob) -> bool:
        """Whether a good copy is there; a bad one is removed. Raises the errors of the disk."""
        if not path.exists():
            return False
        try:
            self._verify(path, blob)
        except CorruptBlob:
            try:
                path.unlink(missing_ok=True)  # only our copy is bad: fetch it again
            except OSError as error:
                raise storage_error(error, "replace", path) from error
            return False
        return True

    def _verify(self, path: Path, blob: Blob) -> None:
        try:
            if path.stat().st_size != blob.size:
                raise blob.other_size(path.stat().st_size, str(path))
            if self._stamps.is_known(path, blob.digest):
                self._stamps.touch(path, blob.digest)
                return
            fault = blob.fault_in(path)
        except FileNotFoundError:
            raise blob.missing(str(path)) from None
        except OSError as error:
            raise storage_error(error, "read", path) from error
        if fault is not None:
            raise fault
        ours = path.is_relative_to(self._root) and boot_id() is not None
        self._stamps.write(path, blob.digest, durable=not ours)


def _after(heard: int, on_bytes: OnBytes) -> OnBytes:
    """`on_bytes` less the first `heard` bytes: they were told while somebody else was downloading."""

    def listen(count: int) -> None:
        nonlocal heard
        spared = min(heard, count)
        heard -= spared
        if count - spared:
            on_bytes(count - spared)

    return listen
