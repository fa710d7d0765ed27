"""Files that others read: whole or not at all, also after a crash. And what an OSError means to the user.

Order, and why: write a temporary file in the same directory (a rename across file systems isn't atomic), fsync it (else
the name may outlive the bytes), rename or link it, fsync the directory (else the name itself may be lost).
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from zoo.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unavailable,
    ZooError,
)

TEMPORARY = ".tmp-"  # how the names of unfinished files begin


class NoSpace(ResourceExhausted):
    """The disk (or the quota) is full."""


class NoAccess(PermissionDenied):
    """The operating system refuses the access."""


class NotADirectory(FailedPrecondition):
    """A file stands where a directory has to be, or the other way round."""


class FileMissing(NotFound):
    """No such file or directory."""


class FileTaken(FailedPrecondition):
    """A file of that name is there already, and mustn't be replaced."""


class PathTooLong(InvalidArgument):
    """A file name that the file system doesn't take."""


class DiskFault(Unavailable):
    """The disk answered with an error of its own."""


_MEANINGS: dict[int, tuple[type[ZooError], str, str | None]] = {
    errno.ENOSPC: (NoSpace, "the disk is full", "free some space, or choose another directory"),
    errno.EDQUOT: (NoSpace, "the disk quota is used up", "free some space, or choose another directory"),
    errno.EFBIG: (NoSpace, "the file would be larger than allowed here", None),
    errno.EMFILE: (NoSpace, "this process has too many open files", "raise `ulimit -n`"),
    errno.ENFILE: (NoSpace, "the system has too many open files", None),
    errno.EACCES: (NoAccess, "permission denied", "check the directory's owner and mode"),
    errno.EPERM: (NoAccess, "not permitted", "check the directory's owner and mode"),
    errno.EROFS: (NoAccess, "the file system is read-only", "choose a directory that can be written"),
    errno.ENOTDIR: (NotADirectory, "a part of that path is a file, not a directory", "choose another directory"),
    errno.EISDIR: (NotADirectory, "that is a directory, not a file", None),
    errno.ENOENT: (FileMissing, "no such file or directory", None),
    errno.EEXIST: (FileTaken, "it is already there", None),
    errno.ENAMETOOLONG: (PathTooLong, "the name is too long for this file system", None),
}


def storage_error(error: OSError, doing: str, path: Path) -> ZooError:
    """The error of our tree for `error`, saying what was being done and to which path."""
    kind, meaning, hint = _MEANINGS.get(error.errno or 0, (DiskFault, error.strerror or str(error), None))
    return kind(f"cannot {doing} {path}: {meaning}", hint=hint, path=str(path))


def fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directories(path: Path) -> None:
    """Like mkdir -p, but each new directory's name is on the disk before anything is put into it. Raises OSError."""
    if path.is_dir():
        return
    if path.parent != path:
        make_directories(path.parent)
    try:
        path.mkdir()
    except FileExistsError:
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from None
    else:
        fsync_directory(path.parent)


@contextmanager
def temporary_file(directory: Path, *, mode: int = 0o666) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file in `directory` to write to, and its path; gone afterwards unless it was renamed. Raises OSError.

    `mode` is less the umask.
    """
    path = directory / f"{TEMPORARY}{secrets.token_hex(12)}"
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file, path
    finally:
        with suppress(FileNotFoundError):
            path.unlink()


@contextmanager
def replaced_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which becomes `path` when the block ends well, replacing what was there.

    Raises the errors of `storage_error`, also for an OSError of the block.
    """
    try:
        make_directories(path.parent)
        with temporary_file(path.parent) as (file, temporary):
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
            fsync_directory(path.parent)
    except OSError as error:
        raise storage_error(error, "write", path) from error
