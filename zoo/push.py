"""Push: a directory as `zoo pull` writes it becomes a version.

Takes a directory with manifest.json, <component>.safetensors and assets. Gives a published ModelVersion.
Next: `zoo.catalog`.

The manifest decides what the bytes must be: a file that was changed since is refused, never published under a manifest
that describes other bytes. A file that is missing is no fault where the store has its bytes already.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from zoo.atomic_file import FileMissing, NotADirectory, storage_error
from zoo.byte_count import OnBytes, nobody_listens
from zoo.catalog import Catalog, Published
from zoo.errors import DataLoss, InvalidArgument
from zoo.file_hash import FileHash, hash_file
from zoo.manifest import SCHEMA_VERSION, Asset, Component, Manifest
from zoo.manifests import NewerManifest
from zoo.names import check_model_name
from zoo.pull import MANIFEST_FILE
from zoo.tensors import tensor_infos
from zoo.transfer import MissingBlob, WrongBytes, bytes_of

MAX_MANIFEST = 64 << 20  # bytes
_SOME = 5  # faults that a message lists


class InvalidManifest(InvalidArgument):
    """A manifest.json that isn't a manifest, or one that says impossible things."""


class NotAFile(InvalidArgument):
    """A directory, a device or a dangling link has the name of a file that the manifest names."""


class WrongTensors(DataLoss):
    """A component file that isn't what its manifest says of its tensors."""


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """`absent`: files that the directory lacks and the store had. `unknown`: names there that no manifest mentions."""

    published: Published
    absent: tuple[str, ...]
    unknown: tuple[str, ...]


def push(
    catalog: Catalog,
    directory: Path,
    name: str,
    *,
    again: bool = False,
    on_bytes: OnBytes = nobody_listens,
) -> Pushed:
    """Publishes `directory` as the next version of `name`; what already is its newest is returned as existing.

    `on_bytes` is called with counts of bytes that were hashed, then of such that were sent or needn't be; in all they
    are `bytes_to_push`. Raises InvalidName, NotADirectory, FileMissing (no
    manifest.json), InvalidManifest, NewerManifest, NotAFile, WrongBytes, WrongTensors, DamagedTensors, MissingBlob and
    what `Catalog.publish` raises; nothing is sent before everything has been checked.
    """
    check_model_name(name)
    manifest = read_manifest_file(directory)
    parts = _parts(manifest, directory / MANIFEST_FILE)
    present = {file: part for file, part in parts.items() if _is_there(directory / file)}
    _check_sizes(directory, present)
    hashed = {part.digest: _checked(directory / file, part, on_bytes) for file, part in present.items()}
    absent = tuple(sorted(parts.keys() - present.keys()))
    try:
        published = catalog.publish(name, manifest, hashed, again=again, on_bytes=on_bytes)
    except MissingBlob as error:
        raise MissingBlob(
            f"{directory} lacks {', '.join(absent)}, and {catalog.store.url} hasn't their bytes either",
            hint=f"zoo pull REF {directory}, from the store that has them",
            **error.details,
        ) from None
    return Pushed(published=published, absent=absent, unknown=_unknown(directory, parts))


def bytes_to_push(directory: Path) -> int:
    """How much `push` will report to `on_bytes`. Raises as `push` does for the manifest."""
    manifest = read_manifest_file(directory)
    parts = _parts(manifest, directory / MANIFEST_FILE)
    hashed = sum(part.bytes for file, part in parts.items() if (directory / file).is_file())
    return hashed + bytes_of(manifest)


def read_manifest_file(directory: Path) -> Manifest:
    """The manifest that lies in a directory. Raises NotADirectory, FileMissing, InvalidManifest, NewerManifest."""
    path = directory / MANIFEST_FILE
    if not directory.is_dir():
        kind, what = (
            (NotADirectory, "is a file, not a directory") if directory.exists() else (FileMissing, "is not there")
        )
        raise kind(f"{directory} {what}; a directory as `zoo pull` writes it was expected", path=str(directory))
    if not _is_there(path):
        raise FileMissing(
            f"there is no {MANIFEST_FILE} in {directory}: it has {_listed(_names(directory)) or 'nothing'}",
            hint=f"zoo pull REF {directory}; a checkpoint of another framework: zoo import KIND SOURCE NAME",
            path=str(path),
        )
    try:
        size = path.stat().st_size
        if size > MAX_MANIFEST:
            raise InvalidManifest(f"{path} has {size} bytes; a manifest has at most {MAX_MANIFEST}")
        data = path.read_bytes()
    except OSError as error:
        raise storage_error(error, "read", path) from error
    return _parsed(data, path)


def _parsed(data: bytes, path: Path) -> Manifest:
    try:
        value: Any = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidManifest(f"{path} is not JSON: {error}", path=str(path)) from None
    if not isinstance(value, dict):
        raise InvalidManifest(f"{path} holds a JSON {type(value).__name__}; a manifest is an object", path=str(path))
    schema = value.get("schema_version", SCHEMA_VERSION)
    if isinstance(schema, int) and schema > SCHEMA_VERSION:
        raise NewerManifest(
            f"{path} was written by a newer version of the zoo: it has schema {schema}, "
            f"this one knows {SCHEMA_VERSION}",
            hint="upgrade modelzoo",
            path=str(path),
        )
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        faults = [_fault(entry) for entry in error.errors()]
        raise InvalidManifest(f"{path} is not a manifest: {_listed(faults, '; ')}", path=str(path)) from None


def _fault(entry: Any) -> str:
    received = entry.get("input")
    shown = f", got {received!r:.100}" if isinstance(received, str | int | float) else ""
    return f"{'.'.join(str(step) for step in entry['loc']) or 'the whole'}: {entry['msg']}{shown}"


def _parts(manifest: Manifest, path: Path) -> dict[str, Component | Asset]:
    """File name → what the manifest says of it. Raises InvalidManifest where two things want one name."""
    parts: dict[str, Component | Asset] = {}
    every: list[tuple[str, Component | Asset]] = [(f"{c.name}.safetensors", c) for c in manifest.components]
    every += [(asset.name, asset) for asset in manifest.assets]
    for file, part in every:
        if file in parts or file == MANIFEST_FILE:
            raise InvalidManifest(f"{path} names {file} twice", path=str(path))
        parts[file] = part
    sizes: dict[str, int] = {}
    for file, part in parts.items():
        if sizes.setdefault(part.digest, part.bytes) != part.bytes:
            raise InvalidManifest(f"{path} gives {part.digest} ({file}) two sizes", path=str(path))
    return parts


def _is_there(path: Path) -> bool:
    """Links are followed: whatever a file's place, its bytes are checked."""
    try:
        if path.is_file():
            return True
        if not path.exists() and not path.is_symlink():
            return False
    except OSError as error:
        raise storage_error(error, "read", path) from error
    kind = "a directory" if path.is_dir() else "no regular file" if path.exists() else "a link to nothing"
    raise NotAFile(f"{path} is {kind}; the manifest names a file there", path=str(path))


def _check_sizes(directory: Path, present: dict[str, Component | Asset]) -> None:
    """Before anything is hashed, which may take minutes."""
    for file, part in present.items():
        path = directory / file
        try:
            size = path.stat().st_size
        except OSError as error:
            raise storage_error(error, "read", path) from error
        if size != part.bytes:
            raise _changed(path, part, f"it has {size} bytes")


def _checked(path: Path, part: Component | Asset, on_bytes: OnBytes) -> FileHash:
    hashed = hash_file(path, on_bytes=on_bytes)
    if hashed.digest != part.digest or hashed.bytes != part.bytes:
        raise _changed(path, part, f"it holds {hashed.digest} ({hashed.bytes} bytes)", found=hashed.digest)
    if part.chunks and hashed.chunks != part.chunks:
        raise InvalidManifest(f"the manifest's chunk hashes of {path.name} are not those of its bytes", path=str(path))
    if isinstance(part, Component):
        stored = len(tensor_infos(path))
        if stored != part.num_tensors:
            raise WrongTensors(f"{path} holds {stored} tensors, its manifest says {part.num_tensors}", path=str(path))
    return hashed


def _changed(path: Path, part: Component | Asset, what: str, **details: str) -> WrongBytes:
    """One error for a file that isn't the manifest's: both digests where the file's is known."""
    again = f"zoo pull into an empty directory gives the file again ({part.bytes} bytes)"
    own = f"; changed weights are a version of their own: zoo import safetensors {path} NAME"
    return WrongBytes(
        f"{path} is not what the manifest says: expected {part.digest} ({part.bytes} bytes), {what}",
        hint=again + (own if isinstance(part, Component) else ""),
        path=str(path),
        expected=part.digest,
        **details,
    )


def _unknown(directory: Path, parts: dict[str, Component | Asset]) -> tuple[str, ...]:
    return tuple(name for name in _names(directory) if name not in parts and name != MANIFEST_FILE)


def _names(directory: Path) -> list[str]:
    try:
        return sorted(path.name for path in directory.iterdir())
    except OSError as error:
        raise storage_error(error, "read", directory) from error


def _listed(items: list[str], between: str = ", ") -> str:
    rest = f" and {len(items) - _SOME} more" if len(items) > _SOME else ""
    return between.join(items[:_SOME]) + rest
