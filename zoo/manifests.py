"""Manifests: those of a store, written under their digests and read once.

Takes Manifests, and digests. Gives Manifests. Next: `zoo.catalog`.

A manifest never changes, so what was read and verified once holds: the last ones stay in memory, and those of a remote
store also as files in the cache, beside the blobs.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from zoo.atomic_file import replaced_file, storage_error
from zoo.errors import DataLoss, FailedPrecondition, ZooError
from zoo.manifest import SCHEMA_VERSION, Manifest
from zoo.store.object_store import ObjectMissing, ObjectStore
from zoo.transfer import create_same

_IN_MEMORY = 8 << 20  # bytes of JSON; in memory a manifest takes a few times that


class DamagedManifest(DataLoss):
    """A stored manifest is missing, or isn't what its digest says."""


class NewerManifest(FailedPrecondition):
    """A manifest that this version of the zoo can't read."""


def manifest_key(digest: str) -> str:
    return f"manifests/sha256/{digest.removeprefix('sha256:')}.json"


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


def send_manifest(store: ObjectStore, manifest: Manifest) -> None:
    """Raises DamagedManifest when something else lies under its digest."""
    digest = manifest.digest()
    if not create_same(store, manifest_key(digest), manifest.canonical_bytes()):
        read_manifest(store, digest, "the version to publish")


def read_manifest(store: ObjectStore, digest: str, what: str) -> Manifest:
    """`what` names the version in errors. Raises DamagedManifest, NewerManifest."""
    return parse_manifest(read_manifest_bytes(store, digest, what), digest, what)


def read_manifest_bytes(store: ObjectStore, digest: str, what: str) -> bytes:
    """The bytes that are stored as that manifest, unverified. Raises DamagedManifest when there are none."""
    key = manifest_key(digest)
    try:
        return store.read(key)
    except ObjectMissing:
        raise DamagedManifest(
            f"{what}: its manifest {key} is not in {store.url}", hint="zoo verify", expected=digest
        ) from None


def parse_manifest(data: bytes, digest: str, what: str) -> Manifest:
    """The manifest with that digest from its stored bytes. Raises DamagedManifest, NewerManifest."""
    key = manifest_key(digest)
    found = "sha256:" + hashlib.sha256(data).hexdigest()
    if found != digest:
        raise DamagedManifest(
            f"{what}: the bytes of {key} have the digest {found}, expected {digest}",
            hint="zoo verify",
            expected=digest,
            found=found,
        )
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"]) or "the whole"
        if _is_newer(data) or any(fault["type"] == "extra_forbidden" for fault in error.errors()):
            raise NewerManifest(
                f"{what}: this version of the zoo cannot read {key}: {where}: {first['msg']}", hint="upgrade modelzoo"
            ) from None
        fault = first["msg"]
        if first["loc"][-1:] == ("name",) and first["loc"][:1] == ("assets",):
            fault = f"{str(first['input'])[:200]!r} is no plain file name"
        raise DamagedManifest(f"{what}: {key} cannot be: {where}: {fault}", hint="zoo verify") from None


def _is_newer(data: bytes) -> bool:
    try:
        value: Any = json.loads(data)
        return int(value["schema_version"]) > SCHEMA_VERSION
    except (ValueError, TypeError, LookupError, RecursionError):
        return False
