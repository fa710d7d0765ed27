"""Stamps: what was verified, and when it was last used.

Takes a path and a digest. Gives whether the file is still what was hashed. Next: `zoo.cache.blob_cache`.

A stamp is a small file beside the cache: (size, mtime, inode, device) of the blob when it was hashed; its own mtime is
when the blob was last opened. (A file's atime isn't to be trusted: most disks are mounted with relatime or noatime.)

A downloaded blob isn't synced to the disk, which would double the time of a download: a power cut may leave its name
and size with other bytes. So its stamp holds for this run of the machine (`boot`); after the next start it is hashed
once more, and fetched again should it have been lost. Where the kernel doesn't tell its runs apart it is synced.
A blob of a local store was synced when it was stored, and its stamp says no `boot`.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from zoo.atomic_file import make_directories, temporary_file

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def boot_id() -> str | None:
    """A random name of this run of the machine; None where there is none."""
    try:
        return _BOOT_ID.read_text().strip() or None
    except OSError:
        return None


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
        boot = value.pop("boot", None) if isinstance(value, dict) else None
        return bool(value == _identity(path.stat())) and boot in (None, boot_id())

    def write(self, path: Path, digest: str, *, durable: bool) -> None:
        """`durable`: the blob outlasts a power cut. The stamp itself needn't: without one the blob is hashed again."""
        with suppress(OSError):
            identity = _identity(path.stat()) | ({} if durable else {"boot": boot_id()})
            stamp = self.path(path, digest)
            make_directories(stamp.parent)
            with temporary_file(stamp.parent) as (file, temporary):
                file.write(json.dumps(identity).encode())
                file.flush()
                temporary.replace(stamp)

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
