"""LiveDigests: which blobs and manifests anything names, and what keeps that from being known.

Takes a Catalog. Gives sets of digests. Next: `zoo.gc`, which removes the others.

Reading again is cheap: one listing of all logs shows which ones went on, and only those are read. What was named once
stays named for the whole of a sweep.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from zoo.catalog import Catalog
from zoo.intents import intents
from zoo.log import UNDELETE_DAYS, DamagedLog, ModelState, NewerLog
from zoo.log_keys import MODELS, parse_log_key
from zoo.manifests import DamagedManifest, NewerManifest
from zoo.store.object_store import ObjectInfo

_FORGOTTEN = timedelta(days=UNDELETE_DAYS + 1)  # since a deletion; the day is for clocks that differ
_UNREADABLE_KEPT = timedelta(days=7).total_seconds()  # after which an intent of unknown life has surely ended
_THREADS = 16  # manifests read at once from a remote store


class LiveDigests:
    """`named` by logs (with the manifests that they name) and `intended` by running publishes; only ever added to."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._read_to: dict[str, int] = {}  # name → seq up to which its log has been read
        self._manifests: set[str] = set()  # those whose blobs are named
        self.named: set[str] = set()
        self.intended: set[str] = set()
        self.expired_intents: set[str] = set()  # their keys
        self.snapshots: dict[str, list[ObjectInfo]] = {}  # name → its snapshots, oldest first
        self.problems: list[str] = []  # any of them: what is named isn't known

    def read_intents(self, now: float) -> None:
        """`now`: seconds since the epoch, by the store's clock."""
        for intent in intents(self._catalog.store):
            if intent.digests is None:
                if now < intent.expires + _UNREADABLE_KEPT:
                    self.problems.append(
                        f"{intent.key} cannot be read: damaged, or of a newer version of the zoo that is publishing"
                    )
                else:
                    self.expired_intents.add(intent.key)
            elif now > intent.expires:
                self.expired_intents.add(intent.key)
            else:
                self.intended |= intent.digests

    def read_logs(self, now: float) -> None:
        """Reads every log that went on since the last time. `now`: as for `read_intents`."""
        last: dict[str, tuple[int, float]] = {}
        snapshots: dict[str, list[ObjectInfo]] = defaultdict(list)
        for info in self._catalog.store.list(MODELS):
            key = parse_log_key(info.key)
            if key is None:
                self.problems.append(f"{info.key} is no key of a model's log: what it names is not known")
            elif key.kind == "log":
                last[key.name] = (key.seq, info.modified)
            else:
                snapshots[key.name].append(info)
        self.snapshots = dict(snapshots)
        wanted: dict[str, str] = {}  # digest of a manifest → a version that it is of
        for name, (seq, modified) in last.items():
            if self._read_to.get(name) == seq:
                continue
            try:
                state = self._catalog.logs.state(name)
            except (DamagedLog, NewerLog) as error:
                self.problems.append(f"model {name}: {error.message}")
                continue
            self._read_to[name] = seq
            if not _is_forgotten(state, modified, now):
                self.named |= {card.digest for card in state.cards}
                wanted |= {entry.digest: f"{name}@{entry.number}" for entry in state.versions}
        self._read_manifests({digest: what for digest, what in wanted.items() if digest not in self._manifests})

    def _read_manifests(self, wanted: dict[str, str]) -> None:
        for digest, blobs in self._blobs(wanted.items()):
            if blobs is not None:
                self._manifests.add(digest)
                self.named |= {digest, *blobs}

    def _blobs(self, wanted: Iterable[tuple[str, str]]) -> Iterable[tuple[str, list[str] | None]]:
        if self._catalog.store.local_path(MODELS + "x") is not None:
            return [self._read_manifest(item) for item in wanted]
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="gc") as pool:
            return list(pool.map(self._read_manifest, wanted))

    def _read_manifest(self, item: tuple[str, str]) -> tuple[str, list[str] | None]:
        """A manifest's digest and those of its blobs; None when it can't be read."""
        digest, what = item
        try:
            manifest = self._catalog.manifest(digest, what)
        except (DamagedManifest, NewerManifest) as error:
            self.problems.append(error.message)
            return digest, None
        return digest, [part.digest for part in (*manifest.components, *manifest.assets)]


def _is_forgotten(state: ModelState, modified: float, now: float) -> bool:
    """Whether a model was deleted too long ago to come back, by its log's clock and by the store's."""
    if state.deleted is None:
        return False
    return datetime.fromtimestamp(now, UTC) - state.deleted > _FORGOTTEN and now - modified > _FORGOTTEN.total_seconds()
