"""Reads PyTorch checkpoints, both layouts, without PyTorch and without running what is pickled in them.

Takes a `.pth` / `.pt` file with a state_dict. Gives a ForeignCheckpoint. Next: `zoo.importer`.

Layouts, after torch/serialization.py. Old: four pickles in a row (magic number, protocol, system facts, the object),
then the pickled list of storage keys, then for each key its count of values (int64) and its values. New (since 1.6): a
zip archive, nothing compressed, with `<top>/data.pkl` and one file `<top>/data/<key>` a storage.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from zoo.readers.checkpoint import (
    DamagedCheckpoint,
    ForeignCheckpoint,
    NotACheckpoint,
    ReadOptions,
    UnsafeCheckpoint,
    existing_file,
)
from zoo.readers.inert_pickle import STORAGES, StorageRef, TensorRef, load_pickle, pickle_end, to_array

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
# What training scripts keep the weights under (timm's, torchvision's, Lightning's), and their moving averages.
_AVERAGES = ("state_dict_ema", "model_ema")
_PLAIN = ("state_dict", "model", "model_state_dict")
_MAX_AMPLIFICATION = 4  # bytes of all tensors over bytes of the file; above 1 only where tensors share a storage

Bytes = bytes | memoryview


def read(source: Path, options: ReadOptions | None = None) -> ForeignCheckpoint:
    """Reads every tensor of the state_dict; of their moving averages where the file has them, as timm does, unless the
    options want the raw weights.

    Raises:
        MissingCheckpointFile; NotACheckpoint: another format, or something else than a state_dict in it;
        UnsafeCheckpoint: a pickle that names anything but tensors, or claims more than the file holds;
        DamagedCheckpoint: cut short, or parts that contradict each other.
    """
    path = existing_file(source, what="a PyTorch checkpoint", suffixes=(".pth", ".pt", ".bin", ".ckpt"))
    with _naming(path), ExitStack() as opened:
        data = memoryview(path.read_bytes())
        if not data:
            raise DamagedCheckpoint("empty (0 bytes)")
        loaded, storages = _zip(path, opened) if data[:4] == b"PK\x03\x04" else _legacy(data)
        refs, averaged, notes = _state_dict(loaded, options is not None and options.raw_weights)
        arrays = _arrays(refs, storages, len(data))
    widened = {name: stored for name, (_, stored) in arrays.items() if stored in ("bfloat16", "float16", "float64")}
    tensors = {name: value.astype(np.float32) if name in widened else value for name, (value, _) in arrays.items()}
    return ForeignCheckpoint(
        files=(path,),
        tensors=tensors,
        frameworks=("torch",),
        widened=widened,
        recipe={"ema": True} if averaged else {},
        notes=notes,
    )


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Puts the file's name before the errors of the readers below, which only know bytes."""
    try:
        yield
    except (DamagedCheckpoint, NotACheckpoint, UnsafeCheckpoint) as error:
        raise type(error)(f"{path}: {error.message}", hint=error.hint, **error.details) from None


def _legacy(data: memoryview) -> tuple[Any, Callable[[StorageRef], Bytes]]:
    parts: list[Any] = []
    start = 0
    for place in range(5):
        if place == 0 and bytes(data[:1]) != b"\x80":
            raise NotACheckpoint("neither a zip archive nor a pickle, so not a PyTorch checkpoint")
        end = pickle_end(data, start)
        parts.append(load_pickle(data, start, end))
        if place == 0 and parts[0] != _MAGIC:
            raise NotACheckpoint("a pickle, but not one that torch.save wrote: it does not begin with its magic number")
        if place == 1 and parts[1] != _PROTOCOL:
            raise NotACheckpoint(f"written with protocol {parts[1]!r:.50} of torch.save; known is {_PROTOCOL}")
        start = end
    system, loaded, keys = parts[2:]
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise NotACheckpoint(f"written on a machine with another order of bytes: {system!r:.200}")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise DamagedCheckpoint("the list of storages is not a list of names")
    places = _legacy_places(data, start, keys, _storage_types(loaded))
    return loaded, lambda storage: data[slice(*places[storage.key])] if storage.key in places else _absent(storage)


def _legacy_places(
    data: memoryview, start: int, keys: list[str], types: Mapping[str, str]
) -> dict[str, tuple[int, int]]:
    places: dict[str, tuple[int, int]] = {}
    for key in keys:
        if key not in types:
            raise DamagedCheckpoint(f"storage {key!r} belongs to no tensor, so the size of its values is unknown")
        count = int.from_bytes(data[start : start + 8], "little")
        begin = start + 8
        end = begin + count * np.dtype(STORAGES[types[key]]).itemsize
        if end > len(data):
            raise DamagedCheckpoint(
                f"cut short: storage {key!r} ({count} values) should end at byte {end}, the file has {len(data)}"
            )
        places[key] = (begin, end)
        start = end
    if start != len(data):
        raise DamagedCheckpoint(f"{len(data) - start} bytes follow the last storage")
    return places


def _storage_types(loaded: Any) -> dict[str, str]:
    """Storage key → class, of every tensor anywhere in the object."""
    types: dict[str, str] = {}
    todo, seen = [loaded], set()
    while todo:
        value = todo.pop()
        if isinstance(value, TensorRef):
            if types.setdefault(value.storage.key, value.storage.type) != value.storage.type:
                raise DamagedCheckpoint(f"storage {value.storage.key!r} is used with two types")
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            todo.extend((*value.keys(), *value.values()) if isinstance(value, dict) else value)
    return types


def _zip(path: Path, opened: ExitStack) -> tuple[Any, Callable[[StorageRef], Bytes]]:
    try:
        archive = opened.enter_context(zipfile.ZipFile(path))
    except (zipfile.BadZipFile, NotImplementedError) as error:  # the second: a version of zip that nobody wrote
        raise DamagedCheckpoint(f"begins as a zip archive, but the archive is cut short or broken ({error})") from None
    entries = {entry.filename: entry for entry in archive.infolist()}
    outside = [name for name in entries if "\\" in name or PurePosixPath(name).is_absolute() or ".." in name.split("/")]
    if outside:  # nothing is ever unpacked here; but whoever made it wanted other tools to
        raise UnsafeCheckpoint(f"its entry {outside[0]!r} leads out of the archive")
    packed = [
        entry.filename for entry in entries.values() if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1
    ]
    if packed:
        raise UnsafeCheckpoint(f"its entry {packed[0]!r} is compressed or encrypted, which torch.save never does")
    claimed, size = sum(entry.file_size for entry in entries.values()), path.stat().st_size
    if claimed > size:
        raise UnsafeCheckpoint(f"its entries claim {claimed} bytes, the file has {size}")
    pickles = [name for name in entries if name == "data.pkl" or (name.count("/") == 1 and name.endswith("/data.pkl"))]
    if len(pickles) != 1:
        raise NotACheckpoint(
            f"a zip archive without data.pkl, so not from torch.save: {', '.join(sorted(entries)[:5])}"
        )
    top = pickles[0].removesuffix("data.pkl")

    def entry(name: str) -> bytes:
        try:
            return archive.read(top + name)
        except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
            raise DamagedCheckpoint(f"its entry {top + name!r} cannot be read: {error}") from None

    if top + "byteorder" in entries and entry("byteorder") != b"little":
        raise NotACheckpoint("written on a machine with another order of bytes")
    data = entry("data.pkl")
    end = pickle_end(data, 0)
    loaded = load_pickle(data, 0, end)

    def storage_bytes(storage: StorageRef) -> Bytes:
        return entry(f"data/{storage.key}") if f"{top}data/{storage.key}" in entries else _absent(storage)

    return loaded, storage_bytes


def _absent(storage: StorageRef) -> Bytes:
    raise DamagedCheckpoint(f"a tensor refers to storage {storage.key!r}, which the file does not hold")


def _state_dict(loaded: Any, raw_weights: bool) -> tuple[dict[str, TensorRef], bool, tuple[str, ...]]:
    """The flat name → tensor mapping, itself or under a training script's key; and whether it is of moving averages."""
    notes: list[str] = []
    found = [key for key in (*_AVERAGES, *_PLAIN) if isinstance(loaded, dict) and isinstance(loaded.get(key), dict)]
    chosen = next((key for key in found if key in _PLAIN or not raw_weights), None)
    if chosen is not None:
        others = sorted(str(key) for key in loaded if key != chosen)
        if others:
            notes.append(f"read {chosen} only; the checkpoint also holds {', '.join(others)}")
        loaded = loaded[chosen]
    if not isinstance(loaded, dict) or not loaded:
        raise NotACheckpoint(f"holds a {type(loaded).__name__}, not a state_dict (a mapping of names to tensors)")
    strangers = [f"{key!r:.80} ({type(value).__name__})" for key, value in loaded.items() if not _is_entry(key, value)]
    if strangers:
        raise NotACheckpoint(
            f"not a state_dict: {len(strangers)} of {len(loaded)} entries are no tensors: {', '.join(strangers[:5])}"
        )
    refs = dict(loaded)
    if all(name.startswith("module.") for name in refs):
        notes.append("took the prefix 'module.' (of DataParallel) off every name")
        refs = {name.removeprefix("module."): ref for name, ref in refs.items()}
    return refs, chosen in _AVERAGES, tuple(notes)


def _is_entry(key: Any, value: Any) -> bool:
    return isinstance(key, str) and isinstance(value, TensorRef)


def _arrays(
    refs: Mapping[str, TensorRef], storages: Callable[[StorageRef], Bytes], size: int
) -> dict[str, tuple[np.ndarray, str]]:
    for name, ref in refs.items():
        ref.check(name)
    claimed = sum(ref.values * np.dtype(STORAGES[ref.storage.type]).itemsize for ref in refs.values())
    if claimed > _MAX_AMPLIFICATION * size:
        raise UnsafeCheckpoint(f"its tensors claim {claimed} bytes, the file has {size}")
    arrays: dict[str, tuple[np.ndarray, str]] = {}
    for name, ref in refs.items():
        data = storages(ref.storage)
        wanted = (ref.storage.start + ref.storage.values) * np.dtype(STORAGES[ref.storage.type]).itemsize
        if len(data) < wanted:
            raise DamagedCheckpoint(
                f"cut short: storage {ref.storage.key!r} of tensor {name!r} has {len(data)} bytes, expected {wanted}"
            )
        arrays[name] = to_array(ref, data)
    return arrays
