"""FeatureStore: the feature cache's files in a store that machines share, so that none computes what another has.

Takes a ShardFolder. Gives it the files that the store has and it hasn't, and the store the other way round. Next:
`finetune.data.features` computes what neither has.

```
features/<set>/key.json            what the vectors are
features/<set>/<sha256>.npy        create-only; named by its bytes, which are checked when it is fetched
features/<set>/used.json           put anew once a day by who fetches: `zoo gc` removes sets that nobody uses
```

It only saves time: a store that doesn't answer, or refuses, is told of once and then left alone. A set holds the
vectors of every data set that this backbone has seen (1,280 float32 values an image are 5 KB, so 100,000 images are
0.5 GB), and is fetched whole when something is lacking here.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from finetune.data.feature_shards import ShardFolder
from zoo.atomic_file import TEMPORARY, make_directories, storage_error
from zoo.errors import ZooError
from zoo.feature_sets import FEATURES, feature_set, mark_used
from zoo.store.object_store import ObjectExists, ObjectStore

SWITCH = "MODELZOO_SHARE_FEATURES"  # 0 or off: the cache of this machine alone
_OFF = ("0", "off", "no", "false")
_MARK_EVERY = 24 * 3600.0  # seconds; far below the age at which a set goes, whatever the clocks differ by


def shared_features(store: ObjectStore) -> FeatureStore | None:
    """None for a store on this disk, whose machine has the cache anyway, and where `MODELZOO_SHARE_FEATURES` is off."""
    if store.local_path("features") is not None or os.environ.get(SWITCH, "").lower() in _OFF:
        return None
    return FeatureStore(store)


class FeatureStore:
    """For one run over some images. Safe to share between threads."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._there: dict[str, set[str]] = {}  # set → names of its files in the store
        self._last_use: dict[str, float] = {}  # set → seconds since the epoch, by the store's clock
        self._failed = False
        self.fetched: set[Path] = set()  # files that came from the store

    def fetch(self, folder: ShardFolder) -> None:
        """Fetches every file of the set that isn't here. Call `folder.reload()` afterwards."""
        with self._lock:
            self._tried(lambda: self._fetch(folder))

    def send(self, folder: ShardFolder) -> None:
        """Sends every file of the set that isn't there."""
        with self._lock:
            self._tried(lambda: self._send(folder))

    def _tried(self, call: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            call()
        except (ZooError, OSError) as error:
            self._failed = True
            print(
                f"warning: features are not shared through {self._store.url}, this machine computes what it lacks: "
                f"{error.message if isinstance(error, ZooError) else error}",
                file=sys.stderr,
                flush=True,
            )

    def _names(self, folder: ShardFolder) -> set[str]:
        name = folder.path.name
        if name not in self._there:
            found = feature_set(self._store, name)
            keys = [info.key.removeprefix(f"{FEATURES}{name}/") for info in found.objects]
            self._there[name] = {key for key in keys if "/" not in key}
            self._last_use[name] = found.last_use
        return self._there[name]

    def _fetch(self, folder: ShardFolder) -> None:
        wanted = {name for name in self._names(folder) if name.endswith(".npy")}
        for name in sorted(wanted - {path.name for path in folder.path.glob("*.npy")}):
            self._download(folder, name)
        if wanted:
            folder.write_key()
            if time.time() - self._last_use.get(folder.path.name, 0.0) > _MARK_EVERY:
                mark_used(self._store, folder.path.name)

    def _download(self, folder: ShardFolder, name: str) -> None:
        key, path = f"features/{folder.path.name}/{name}", folder.path / name
        make_directories(path.parent)
        temporary = path.parent / f"{TEMPORARY}{secrets.token_hex(12)}"
        try:
            self._store.download(key, temporary)
            with temporary.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
                os.fsync(file.fileno())
            if f"{found}.npy" != name:
                print(f"warning: {key} in {self._store.url} isn't what it was: left alone", file=sys.stderr, flush=True)
                return
            folder.take_in(temporary, name)
            self.fetched.add(path)
        except OSError as error:
            raise storage_error(error, "write", path) from error
        finally:
            temporary.unlink(missing_ok=True)

    def _send(self, folder: ShardFolder) -> None:
        there = self._names(folder)
        for path in sorted(folder.path.glob("*.npy")):
            if path.name in there:
                continue
            named = folder.named_by_bytes(path)
            if named.name not in there:
                self._create(f"features/{folder.path.name}/{named.name}", named)
                there.add(named.name)
        key = folder.path / "key.json"
        if "key.json" not in there and key.exists():
            self._create(f"features/{folder.path.name}/key.json", key)
            there.add("key.json")

    def _create(self, key: str, path: Path) -> None:
        try:
            self._store.create_from_file(key, path)
        except ObjectExists:
            return  # somebody computed the same
