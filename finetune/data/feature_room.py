"""Which sets of vectors are in use, when each was last used, and room below the cap of the feature cache.

Takes the cache's folder. Gives holds on sets, and removes those that weren't used for longest. Next:
`finetune.data.features`.

```
<root>/<set>/            the vectors, see `finetune.data.feature_shards`
<root>/.locks/<set>      its time is the set's last use; who uses the set has it locked (shared) until the process ends
<root>/.locks/<set>.claims  see `finetune.data.feature_claims`
```

The locks save work and nothing rests on them: on a file system where they hold nobody back, a set may be removed from
under a process, which then says that its vectors vanished, and two may compute the same.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from finetune.data.feature_claims import LOCKS
from zoo.atomic_file import make_directories
from zoo.cache.eviction import cache_limit

_LOG = logging.getLogger(__name__)
_VARIABLES = ("MODELZOO_FEATURE_CACHE_LIMIT", "MODELZOO_CACHE_LIMIT")
_held: dict[Path, int] = {}  # lock file → its descriptor, open until the process ends, however that happens
_warned: set[tuple[Path, int]] = set()


def feature_limit() -> int:
    """Bytes, 0 for no cap: `MODELZOO_FEATURE_CACHE_LIMIT`, else what holds for each other cache. Raises
    InvalidCacheLimit."""
    variable = next((name for name in _VARIABLES if os.environ.get(name, "").strip()), _VARIABLES[0])
    return cache_limit(os.environ.get(variable), variable=variable)


def hold(folder: Path) -> None:
    """Marks a set as used now, and as in use until this process ends. In a cache that may only be read nothing is
    marked, and nobody could remove it either."""
    path = _lock_file(folder)
    with suppress(OSError):
        if path not in _held:
            make_directories(path.parent)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            _held[path] = descriptor
            fcntl.flock(descriptor, fcntl.LOCK_SH)  # waits for one who is just removing it
        os.utime(path)


def last_use(folder: Path) -> float:
    """Seconds since the epoch."""
    times = []
    for path in (_lock_file(folder), *folder.glob("*.npy")):
        with suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    return max(times, default=0.0)


def in_use(folder: Path) -> bool:
    """Whether a living process, this one included, has a hold on the set."""
    path = _lock_file(folder)
    if not path.exists():
        return False
    with _locked(path) as free:
        return not free


@dataclass(frozen=True, kw_only=True)
class _Set:
    folder: Path
    size: int  # bytes on the disk
    used: float


def make_room(root: Path, limit: int) -> int:
    """Removes sets that no living process uses, the ones not used for longest first, until the rest fits below `limit`
    (0: no cap). Returns the bytes freed. Raises OSError."""
    if not limit:
        return 0
    sets = [_Set(folder=f, size=_size(f), used=last_use(f)) for f in root.glob("*") if f.name != LOCKS and f.is_dir()]
    total, freed = sum(one.size for one in sets), 0
    for one in sorted(sets, key=lambda one: one.used):
        if total - freed <= limit:
            return freed
        make_directories(root / LOCKS)
        with _locked(_lock_file(one.folder)) as free:
            if free:
                with suppress(FileNotFoundError):  # cleared by somebody else
                    shutil.rmtree(one.folder)
                freed += one.size
                _LOG.info("removed %s from the feature cache: %d bytes, not used for longest", one.folder, one.size)
    if total - freed > limit:
        _warn_once(root, limit, total - freed)
    return freed


def _warn_once(root: Path, limit: int, holds: int) -> None:
    if (root, limit) not in _warned:
        _warned.add((root, limit))
        _LOG.warning(
            "the feature cache %s holds %d bytes, %d are allowed (%s), and running processes use all of it",
            root, holds, limit, _VARIABLES[0],
        )  # fmt: skip


def _size(folder: Path) -> int:
    total = 0
    for path in folder.glob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_blocks * 512
    return total


def _lock_file(folder: Path) -> Path:
    return folder.parent / LOCKS / folder.name


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Whether nobody else has the file locked; locked for us alone then. Where files can't be locked nobody has."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError:
        yield True
        return
    try:
        free = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            free = False
        except OSError as error:
            _LOG.debug("%s can't be locked: %s", path, error)
        yield free
    finally:
        os.close(descriptor)
