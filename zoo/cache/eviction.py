"""Eviction: room for a new blob, by removing those that weren't used for longest.

Takes the cache's folder, its cap and a size. Gives room. Next: `zoo.cache.blob_cache` downloads.

The cap is on `blobs/` alone: computed features and the search index lie in other folders and have their own rules.
Nothing that was opened within `KEPT_FOR` goes, nor what a living process downloads: who has just got a path must be
able to open it. (A file that is open or mapped may go; its bytes stay until it is closed.) So the cap can be passed for
some minutes; a single blob that is larger than the cap is refused.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from zoo.cache.partial import SUFFIX, owner_of
from zoo.cache.stamps import Stamps
from zoo.errors import InvalidArgument, ResourceExhausted

DEFAULT_LIMIT = 20 * 10**9  # bytes
KEPT_FOR = 600.0  # seconds after the last use
_UNITS = {"": 1, "B": 1} | {
    f"{letter}{infix}B": base**power
    for power, letter in enumerate("KMGT", start=1)
    for infix, base in (("", 1000), ("i", 1024))
}
_SIZE = re.compile(r"(?P<number>[0-9]+(\.[0-9]+)?)\s*(?P<unit>[A-Za-z]*)\Z")
_BLOB = re.compile(r"[0-9a-f]{64}\Z")


class InvalidCacheLimit(InvalidArgument):
    """`MODELZOO_CACHE_LIMIT`, or a variable like it, isn't a size."""


class CacheTooSmall(ResourceExhausted):
    """A blob is larger than the whole cache may become."""


def cache_limit(text: str | None, *, variable: str = "MODELZOO_CACHE_LIMIT") -> int:
    """Bytes, from `20GB`, `500 MiB`, `1000000`; `0` or `none` mean no cap and give 0. Raises InvalidCacheLimit, which
    names the variable that the text comes from."""
    if text is None or not text.strip():
        return DEFAULT_LIMIT
    if text.strip().lower() == "none":
        return 0
    match = _SIZE.match(text.strip())
    units = {unit.lower(): size for unit, size in _UNITS.items()}
    if match is None or match["unit"].lower() not in units:
        raise InvalidCacheLimit(
            f"{variable}={text!r} is no size; allowed: a number with one of "
            f"{', '.join(unit for unit in _UNITS if unit)}, or none for no cap",
            hint=f"{variable}=20GB",
        )
    return int(float(match["number"]) * units[match["unit"].lower()])


@dataclass(frozen=True, kw_only=True)
class _Kept:
    path: Path
    size: int  # bytes on the disk
    used: float  # seconds since the epoch
    movable: bool  # no living process downloads it


def make_room(root: Path, stamps: Stamps, size: int, limit: int, *, what: str, wanted: Path) -> None:
    """Removes blobs until `size` bytes more fit below `limit` (0: no cap), or nothing more can go.

    `wanted`: the path of the blob that the room is for; what there is of it counts as used.
    Raises CacheTooSmall, and OSError where the folder can't be read.
    """
    if not limit:
        return
    if size > limit:
        raise CacheTooSmall(
            f"{what} has {size} bytes, and the cache {root} may hold {limit}",
            hint=f"MODELZOO_CACHE_LIMIT={-(-size // 10**9) + 1}GB",
        )
    kept = [each for each in _kept(root, stamps) if not each.path.name.startswith(wanted.name)]
    total = size + sum(each.size for each in kept)
    for each in sorted(kept, key=lambda each: each.used):
        if total <= limit or time.time() - each.used < KEPT_FOR:
            return
        if each.movable:
            with suppress(OSError):
                each.path.unlink()
                total -= each.size
                stamps.forget(each.path, each.path.name)


def _kept(root: Path, stamps: Stamps) -> Iterator[_Kept]:
    for folder, _, names in os.walk(root / "blobs"):
        for name in names:
            path = Path(folder) / name
            with suppress(FileNotFoundError):
                status = path.stat()
                if _BLOB.match(name):
                    used, movable = max(stamps.last_use(path, name), status.st_mtime), True
                elif name.endswith(SUFFIX):
                    owner = owner_of(path)
                    used = status.st_mtime
                    movable = owner is None or owner.is_dead() or time.time() - used > 24 * 3600
                else:
                    continue  # a lock
                yield _Kept(path=path, size=status.st_blocks * 512, used=used, movable=movable)
