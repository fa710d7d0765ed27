"""Pull: a version's files, copied into a directory of the user's.

Takes a ModelVersion and a directory. Gives plain files there, each whole or not at all. Next: whatever the user does.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from zoo.atomic_file import FileTaken, replaced_file, storage_error
from zoo.cache import file_digest
from zoo.catalog import Catalog, ModelVersion

MANIFEST_FILE = "manifest.json"
CHUNK = 1 << 20  # bytes


@dataclass(frozen=True, kw_only=True)
class PulledFile:
    path: Path
    digest: str
    bytes: int
    existing: bool  # the same bytes were there already


def pull(catalog: Catalog, version: ModelVersion, directory: Path, *, component: str | None = None) -> list[PulledFile]:
    """Copies every component and asset (or one component only) and the manifest.

    Copies, not links: somebody who changes a pulled file must not change the store. Raises UnknownComponent,
    CorruptBlob, FileTaken where another file of that name is in the way (nothing is copied then), NoSpace, NoAccess.
    """
    names = [component] if component else [c.name for c in version.manifest.components]
    sources = {f"{name}.safetensors": catalog.open_component(version, name) for name in names}
    if component is None:
        sources |= {asset.name: catalog.open_asset(version, asset.name) for asset in version.manifest.assets}
    digests = {c.name + ".safetensors": c.digest for c in version.manifest.components}
    digests |= {asset.name: asset.digest for asset in version.manifest.assets}
    digests[MANIFEST_FILE] = version.digest
    existing = {name: _is_there(directory / name, digests[name]) for name in (*sources, MANIFEST_FILE)}
    for name, source in sources.items():
        if not existing[name]:
            _copy(source, directory / name)
    if not existing[MANIFEST_FILE]:
        with replaced_file(directory / MANIFEST_FILE) as file:
            file.write(version.manifest.canonical_bytes())
    return [
        PulledFile(
            path=directory / name,
            digest=digests[name],
            bytes=(directory / name).stat().st_size,
            existing=existing[name],
        )
        for name in existing
    ]


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
