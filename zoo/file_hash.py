"""What a file's bytes are: its digest, and the hash of each chunk by which parts of it can be verified alone.

Takes a path. Gives a FileHash. Next: `zoo.manifest` names it, `zoo.transfer` sends the file without hashing it again.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from zoo.atomic_file import storage_error

CHUNK_BYTES = 8 << 20  # what is sent, fetched and verified at once; part of the manifest's format


@dataclass(frozen=True, kw_only=True)
class FileMark:
    """By which a later write to a file shows. (A write within the clock's tick that keeps the size doesn't.)"""

    size: int
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, path: Path) -> FileMark:
        """Raises OSError."""
        status = path.stat()
        return cls(size=status.st_size, mtime_ns=status.st_mtime_ns, inode=status.st_ino)


@dataclass(frozen=True, kw_only=True)
class FileHash:
    """A file as it was when it was hashed."""

    path: Path
    digest: str  # sha256:<hex>
    bytes: int
    chunks: tuple[str, ...]  # SHA-256 (hex) of each CHUNK_BYTES; empty for a file of at most one chunk
    mark: FileMark

    def is_unchanged(self) -> bool:
        """Whether the file still is what was hashed, as far as its mark tells."""
        try:
            return FileMark.of(self.path) == self.mark
        except FileNotFoundError:
            return False
        except OSError as error:
            raise storage_error(error, "read", self.path) from error


def hash_file(path: Path, *, on_bytes: Callable[[int], None] = lambda count: None) -> FileHash:
    """Reads a file once; the whole's hash and the chunks' are made side by side on two cores.

    `on_bytes` is called with the size of each chunk when it is done. Raises the errors of `storage_error`.
    """
    whole, chunks = hashlib.sha256(), []
    try:
        with path.open("rb") as file, ThreadPoolExecutor(1, thread_name_prefix="hash") as pool:
            mark = _mark_of(file.fileno())
            while chunk := file.read(CHUNK_BYTES):
                updated = pool.submit(whole.update, chunk)
                chunks.append(hashlib.sha256(chunk).hexdigest())
                updated.result()
                on_bytes(len(chunk))
    except OSError as error:
        raise storage_error(error, "read", path) from error
    return FileHash(
        path=path,
        digest="sha256:" + whole.hexdigest(),
        bytes=mark.size,
        chunks=tuple(chunks) if len(chunks) > 1 else (),
        mark=mark,
    )


def _mark_of(descriptor: int) -> FileMark:
    status = os.fstat(descriptor)
    return FileMark(size=status.st_size, mtime_ns=status.st_mtime_ns, inode=status.st_ino)
