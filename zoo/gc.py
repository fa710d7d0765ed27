"""Gc: removes what no version names any more, and what interrupted work left behind.

Takes a Catalog. Gives a GcReport. Next: `zoo gc` prints it.

Blobs and manifests go when no log names them (a model deleted 31 days ago names nothing: a day more than it can be
brought back), no live intent does, and they are older than the grace by the store's clock. Each batch is condemned by
a marker before the intents and, after them, the logs are read once more; why that is safe beside a publisher that has
just skipped sending a blob, is told in `zoo.intents`. When a log, a manifest or an intent can't be read, no blob and no
manifest goes: what can't be read may name it.

Also removed: expired intents and markers, open uploads and unfinished files older than the grace, feed hours older than
7 days, all but the newest two snapshots of a model, and what the probe of a bucket left. Jobs and features are never
touched.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from zoo import feed
from zoo.cache import blob_key
from zoo.catalog import Catalog
from zoo.intents import INTENTS
from zoo.live_digests import LiveDigests
from zoo.manifests import manifest_key
from zoo.snapshots import KEPT
from zoo.store.object_store import ObjectInfo
from zoo.store_id import KEY as STORE_ID
from zoo.sweep_marker import MARKERS, OwnMarker, markers, write_marker

T = TypeVar("T")
R = TypeVar("R")

GRACE = timedelta(hours=24)
_BATCH = 2_000  # digests that one marker condemns: deleted well within half of its life
_THREADS = 8  # deletes at once on a remote store
_PLACES = ("blobs/", "manifests/", "models/", INTENTS, MARKERS, feed.FEED, "probe/", STORE_ID)  # no jobs, no features


@dataclass(frozen=True, kw_only=True)
class Tally:
    count: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class GcReport:
    """removed: kind (blobs, manifests, intents, markers, leftovers, hints, snapshots, probes) → what went, or would go.
    kept: reason (named, young, intent, upload, late: named while the sweep ran, strange: no key of ours) → how many
    blobs and manifests. problems: what can't be read; with any of them no blob and no manifest was removed."""

    dry_run: bool
    removed: dict[str, Tally]
    kept: dict[str, int]
    problems: tuple[str, ...]

    @property
    def bytes(self) -> int:
        return sum(tally.bytes for tally in self.removed.values())


def gc(catalog: Catalog, *, dry_run: bool = False, grace: timedelta = GRACE, now: datetime | None = None) -> GcReport:
    """Removes what nothing names; `dry_run` only says what would go, and writes nothing.

    now: instead of the store's clock (in a dry run: this machine's). Raises the store's errors; what was removed until
    then was rightly removed.
    """
    collection = _Collection(catalog, dry_run=dry_run, grace=grace.total_seconds(), now=now)
    collection.sweep()
    collection.tidy()
    return collection.report()


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    key: str
    kind: str  # blobs or manifests
    digest: str
    size: int


class _Collection:
    """One run of gc."""

    def __init__(self, catalog: Catalog, *, dry_run: bool, grace: float, now: datetime | None) -> None:
        self._store = catalog.store
        self._live = LiveDigests(catalog)
        self._dry_run = dry_run
        self._grace = grace
        self._removed: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._kept: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._threads = 1 if self._store.local_path("x") is not None else _THREADS
        self._began = time.monotonic()
        self._epoch = now.timestamp() if now is not None else self._store_clock()

    def report(self) -> GcReport:
        removed = {kind: Tally(count=n, bytes=self._bytes[kind]) for kind, n in sorted(self._removed.items())}
        problems = tuple(dict.fromkeys(self._live.problems))
        return GcReport(dry_run=self._dry_run, removed=removed, kept=dict(self._kept), problems=problems)

    def _store_clock(self) -> float:
        """Seconds since the epoch; an object just written says what the store thinks of it."""
        if self._dry_run:
            return time.time()
        marker = write_marker(self._store, ())
        epoch = self._store.stat(marker.key).modified
        self._store.delete(marker.key)
        return epoch

    def _now(self) -> float:
        return self._epoch + time.monotonic() - self._began

    # Blobs and manifests

    def sweep(self) -> None:
        self._live.read_intents(self._now())
        self._live.read_logs(self._now())
        candidates = list(self._candidates())
        if self._live.problems:
            return
        if self._dry_run:
            for candidate in candidates:
                self._tally(candidate.kind, candidate.size)
            return
        while candidates and not self._live.problems:
            candidates = self._sweep_batch(candidates[:_BATCH]) + candidates[_BATCH:]

    def _candidates(self) -> Iterator[_Candidate]:
        """Old enough, and named by nothing."""
        uploads = {leftover.key for leftover in self._store.leftovers("blobs/") if not self._is_old(leftover.modified)}
        for kind, prefix, key_of in (("blobs", "blobs/", blob_key), ("manifests", "manifests/", manifest_key)):
            for info in self._store.list(prefix):
                digest = "sha256:" + info.key.rpartition("/")[2].removesuffix(".json")
                if key_of(digest) != info.key or len(digest) != 71:
                    self._kept["strange"] += 1
                elif digest in self._live.named:
                    self._kept["named"] += 1
                elif digest in self._live.intended:
                    self._kept["intent"] += 1
                elif not self._is_old(info.modified):
                    self._kept["young"] += 1
                elif info.key in uploads:
                    self._kept["upload"] += 1
                else:
                    yield _Candidate(key=info.key, kind=kind, digest=digest, size=info.size)

    def _sweep_batch(self, batch: list[_Candidate]) -> list[_Candidate]:
        """Steps b to e of a sweep (see `zoo.intents`); returns what there was no time for.

        Should a delete fail, the marker stays until it expires: that delete may still be done.
        """
        marker = write_marker(self._store, {candidate.digest for candidate in batch})
        self._live.read_intents(self._now())
        self._live.read_logs(self._now())
        if self._live.problems:
            self._store.delete(marker.key)
            return batch
        condemned = [c for c in batch if c.digest not in self._live.named and c.digest not in self._live.intended]
        self._kept["late"] += len(batch) - len(condemned)
        left = [candidate for candidate in self._in_parallel(lambda c: self._remove(c, marker), condemned) if candidate]
        self._store.delete(marker.key)
        return left

    def _remove(self, candidate: _Candidate, marker: OwnMarker) -> _Candidate | None:
        if marker.is_past_half():
            return candidate
        self._store.delete(candidate.key)
        self._tally(candidate.kind, candidate.size)
        return None

    # Everything else

    def tidy(self) -> None:
        for intent in self._live.expired_intents:
            self._delete("intents", ObjectInfo(key=intent, size=0, modified=0))
        for marker in markers(self._store):
            if marker.is_expired(self._now()):
                self._delete("markers", ObjectInfo(key=marker.key, size=0, modified=0))
        for place in _PLACES:
            for leftover in self._store.leftovers(place):
                if self._is_old(leftover.modified):
                    self._tally("leftovers", leftover.size or 0)
                    if not self._dry_run:
                        self._store.remove_leftover(leftover)
        first_kept = feed.hour_of(datetime.fromtimestamp(self._now(), UTC) - timedelta(days=feed.KEPT_DAYS))
        for hour in self._store.folders(feed.FEED):
            if hour < first_kept:
                self._delete_all("hints", self._store.list(f"{feed.FEED}{hour}/"))
        for snapshots in self._live.snapshots.values():
            self._delete_all("snapshots", snapshots[:-KEPT])
        self._delete_all("probes", (info for info in self._store.list("probe/") if self._is_old(info.modified)))

    def _delete_all(self, kind: str, objects: Iterable[ObjectInfo]) -> None:
        self._in_parallel(lambda info: self._delete(kind, info), list(objects))

    def _delete(self, kind: str, info: ObjectInfo) -> None:
        self._tally(kind, info.size)
        if not self._dry_run:
            self._store.delete(info.key)

    def _tally(self, kind: str, size: int) -> None:
        with self._lock:
            self._removed[kind] += 1
            self._bytes[kind] += size

    def _is_old(self, modified: float) -> bool:
        return self._now() - modified > self._grace

    def _in_parallel(self, call: Callable[[T], R], items: list[T]) -> list[R]:
        if self._threads == 1:
            return [call(item) for item in items]
        with ThreadPoolExecutor(self._threads, thread_name_prefix="gc") as pool:
            return list(pool.map(call, items))
