"""Gc: removes what no version names any more, and what interrupted work left behind.

Takes a Catalog. Gives a GcReport. Next: `zoo gc` prints it.

Blobs and manifests go when no log names them (a model deleted 31 days ago names nothing: a day more than it can be
brought back), no live intent does, and they are older than the grace by the store's clock. Each batch is condemned by
a marker before the intents and, after them, the logs are read once more; why that is safe beside a publisher that has
just skipped sending a blob, is told in `zoo.intents`. When a log, a manifest or an intent can't be read, no blob and no
manifest goes: what can't be read may name it.

Also removed: expired intents and markers, open uploads and unfinished files older than the grace, feed hours older than
7 days, all but the newest two snapshots of a model, what the probe of a bucket left, and sets of shared features that
nobody has used or added to for 30 days (`zoo.feature_sets`). Jobs are never touched.
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
from zoo.feature_sets import FEATURES, feature_set, feature_sets
from zoo.feature_sets import KEPT as FEATURES_KEPT
from zoo.intents import INTENTS
from zoo.live_digests import LiveDigests
from zoo.manifests import manifest_key
from zoo.snapshots import KEPT
from zoo.stopwatch import stopwatch
from zoo.store.object_store import ObjectInfo, ObjectMissing
from zoo.store_id import KEY as STORE_ID
from zoo.sweep_marker import MARKERS, OwnMarker, markers, write_marker

T = TypeVar("T")
R = TypeVar("R")

GRACE = timedelta(hours=24)
_BATCH = 500  # digests that one marker condemns: looked at once more and deleted well within half of its life
_THREADS = 8  # deletes at once on a remote store
_PLACES = ("blobs/", "manifests/", "models/", INTENTS, MARKERS, feed.FEED, "probe/", FEATURES, STORE_ID)  # no jobs


@dataclass(frozen=True, kw_only=True)
class Tally:
    count: int
    bytes: int


@dataclass(frozen=True, kw_only=True)
class UnusedFeatures:
    """A set of shared features that went, or would go."""

    name: str
    objects: int
    bytes: int
    last_use: datetime  # UTC, by the store's clock


@dataclass(frozen=True, kw_only=True)
class GcReport:
    """removed: kind (blobs, manifests, intents, markers, leftovers, hints, snapshots, probes, features) → what went, or
    would go. kept: reason (named, young, intent, upload, late: named or sent again while the sweep ran, strange: no key
    of ours) → how many blobs and manifests. feature_sets: what the features in `removed` are. problems: what can't be
    read, and with any of it no blob and no manifest was removed; or what was deleted too late, and is lacking now."""

    dry_run: bool
    removed: dict[str, Tally]
    kept: dict[str, int]
    problems: tuple[str, ...]
    feature_sets: tuple[UnusedFeatures, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(tally.bytes for tally in self.removed.values())


def gc(
    catalog: Catalog,
    *,
    dry_run: bool = False,
    grace: timedelta = GRACE,
    features_kept: timedelta = FEATURES_KEPT,
    now: datetime | None = None,
) -> GcReport:
    """Removes what nothing names; `dry_run` only says what would go, and writes nothing.

    features_kept: since their last use. now: instead of the store's clock (in a dry run: this machine's). Raises the
    store's errors; what was removed until then was rightly removed.
    """
    collection = _Collection(catalog, dry_run=dry_run, grace=grace.total_seconds(), now=now)
    collection.sweep()
    collection.tidy()
    collection.remove_features(features_kept.total_seconds())
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
        self._late: list[_Candidate] = []  # deleted when a publish may have stopped waiting
        self._features: list[UnusedFeatures] = []
        self._began = stopwatch()
        self._epoch = now.timestamp() if now is not None else self._store_clock()

    def report(self) -> GcReport:
        removed = {kind: Tally(count=n, bytes=self._bytes[kind]) for kind, n in sorted(self._removed.items())}
        problems = tuple(dict.fromkeys(self._live.problems))
        return GcReport(
            dry_run=self._dry_run,
            removed=removed,
            kept=dict(self._kept),
            problems=problems,
            feature_sets=tuple(self._features),
        )

    def _store_clock(self) -> float:
        """Seconds since the epoch; an object just written says what the store thinks of it."""
        if self._dry_run:
            return time.time()
        marker = write_marker(self._store, ())
        epoch = self._store.stat(marker.key).modified
        self._store.delete(marker.key)
        return epoch

    def _now(self) -> float:
        return self._epoch + stopwatch() - self._began

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
        if self._late:
            self._tell_of_late_deletes()
        return left

    def _remove(self, candidate: _Candidate, marker: OwnMarker) -> _Candidate | None:
        """Looks once more whether it still is old and there is time, with nothing between that and the delete."""
        try:
            modified = self._store.stat(candidate.key).modified
        except ObjectMissing:
            return None  # another gc was quicker
        if not self._is_old(modified):  # sent again, against the marker: perhaps an expired one of ours
            with self._lock:
                self._kept["late"] += 1
            return None
        if marker.is_past_half():
            return candidate
        self._store.delete(candidate.key)
        self._tally(candidate.kind, candidate.size)
        if marker.is_over():
            with self._lock:
                self._late.append(candidate)
        return None

    def _tell_of_late_deletes(self) -> None:
        """This process was stopped in the middle of a delete: whether that has hit what a publish relied on."""
        self._live.read_intents(self._now())
        self._live.read_logs(self._now())
        for candidate in self._late:
            if candidate.digest not in self._live.named | self._live.intended:
                continue
            try:
                self._store.stat(candidate.key)
            except ObjectMissing:
                self._live.problems.append(
                    f"{candidate.key} was deleted after its marker had expired, since this process was stopped for "
                    f"minutes, and is needed: publish again what names {candidate.digest}"
                )
        self._late.clear()

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

    def remove_features(self, kept: float) -> None:
        """`kept`: seconds since the last use."""
        for unused in feature_sets(self._store):
            if self._now() - unused.last_use <= kept:
                continue
            if not self._dry_run and self._now() - feature_set(self._store, unused.name).last_use <= kept:
                continue  # used since it was listed
            last_use = datetime.fromtimestamp(unused.last_use, UTC)
            self._features.append(
                UnusedFeatures(name=unused.name, objects=len(unused.objects), bytes=unused.bytes, last_use=last_use)
            )
            # The vectors first: what is left of a set when this is cut short says what it is of, and goes next time.
            order = sorted(unused.objects, key=lambda info: info.key.endswith(".json"))
            self._delete_all("features", order)

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
