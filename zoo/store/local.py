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
from operator import itemgetter
from pathlib import Path
from stat import S_ISDIR
from typing import BinaryIO

from zoo.atomic_file import TEMPORARY, NotADirectory, fsync_directory, make_directories, storage_error, temporary_file
from zoo.byte_count import OnBytes, nobody_listens
from zoo.errors import FailedPrecondition, InvalidArgument, ZooError
from zoo.store.keys import MAX_KEY, check_folder, check_key, check_prefix, check_range, segment_fault
from zoo.store.object_store import Leftover, ObjectExists, ObjectInfo, ObjectMissing

CHUNK = 1 << 20  # bytes
_NAME = itemgetter(0)
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

    def create_from_file(
        self, key: str, path: Path, *, chunks: Sequence[str] = (), on_bytes: OnBytes = nobody_listens
    ) -> None:
        check_key(key)
        try:
            source = path.open("rb")
        except OSError as error:
            raise storage_error(error, "read", path) from error
        with source, self._created(key) as file:
            while chunk := source.read(CHUNK):
                self._write(file, chunk)
                on_bytes(len(chunk))

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
        check_range(key, start, length)
        with self._opened(key) as file:
            return file.read(_into_range(file, start, length))

    def stream(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        check_range(key, start, length)
        with self._opened(key) as file:
            left = _into_range(file, start, length)
            while piece := file.read(min(CHUNK, left)):
                left -= len(piece)
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
                        try:
                            target.write(chunk)
                            target.flush()
                        except OSError as error:
                            raise storage_error(error, "write", path) from error
            except BaseException:
                path.unlink(missing_ok=True)
                raise

    def stat(self, key: str) -> ObjectInfo:
        path = self._path(key)
        try:
            status = path.stat()
            if S_ISDIR(status.st_mode):
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
        return iter(sorted(name[:-1] for name, _ in _entries(self._root / prefix) if name.endswith("/")))

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
        for name, entry in _entries(folder, unfinished=True):
            if name.endswith("/"):
                if (at + name).startswith(prefix):
                    yield from self._unfinished(folder / name, at + name, prefix)
            elif _is_unfinished(entry) and (status := _status(entry)) is not None:
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
        for name, entry in _entries(folder):
            key = at + name
            if name.endswith("/"):
                reached = key.startswith(prefix) and (key > start_after or start_after.startswith(key))
                if reached and len(key) <= MAX_KEY:
                    yield from self._walk(folder / name, key, prefix, start_after)
            elif key.startswith(prefix) and key > start_after and len(key) <= MAX_KEY:
                status = _status(entry)
                if status is not None and not S_ISDIR(status.st_mode):
                    yield ObjectInfo(key=key, size=status.st_size, modified=status.st_mtime)

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


def _entries(folder: Path, *, unfinished: bool = False) -> Sequence[tuple[str, os.DirEntry[str]]]:
    """What lies in `folder`, directories with `/` after their names, in the code point order of the keys below them.

    Files of someone else, with names that are no keys, are left out; so are unfinished ones, unless they are asked for.
    """
    try:
        with os.scandir(folder) as found:
            named = [(entry.name + "/" * entry.is_dir(follow_symlinks=False), entry) for entry in found]
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            return []
        raise storage_error(error, "list", folder) from error
    kept = [pair for pair in named if segment_fault(pair[1].name) is None or (unfinished and _is_unfinished(pair[1]))]
    return sorted(kept, key=_NAME)


def _is_unfinished(entry: os.DirEntry[str]) -> bool:
    return entry.name.startswith(TEMPORARY)


def _status(entry: os.DirEntry[str]) -> os.stat_result | None:
    """What a link points to, too; None when it has gone since it was listed."""
    try:
        return entry.stat()
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise storage_error(error, "look at", Path(entry.path)) from error


def _into_range(file: BinaryIO, start: int, length: int | None) -> int:
    """Goes to `start`; returns how many of `length` bytes there are from there on."""
    size = os.fstat(file.fileno()).st_size
    file.seek(min(start, size))
    rest = max(size - start, 0)
    return rest if length is None else min(length, rest)


def _is_directory(path: Path) -> bool:
    """Unlike Path.is_dir it raises what goes wrong."""
    return S_ISDIR(path.stat().st_mode)


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
