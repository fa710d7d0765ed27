"""The outside of a `.keras` file: a zip of configuration, metadata and weights, or the same files in a folder.

Takes a path. Gives the configuration as data and a plain weights file. Next: `zoo.readers.keras_file`.

Nothing is unpacked but the weights, to a temporary file whose name is ours; a name inside the archive is never a path.
"""

from __future__ import annotations

import json
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from zoo.readers.checkpoint import DamagedCheckpoint, NotACheckpoint, UnsafeCheckpoint

CONFIG = "config.json"
WEIGHTS = "model.weights.h5"
MAX_CONFIG_BYTES = 64 << 20
_MAX_EXPANSION = 20  # Keras packs without compression; whoever packs again gains little on floats
_FREE_CLAIM = 64 << 20  # bytes that an entry may claim whatever it holds


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A model's configuration, its weights as a file of their own, and the names of what else there is."""

    config: Any
    weights: Path
    others: tuple[str, ...] = ()


@contextmanager
def opened_archive(path: Path) -> Iterator[Parts]:
    """Opens a zip for as long as its weights are read.

    Raises NotACheckpoint: another zip; DamagedCheckpoint: cut short; UnsafeCheckpoint: names that lead elsewhere,
    links, encrypted entries, entries that claim more than they hold."""
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
        raise DamagedCheckpoint(
            f"{path}: begins as a zip archive, but the archive is cut short or broken ({error})"
        ) from None
    with archive, tempfile.TemporaryDirectory(prefix="zoo-import-") as folder:
        entries = _checked(path, archive)
        weights = Path(folder) / "weights.h5"
        with weights.open("wb") as file:
            config = parsed_config(_config(path, archive, entries), f"{path}: {CONFIG}")
            _copy(path, archive, entries[WEIGHTS], file)
        yield Parts(config=config, weights=weights, others=_others(entries))


def opened_folder(folder: Path) -> Parts:
    """What Keras saves with zipped=False, and what its models on the Hugging Face Hub are."""
    config = folder / CONFIG
    if config.stat().st_size > MAX_CONFIG_BYTES:
        raise UnsafeCheckpoint(f"{config} has {config.stat().st_size} bytes; allowed are {MAX_CONFIG_BYTES}")
    weights = folder / WEIGHTS
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    if not weights.is_file():
        raise _no_weights(folder, names)
    return Parts(config=parsed_config(config.read_bytes(), str(config)), weights=weights, others=_others(names))


def _others(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(name for name in names if name.startswith("assets/") and not name.endswith("/")))


def parsed_config(data: bytes, where: str) -> Any:
    """Raises DamagedCheckpoint, NotACheckpoint."""
    try:
        config = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpoint(f"{where} is not JSON: {error}") from None
    if not isinstance(config, dict):
        raise NotACheckpoint(f"{where} holds a {type(config).__name__}, the configuration of a model is a JSON object")
    return config


def _checked(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The entries by name, after looking at every one of them, also those that are never read."""
    entries: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        name = entry.filename
        what = f"{path}: entry {name!r:.200}"
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or "\0" in entry.orig_filename:
            raise UnsafeCheckpoint(f"{what} leads out of the archive, so nothing was unpacked")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise UnsafeCheckpoint(f"{what} is a link, so nothing was unpacked")
        if entry.flag_bits & 1:
            raise UnsafeCheckpoint(f"{what} is encrypted, which Keras never does")
        if entry.file_size > max(_FREE_CLAIM, _MAX_EXPANSION * entry.compress_size) or (
            entry.compress_type == zipfile.ZIP_STORED and entry.file_size != entry.compress_size
        ):
            raise UnsafeCheckpoint(f"{what} claims {entry.file_size} bytes, it holds {entry.compress_size}")
        if name in entries:
            raise UnsafeCheckpoint(f"{what} is there twice")
        entries[name] = entry
    if CONFIG not in entries:
        torch = any(PurePosixPath(name).name == "data.pkl" for name in entries)
        raise NotACheckpoint(
            f"{path} is a zip archive without {CONFIG}, so not a .keras file: {', '.join(sorted(entries)[:5])}",
            hint="this looks like PyTorch's: zoo import torch" if torch else None,
        )
    if WEIGHTS not in entries:
        raise _no_weights(path, entries)
    return entries


def _no_weights(where: Path, names: Iterable[str]) -> NotACheckpoint:
    return NotACheckpoint(
        f"{where} has no {WEIGHTS}; it holds {', '.join(sorted(names)[:8])}",
        hint="save it in one piece: model.save('model.keras')",
    )


def _config(path: Path, archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo]) -> bytes:
    size = entries[CONFIG].file_size
    if size > MAX_CONFIG_BYTES:
        raise UnsafeCheckpoint(f"{path}: {CONFIG} claims {size} bytes; allowed are {MAX_CONFIG_BYTES}")
    with _reading(path, CONFIG), archive.open(entries[CONFIG]) as file:
        return file.read(MAX_CONFIG_BYTES + 1)


def _copy(path: Path, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Any) -> None:
    with _reading(path, entry.filename), archive.open(entry) as file:  # checks the sum of the bytes at their end
        shutil.copyfileobj(file, target, 1 << 20)
        if target.tell() != entry.file_size:
            raise DamagedCheckpoint(
                f"{path}: entry {entry.filename!r} has {target.tell()} bytes, expected {entry.file_size}"
            )


@contextmanager
def _reading(path: Path, name: str) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        raise DamagedCheckpoint(f"{path}: entry {name!r} cannot be read: {error}") from None
    except Exception as error:  # noqa: BLE001 - each compression has an error of its own (zlib.error, LZMAError)
        raise DamagedCheckpoint(f"{path}: entry {name!r} cannot be unpacked: {error}") from None
