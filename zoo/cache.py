"""BlobCache: a verified local file for a blob.

Takes a store and a digest. Gives the path of a file with exactly those bytes. Next: `zoo.tensors`.

A blob of a store on this machine's disk is used where it lies; one of a remote store is downloaded once, under its
digest. Either is hashed when it is first opened; a small stamp then remembers (size, mtime, inode), so that later opens
only compare those. No lock is needed: files get their final name by a rename, after they were verified.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

from zoo.atomic_file import fsync_directory, make_directories, replaced_file, storage_error
from zoo.errors import DataLoss, ZooError
from zoo.store.object_store import ObjectMissing, ObjectStore


class CorruptBlob(DataLoss):
    """A blob is missing from the store, or its bytes are not those of its digest."""


def default_cache_root() -> Path:
    """`MODELZOO_CACHE`, else the user's cache directory."""
    from platformdirs import user_cache_path

    chosen = os.environ.get("MODELZOO_CACHE")
    return Path(chosen).expanduser().absolute() if chosen else user_cache_path("modelzoo")


def blob_key(digest: str) -> str:
    """Where the blob `sha256:<hex>` lies in a store."""
    text = digest.removeprefix("sha256:")
    return f"blobs/sha256/{text[:2]}/{text[2:4]}/{text}"


def file_digest(path: Path) -> str:
    """`sha256:<hex>` of a file's bytes. Raises OSError."""
    with path.open("rb") as file:
        return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()


class BlobCache:
    """Safe to share between threads and processes; `root` is made when it is first needed."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def root(self) -> Path:
        return self._root

    def open_blob(self, store: ObjectStore, digest: str, *, size: int, what: str, chunks: Sequence[str] = ()) -> Path:
        """A local file with the blob's bytes, verified. `what` names it in errors, e.g. `head of captioner@3`.

        Raises CorruptBlob saying which digest was expected and found, and the errors of the store and the disk.
        """
        path = store.local_path(blob_key(digest))
        if path is not None:
            self._verify(path, digest, size, what)
            return path
        path = self._root / blob_key(digest)
        if path.exists():
            try:
                self._verify(path, digest, size, what)
                return path
            except CorruptBlob:
                path.unlink(missing_ok=True)  # only our copy is bad: fetch it again
        self._download(store, path, digest, size, what)
        return path

    def _download(self, store: ObjectStore, path: Path, digest: str, size: int, what: str) -> None:
        temporary = path.parent / f".tmp-{secrets.token_hex(12)}"
        try:
            make_directories(path.parent)
            store.download(blob_key(digest), temporary)
            self._compare(temporary, digest, size, what)
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            fsync_directory(path.parent)
            self._stamp(path, digest)
        except ObjectMissing:
            raise _missing(digest, what, store.url) from None
        except OSError as error:
            raise storage_error(error, "write", path) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _verify(self, path: Path, digest: str, size: int, what: str) -> None:
        try:
            status = path.stat()
        except FileNotFoundError:
            raise _missing(digest, what, str(path)) from None
        except OSError as error:
            raise storage_error(error, "read", path) from error
        if status.st_size != size:
            raise CorruptBlob(
                f"{what}: {path} has {status.st_size} bytes, its manifest says {size} ({digest})",
                hint="zoo verify",
                path=str(path),
                expected=digest,
            )
        if self._read_stamp(path, digest) != _identity(status):
            self._compare(path, digest, size, what)
            self._stamp(path, digest)

    def _compare(self, path: Path, digest: str, size: int, what: str) -> None:
        try:
            found_size, found = path.stat().st_size, file_digest(path)
        except OSError as error:
            raise storage_error(error, "read", path) from error
        if found != digest or found_size != size:
            raise CorruptBlob(
                f"{what}: the bytes in {path} are not those that were published: expected {digest} ({size} bytes), "
                f"found {found} ({found_size} bytes)",
                hint="zoo verify",
                path=str(path),
                expected=digest,
                found=found,
            )

    def _stamp_path(self, path: Path, digest: str) -> Path:
        place = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        return self._root / "verified" / f"{digest.removeprefix('sha256:')}-{place}.json"

    def _read_stamp(self, path: Path, digest: str) -> dict[str, int] | None:
        try:
            value = json.loads(self._stamp_path(path, digest).read_bytes())
        except (OSError, ValueError):  # no stamp, or a damaged one: the blob is hashed again
            return None
        return value if isinstance(value, dict) else None

    def _stamp(self, path: Path, digest: str) -> None:
        try:
            with replaced_file(self._stamp_path(path, digest)) as file:
                file.write(json.dumps(_identity(path.stat())).encode())
        except ZooError:
            pass  # the stamp only saves time: where it can't be kept, the blob is hashed again when it is next opened


def _identity(status: os.stat_result) -> dict[str, int]:
    return {
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "inode": status.st_ino,
        "device": status.st_dev,
    }


def _missing(digest: str, what: str, where: str) -> CorruptBlob:
    return CorruptBlob(f"{what}: its blob {digest} is not in {where}", hint="zoo verify", expected=digest)
