"""Pull: a version's files, or some of its tensors, copied into a directory of the user's.

Takes a ModelVersion and a directory. Gives plain files there, each whole or not at all. Next: whatever the user does.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.atomic_file import FileTaken, replaced_file, storage_error
from zoo.byte_count import OnBytes, nobody_listens
from zoo.cache import file_digest
from zoo.catalog import Catalog, ModelVersion, component_of
from zoo.tensor_fetch import chosen_tensors, fetch
from zoo.tensors import TensorInfo, safetensors_digest, write_safetensors
from zoo.transfer import Part

MANIFEST_FILE = "manifest.json"
CHUNK = 1 << 20  # bytes


@dataclass(frozen=True, kw_only=True)
class PulledFile:
    path: Path
    digest: str
    bytes: int
    existing: bool  # the same bytes were there already


@dataclass(frozen=True, kw_only=True)
class PulledTensors:
    """A file with some tensors of a component."""

    file: PulledFile
    component: str
    tensors: tuple[TensorInfo, ...]


def pull(
    catalog: Catalog,
    version: ModelVersion,
    directory: Path,
    *,
    component: str | None = None,
    on_total: Callable[[int], None] = nobody_listens,
    on_bytes: OnBytes = nobody_listens,
) -> list[PulledFile]:
    """Copies every component and asset (or one component only) and the manifest.

    Copies, not links: somebody who changes a pulled file must not change the store. What is in the directory already
    isn't fetched. `on_total` is called once with the bytes to fetch, `on_bytes` with counts that add up to them.
    Raises UnknownComponent, CorruptBlob, FileTaken where another file of that name is in the way (nothing is copied
    then), NoSpace, NoAccess.
    """
    parts = _parts(version) if component is None else _only(version, component)
    digests = {name: part.digest for name, part in parts.items()} | {MANIFEST_FILE: version.digest}
    existing = {name: _is_there(directory / name, digest) for name, digest in digests.items()}
    wanted = {name: part for name, part in parts.items() if not existing[name]}
    on_total(sum(part.bytes for part in wanted.values()))
    # All are fetched before the first is copied: what can't be had leaves nothing behind.
    sources = {name: _open(catalog, version, part, on_bytes) for name, part in wanted.items()}
    for name, source in sources.items():
        _copy(source, directory / name)
    if not existing[MANIFEST_FILE]:
        with replaced_file(directory / MANIFEST_FILE) as file:
            file.write(version.manifest.canonical_bytes())
    return [_pulled(directory / name, digests[name], existing=there) for name, there in existing.items()]


def pull_tensors(
    catalog: Catalog,
    version: ModelVersion,
    directory: Path,
    patterns: Sequence[str],
    *,
    component: str | None = None,
    on_total: Callable[[int], None] = nobody_listens,
    on_bytes: OnBytes = nobody_listens,
) -> list[PulledTensors]:
    """Writes the tensors that `patterns` name (see `zoo.tensor_fetch`) into `<component>.tensors.safetensors`, a file
    for each component that has any; its metadata says which version they are of.

    Of a remote store only the header and the chunks that hold them are fetched; equal calls write equal bytes.
    `on_total` and `on_bytes` as for `pull`. Raises UnknownTensor, UnstorableTensor, DamagedTensors, and as `pull`.
    """
    chosen = chosen_tensors(catalog, version, patterns, component=component)
    on_total(sum(each.bytes for each in chosen))
    written: list[PulledTensors] = []
    for each in chosen:
        values = fetch(catalog, version, each, on_bytes=on_bytes)
        path = directory / f"{each.component}.tensors.safetensors"
        metadata = {"component": each.component, "digest": version.digest, "version": version.reference}
        digest = safetensors_digest(values, metadata)
        existing = _is_there(path, digest)
        if not existing:
            write_safetensors(path, values, metadata)
        infos = tuple(sorted((place.info for place in each.places), key=lambda info: info.name))
        file = _pulled(path, digest, existing=existing)
        written.append(PulledTensors(file=file, component=each.component, tensors=infos))
    return written


def _parts(version: ModelVersion) -> dict[str, Part]:
    """File name → what the manifest says of it."""
    parts: dict[str, Part] = {f"{part.name}.safetensors": part for part in version.manifest.components}
    return parts | {asset.name: asset for asset in version.manifest.assets}


def _only(version: ModelVersion, component: str) -> dict[str, Part]:
    return {f"{component}.safetensors": component_of(version, component)}


def _open(catalog: Catalog, version: ModelVersion, part: Part, on_bytes: OnBytes) -> Path:
    if version.manifest.component(part.name) == part:
        return catalog.open_component(version, part.name, on_bytes=on_bytes)
    return catalog.open_asset(version, part.name, on_bytes=on_bytes)


def _is_there(path: Path, digest: str) -> bool:
    try:
        found = file_digest(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise storage_error(error, "read", path) from error
    if found != digest:
        raise FileTaken(
            f"{path} is in the way: it holds {found}, and {digest} was to be written there",
            hint="pull into an empty directory",
            path=str(path),
        )
    return True


def _copy(source: Path, path: Path) -> None:
    with replaced_file(path) as target, source.open("rb") as file:
        shutil.copyfileobj(file, target, CHUNK)


def _pulled(path: Path, digest: str, *, existing: bool) -> PulledFile:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise storage_error(error, "read", path) from error
    return PulledFile(path=path, digest=digest, bytes=size, existing=existing)
