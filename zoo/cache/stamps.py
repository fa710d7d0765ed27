"""Stamps: what was verified, and when it was last used.

Takes a path and a digest. Gives whether the file is still what was hashed. Next: `zoo.cache.blob_cache`.

A stamp is a small file beside the cache: (size, mtime, inode, device) of the blob when it was hashed; its own mtime is
when the blob was last opened. (A file's atime isn't to be trusted: most disks are mounted with relatime or noatime.)
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from zoo.atomic_file import replaced_file
from zoo.errors import ZooError


class Stamps:
    """In `root`. A stamp only saves time: where none can be kept, the blob is hashed each time it is opened."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def is_known(self, path: Path, digest: str) -> bool:
        """Whether `path` is to all appearances the file that was hashed. Raises OSError."""
        try:
            value = json.loads(self.path(path, digest).read_bytes())
        except (OSError, ValueError):  # no stamp, or a damaged one: the blob is hashed again
            return False
        return bool(value == _identity(path.stat()))

    def write(self, path: Path, digest: str) -> None:
        with suppress(ZooError), replaced_file(self.path(path, digest)) as file:
            file.write(json.dumps(_identity(path.stat())).encode())

    def touch(self, path: Path, digest: str) -> None:
        """The blob is being used."""
        with suppress(OSError):
            os.utime(self.path(path, digest))

    def last_use(self, path: Path, digest: str) -> float:
        """Seconds since the epoch; of a blob without a stamp, when it was written. Raises OSError."""
        try:
            return self.path(path, digest).stat().st_mtime
        except OSError:
            return path.stat().st_mtime

    def forget(self, path: Path, digest: str) -> None:
        with suppress(OSError):
            self.path(path, digest).unlink()

    def path(self, path: Path, digest: str) -> Path:
        place = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
        return self._root / f"{digest.removeprefix('sha256:')}-{place}.json"


def _identity(status: os.stat_result) -> dict[str, int]:
    return {
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "inode": status.st_ino,
        "device": status.st_dev,
    }
