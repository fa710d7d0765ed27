"""LocalStore: objects are files below one directory.

A create writes a temporary file in the target's directory and hard-links it to its name: link(2) fails when the name is
taken, so exactly one of any number of racing processes wins, and a reader sees the whole object or none. A crash leaves
at most a temporary file, which no key can name and no listing shows.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from zoo.atomic_file import TEMPORARY, NotADirectory, fsync_directory, make_directories, storage_error, temporary_file
from zoo.errors import FailedPrecondition, InvalidArgument, ZooError
from zoo.store.keys import check_folder, check_key, check_prefix
from zoo.store.object_store import InvalidKey, Leftover, ObjectExists, ObjectInfo, ObjectMissing

CHUNK = 1 << 20  # bytes
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


class NoHardLinks(FailedPrecondition):
    """The file system under a local store can't make the hard links that its create-only writes rest on."""


class LocalStore:
    """An ObjectStore in the directory `root`, made by the first write.

    Raises NotADirectory when a file stands at `root` or above it. Every method raises the errors of
    `zoo.atomic_file.storage_error` (NoSpace, NoAccess, …), naming the path.
    """

    def __init__(self, root: Path) -> None:
        self._root = Path(os.path.abspath(root))  # noqa: PTH100 - not resolve(): links in the path stay as typed
        if self._root.parent == self._root:
            raise InvalidArgument(f"a store cannot be the whole disk: {self._root}")
        for path in (self._root, *self._root.parents):
            try:
                if not _is_directory(path):
                    raise NotADirectory(
                        f"the store {self._root} cannot be used: {path} is a file, not a directory",
                        hint="choose another directory with --store file:///DIR",
                        path=str(path),
                    )
                break
            except FileNotFoundError:
                continue
            except NotADirectoryError:
                continue  # a parent is a file: the next rounds find which
            except OSError as error:
                raise storage_error(error, "look at the store", path) from error

    @property
    def url(self) -> str:
        return self._root.as_uri()

    def create(self, key: str, data: bytes) -> None:
        with self._created(key) as file:
            self._write(file, data)

    def create_from_file(self, key: str, path: Path, *, chunks: Sequence[str] = ()) -> None:
        check_key(key)
        try:
            source = path.open("rb")
        except OSError as error:
            raise storage_error(error, "read", path) from error
        with source, self._created(key) as file:
            while chunk := source.read(CHUNK):
                self._write(file, chunk)

    def put(self, key: str, data: bytes) -> None:
        path = self._path(key)
        try:
            make_directories(path.parent)
            with temporary_file(path.parent) as (file, temporary):
                self._write(file, data)
                self._flush(file)
                temporary.replace(path)
                fsync_directory(path.parent)
        except OSError as error:
            raise self._refused(error, key, path) from error

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        if start < 0 or (length is not None and length < 0):
            raise InvalidArgument(f"object {key!r}: a range of start {start} and length {length} cannot be read")
        with self._opened(key) as file:
            file.seek(start)
            return file.read() if length is None else file.read(length)

    def stream(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        if start < 0 or (length is not None and length < 0):
            raise InvalidArgument(f"object {key!r}: a range of start {start} and length {length} cannot be read")
        with self._opened(key) as file:
            file.seek(start)
            left = length
            while piece := file.read(CHUNK if left is None else min(CHUNK, left)):
                left = None if left is None else left - len(piece)
                yield piece

    def download(self, key: str, path: Path) -> None:
        with self._opened(key) as source:
            try:
                target = path.open("xb")
            except OSError as error:
                raise storage_error(error, "write", path) from error
            try:
                with target:
                    while chunk := source.read(CHUNK):
                        target.write(chunk)
                    target.flush()
            except OSError as error:
                path.unlink(missing_ok=True)
                raise storage_error(error, "write", path) from error

    def stat(self, key: str) -> ObjectInfo:
        path = self._path(key)
        try:
            status = path.stat()
            if _is_directory(path):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        except OSError as error:
            raise self._absent(error, "look at", key, path) from error
        return ObjectInfo(key=key, size=status.st_size, modified=status.st_mtime)

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        folder = prefix.rpartition("/")[0]
        return self._walk(self._root / folder, f"{folder}/" if folder else "", prefix, start_after)

    def folders(self, prefix: str) -> Iterator[str]:
        check_folder(prefix)
        names = [name.removesuffix("/") for name in _entries(self._root / prefix) if name.endswith("/")]
        return iter(sorted(name for name in names if not name.startswith(TEMPORARY)))

    def delete(self, key: str) -> None:
        path = self._path(key)
        try:
            path.unlink()
            fsync_directory(path.parent)
        except OSError as error:
            if error.errno not in _ABSENT:
                raise storage_error(error, "delete", path) from error

    def local_path(self, key: str) -> Path | None:
        return self._path(key)

    def leftovers(self, prefix: str) -> Iterator[Leftover]:
        check_prefix(prefix)
        folder = prefix.rpartition("/")[0]
        return self._unfinished(self._root / folder, f"{folder}/" if folder else "", prefix)

    def remove_leftover(self, leftover: Leftover) -> None:
        check_prefix(leftover.key)
        name = leftover.id
        if not name.startswith(TEMPORARY) or "/" in name or "\0" in name:
            raise InvalidArgument(f"{name!r} is no unfinished file of a local store")
        path = self._root / leftover.key / name
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            if error.errno not in _ABSENT:
                raise storage_error(error, "delete", path) from error

    def _unfinished(self, folder: Path, at: str, prefix: str) -> Iterator[Leftover]:
        """Temporary files below `folder`, whose key is `at`. They don't say which object they were to become."""
        for name in _entries(folder):
            if name.endswith("/"):
                key = at + name
                if key.startswith(prefix) or prefix.startswith(key):
                    yield from self._unfinished(folder / name, key, prefix)
            elif name.startswith(TEMPORARY) and at.startswith(prefix.rpartition("/")[0]):
                try:
                    status = (folder / name).stat()
                except FileNotFoundError:
                    continue  # finished since it was listed
                except OSError as error:
                    raise storage_error(error, "look at", folder / name) from error
                yield Leftover(key=at.removesuffix("/"), id=name, size=status.st_size, modified=status.st_mtime)

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _write(self, file: BinaryIO, data: bytes) -> None:
        """Where every byte of an object goes through; a test makes the disk full here."""
        file.write(data)

    def _flush(self, file: BinaryIO) -> None:
        file.flush()
        os.fsync(file.fileno())

    @contextmanager
    def _created(self, key: str) -> Iterator[BinaryIO]:
        path = self._path(key)
        try:
            if path.exists():  # spares the loser of a long-lost race the copy; link() below is what decides
                raise FileExistsError
            make_directories(path.parent)
            # Nobody has reason to write to it again, and `local_path` hands the file itself out: so it is read-only.
            with temporary_file(path.parent, mode=0o444) as (file, temporary):
                yield file
                self._flush(file)
                _link(temporary, path)
                fsync_directory(path.parent)
        except FileExistsError:
            if path.is_dir():
                raise self._is_folder(key) from None
            raise ObjectExists(f"object {key!r} is already in the store {self.url}", key=key) from None
        except OSError as error:
            raise self._refused(error, key, path) from error

    @contextmanager
    def _opened(self, key: str) -> Iterator[BinaryIO]:
        path = self._path(key)
        try:
            file = path.open("rb")
        except OSError as error:
            raise self._absent(error, "read", key, path) from error
        with file:
            try:
                yield file
            except OSError as error:
                raise storage_error(error, "read", path) from error

    def _walk(self, folder: Path, at: str, prefix: str, start_after: str) -> Iterator[ObjectInfo]:
        """Objects below `folder`, whose key is `at`, in code point order of their whole keys."""
        for name in _entries(folder):
            key = at + name
            if name.endswith("/"):
                reached = key.startswith(prefix) or prefix.startswith(key)
                if reached and (key > start_after or start_after.startswith(key)):
                    yield from self._walk(folder / name, key, prefix, start_after)
            elif key.startswith(prefix) and key > start_after:
                try:
                    yield self.stat(key)
                except (ObjectMissing, InvalidKey):
                    continue  # deleted since it was listed; or a file of someone else's, with a name that is no key

    def _absent(self, error: OSError, doing: str, key: str, path: Path) -> ZooError:
        if error.errno in _ABSENT:
            return ObjectMissing(f"no object {key!r} in the store {self.url}", key=key)
        return storage_error(error, doing, path)

    def _refused(self, error: OSError, key: str, path: Path) -> ZooError:
        if error.errno == errno.EISDIR:
            return self._is_folder(key)
        return storage_error(error, "write", path)

    def _is_folder(self, key: str) -> ZooError:
        return NotADirectory(f"object {key!r} cannot be written to {self.url}: other keys lie below it", key=key)


def _entries(folder: Path) -> list[str]:
    """Names in `folder`, those of directories with `/` at the end, in the code point order of the keys below them."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name + "/" * entry.is_dir(follow_symlinks=False) for entry in entries)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return []
        raise storage_error(error, "list", folder) from error


def _is_directory(path: Path) -> bool:
    """Unlike Path.is_dir it raises what goes wrong."""
    return bool(path.stat().st_mode & 0o170000 == 0o040000)


def _link(temporary: Path, path: Path) -> None:
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise NoHardLinks(
                f"cannot write {path}: its file system makes no hard links ({error.strerror}), "
                "and the store's create-only writes rest on them",
                hint="keep the store on a local Linux file system, or in a bucket",
                path=str(path),
            ) from error
        raise
