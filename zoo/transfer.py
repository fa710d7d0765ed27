"""Transfer of blobs and manifests into a store.

Takes a Manifest and local files. Gives blobs under their digests, each hashed before it is sent. Next: `zoo.catalog`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from pydantic import ValidationError

from zoo.atomic_file import storage_error
from zoo.cache import blob_key, file_digest
from zoo.errors import Aborted, DataLoss, FailedPrecondition, InvalidArgument
from zoo.manifest import Asset, Component, Manifest
from zoo.store.object_store import ObjectExists, ObjectMissing, ObjectStore

CHUNK = 1 << 22  # bytes

Part = Component | Asset


class WrongBytes(InvalidArgument):
    """A file, or a stored blob, hasn't the bytes or the size that the manifest says."""


class StrangeFile(InvalidArgument):
    """A file was given that the manifest doesn't name."""


class MissingBlob(FailedPrecondition):
    """A manifest names a blob that is neither in the store nor among the files given."""


class ChangedFile(Aborted):
    """A file was written to while it was being published."""


class DamagedManifest(DataLoss):
    """A stored manifest is missing, or isn't what its digest says."""


class NewerManifest(FailedPrecondition):
    """A manifest that this version of the zoo can't read."""


def manifest_key(digest: str) -> str:
    return f"manifests/sha256/{digest.removeprefix('sha256:')}.json"


def send_blobs(store: ObjectStore, manifest: Manifest, files: Mapping[str, Path]) -> int:
    """Writes the blobs that the store doesn't have yet; returns how many bytes these were.

    Everything is checked before the first byte is written. Raises StrangeFile, MissingBlob, WrongBytes, ChangedFile and
    the store's errors.
    """
    all_parts: list[Part] = [*manifest.components, *manifest.assets]
    parts = {part.digest: part for part in all_parts}
    strange = sorted(set(files) - set(parts))
    if strange:
        raise StrangeFile(f"files were given that the manifest does not name: {', '.join(strange)}")
    to_send = [part for part in parts.values() if not _is_stored(store, part)]
    missing = [f"{part.name} ({part.digest}, {part.bytes} bytes)" for part in to_send if part.digest not in files]
    if missing:
        raise MissingBlob(f"neither given nor in the store {store.url}: {', '.join(missing)}")
    marks = {part.digest: _check_file(part, files[part.digest]) for part in to_send}
    return sum(_send_blob(store, part, files[part.digest], marks[part.digest]) for part in to_send)


def send_manifest(store: ObjectStore, manifest: Manifest) -> None:
    """Raises DamagedManifest when something else lies under its digest."""
    key = manifest_key(manifest.digest())
    try:
        store.create(key, manifest.canonical_bytes())
    except ObjectExists:
        read_manifest(store, manifest.digest(), "the version to publish")


def read_manifest(store: ObjectStore, digest: str, what: str) -> Manifest:
    """`what` names the version in errors. Raises DamagedManifest, NewerManifest."""
    key = manifest_key(digest)
    try:
        data = store.read(key)
    except ObjectMissing:
        raise DamagedManifest(f"{what}: its manifest {key} is not in {store.url}", expected=digest) from None
    found = "sha256:" + hashlib.sha256(data).hexdigest()
    if found != digest:
        raise DamagedManifest(
            f"{what}: the bytes of {key} have the digest {found}, expected {digest}", expected=digest, found=found
        )
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise NewerManifest(
            f"{what}: this version of the zoo cannot read {key}: {where}: {first['msg']}", hint="upgrade modelzoo"
        ) from None


def stored_digest(store: ObjectStore, key: str) -> str:
    """`sha256:<hex>` of an object's bytes, read piece by piece. Raises ObjectMissing."""
    path = store.local_path(key)
    if path is not None and path.is_file():
        try:
            return file_digest(path)
        except OSError as error:
            raise storage_error(error, "read", path) from error
    state, start = hashlib.sha256(), 0
    while data := store.read(key, start=start, length=CHUNK):
        state.update(data)
        start += len(data)
    return "sha256:" + state.hexdigest()


def _is_stored(store: ObjectStore, part: Part) -> bool:
    try:
        size = store.stat(blob_key(part.digest)).size
    except ObjectMissing:
        return False
    if size != part.bytes:
        raise WrongBytes(
            f"{part.name}: the blob {part.digest} in {store.url} has {size} bytes, the manifest says {part.bytes}",
            hint="zoo verify",
        )
    return True


def _check_file(part: Part, path: Path) -> tuple[int, int]:
    """Hashes a file; returns the mark by which a later write to it shows."""
    try:
        mark, found = _mark(path), file_digest(path)
    except OSError as error:
        raise storage_error(error, "read", path) from error
    if found != part.digest or mark[0] != part.bytes:
        raise WrongBytes(
            f"{part.name}: {path} is not what the manifest says: expected {part.digest} ({part.bytes} bytes), "
            f"found {found} ({mark[0]} bytes)",
            expected=part.digest,
            found=found,
        )
    return mark


def _send_blob(store: ObjectStore, part: Part, path: Path, mark: tuple[int, int]) -> int:
    key = blob_key(part.digest)
    try:
        store.create_from_file(key, path)
    except ObjectExists:  # somebody else published the same bytes meanwhile
        return 0
    try:
        changed = _mark(path) != mark
    except FileNotFoundError:
        changed = True
    if changed and stored_digest(store, key) != part.digest:
        store.delete(key)  # wrong bytes under that digest help nobody
        raise ChangedFile(f"{part.name}: {path} was written to while it was being published", hint="publish it again")
    return part.bytes


def _mark(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
