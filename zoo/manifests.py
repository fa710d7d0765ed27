"""Manifests: those of a store, read once.

Takes digests. Gives Manifests. Next: `zoo.catalog`.

A manifest never changes, so what was read and verified once holds: the last ones stay in memory, and those of a remote
store also as files in the cache, beside the blobs.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

from zoo.atomic_file import replaced_file, storage_error
from zoo.errors import ZooError
from zoo.manifest import Manifest
from zoo.store.object_store import ObjectStore
from zoo.transfer import DamagedManifest, manifest_key, parse_manifest, read_manifest_bytes

_IN_MEMORY = 8 << 20  # bytes of JSON; in memory a manifest takes a few times that


class Manifests:
    """Safe to share between threads; any number of processes may use one folder."""

    def __init__(self, store: ObjectStore, folder: Path) -> None:
        """`folder`: where files of manifests may be kept; made when it is first needed."""
        self._store = store
        self._folder = folder
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[Manifest, int]] = OrderedDict()
        self._held = 0  # bytes of JSON

    def read(self, digest: str, what: str) -> Manifest:
        """`what` names the version in errors. Raises DamagedManifest, NewerManifest and the store's errors."""
        with self._lock:
            if (known := self._known.get(digest)) is not None:
                self._known.move_to_end(digest)
                return known[0]
        found = None if self._is_local() else self._from_file(digest, what)
        data, manifest = found or self._fetch(digest, what)
        self._remember(digest, manifest, len(data))
        return manifest

    def _is_local(self) -> bool:
        return self._store.local_path("manifests") is not None

    def _fetch(self, digest: str, what: str) -> tuple[bytes, Manifest]:
        data = read_manifest_bytes(self._store, digest, what)
        manifest = parse_manifest(data, digest, what)
        if not self._is_local():
            try:
                with replaced_file(self._folder / manifest_key(digest)) as file:
                    file.write(data)
            except ZooError:
                pass  # the file only saves time: where it can't be kept, the manifest is fetched again
        return data, manifest

    def _from_file(self, digest: str, what: str) -> tuple[bytes, Manifest] | None:
        path = self._folder / manifest_key(digest)
        try:
            data = path.read_bytes()
            return data, parse_manifest(data, digest, what)
        except FileNotFoundError:
            return None
        except DamagedManifest:  # our copy: the store's may be good
            path.unlink(missing_ok=True)
            return None
        except OSError as error:
            raise storage_error(error, "read", path) from error

    def _remember(self, digest: str, manifest: Manifest, size: int) -> None:
        with self._lock:
            if digest in self._known:
                return
            self._known[digest] = (manifest, size)
            self._held += size
            while self._held > _IN_MEMORY and len(self._known) > 1:
                self._held -= self._known.popitem(last=False)[1][1]
