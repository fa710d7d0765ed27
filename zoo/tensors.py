"""The only door to safetensors: named arrays in one file that holds nothing but a header and bytes.

Reading goes through the safetensors library, which checks every offset. Writing is ours, after the format's
description (https://github.com/huggingface/safetensors#format): the library writes metadata in the order of a hash
map seeded anew in every process, and a component's digest must depend on its contents only.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from zoo.atomic_file import replaced_file, storage_error
from zoo.errors import DataLoss, InvalidArgument, NotFound

_DTYPES = {  # NumPy's name → the format's; bfloat16 is ml_dtypes' extension of NumPy
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
_NUMPY_NAMES = {stored: name for name, stored in _DTYPES.items()}


class DamagedTensors(DataLoss):
    """A safetensors file that is cut short or isn't one."""


class UnknownTensor(NotFound):
    """A tensor name that the file doesn't have."""


class UnstorableTensor(InvalidArgument):
    """An array, or a stored tensor, of a type that isn't known here; or a name that the format doesn't take."""


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    name: str
    dtype: str  # NumPy's name, e.g. "float32"
    shape: tuple[int, ...]
    bytes: int


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes the file atomically; equal tensors and metadata give equal bytes, whatever their order.

    Raises UnstorableTensor, and the errors of `zoo.atomic_file` (NoSpace, NoAccess, …).
    """
    pieces = _pieces(tensors, metadata)
    with replaced_file(path) as file:
        for piece in pieces:
            file.write(piece)


def safetensors_digest(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> str:
    """`sha256:<hex>` of the file that `write_safetensors` would write. Raises UnstorableTensor."""
    state = hashlib.sha256()
    for piece in _pieces(tensors, metadata):
        state.update(piece)
    return "sha256:" + state.hexdigest()


def _pieces(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None) -> list[bytes | memoryview]:
    """The file's bytes, in order; the tensors aren't copied. Raises UnstorableTensor."""
    arrays = {name: _storable(name, tensors[name]) for name in sorted(tensors)}
    # Wide types first, as the library has it, so that every tensor is aligned to its own width.
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    end = 0
    for name in order:
        begin, end = end, end + arrays[name].nbytes
        dtype = _DTYPES[arrays[name].dtype.name]
        header[name] = {"dtype": dtype, "shape": list(arrays[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    values = [arrays[name].reshape(-1).view(np.uint8).data for name in order]
    return [len(text).to_bytes(8, "little"), text, *values]


def _storable(name: str, value: np.ndarray) -> np.ndarray:
    array = np.ascontiguousarray(value).reshape(np.shape(value))  # ascontiguousarray makes a scalar [1]
    if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big"):
        array = array.astype(array.dtype.newbyteorder("<"))
    if array.dtype.name not in _DTYPES:
        allowed = ", ".join(_DTYPES)
        raise UnstorableTensor(f"tensor {name!r}: dtype {array.dtype} cannot be stored; allowed: {allowed}")
    if not name or name == "__metadata__":
        raise UnstorableTensor(f"a tensor cannot be called {name!r}")
    return array


def read_safetensors(path: Path, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """The tensors `names` (default: all), in the order of their names, dtypes as stored.

    The file is mapped into memory and only the asked tensors are copied out of it.
    Raises DamagedTensors, UnknownTensor, UnstorableTensor (a type not known here), and the errors of `zoo.atomic_file`
    (FileMissing, NoAccess, …).
    """
    with _opened(path) as file:
        stored = set(file.keys())
        wanted = sorted(stored if names is None else set(names))
        unknown = [name for name in wanted if name not in stored]
        if unknown:
            some = ", ".join(unknown[:5])
            raise UnknownTensor(f"{path} has no tensor {some} ({len(unknown)} unknown names, {len(stored)} stored)")
        if any(_info(path, name, file.get_slice(name)).dtype == "bfloat16" for name in wanted):
            import ml_dtypes  # noqa: F401 - makes NumPy know that type
        return {name: file.get_tensor(name) for name in wanted}


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that the file's writer added. Raises as `read_safetensors`."""
    with _opened(path) as file:
        return dict(file.metadata() or {})


def tensor_infos(path: Path) -> dict[str, TensorInfo]:
    """What is in the file, from its header only, in the order of the names. Raises as `read_safetensors`."""
    with _opened(path) as file:
        return {name: _info(path, name, file.get_slice(name)) for name in sorted(file.keys())}


def _info(path: Path, name: str, view: Any) -> TensorInfo:
    stored = view.get_dtype()
    if stored not in _NUMPY_NAMES:
        raise UnstorableTensor(f"{path}: tensor {name!r} has dtype {stored}; known are {', '.join(_NUMPY_NAMES)}")
    shape = tuple(view.get_shape())
    size = int(np.prod(shape, dtype=int)) * width_of(stored)
    return TensorInfo(name=name, dtype=_NUMPY_NAMES[stored], shape=shape, bytes=size)


def numpy_name(stored: object) -> str | None:
    """NumPy's name of a type of the format; None for one that isn't known here."""
    return _NUMPY_NAMES.get(stored) if isinstance(stored, str) else None


def width_of(stored: str) -> int:
    """Bytes of a value of the format's type `stored`, one that is known here."""
    return 1 if stored == "BOOL" else int(stored.lstrip("BFIU")) // 8


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        size = path.stat().st_size
        if not path.is_file():  # a directory or a device can't be mapped
            raise DamagedTensors(f"{path} is not a safetensors file: it is not a regular file")
        if size == 0:
            raise DamagedTensors(f"{path} is not a safetensors file: it is empty (0 bytes)")
        with safetensors.safe_open(os.fspath(path), framework="numpy") as file:
            yield file
    except safetensors.SafetensorError as error:
        raise DamagedTensors(
            f"{path} is damaged, or not a safetensors file ({size} bytes): {error}", path=str(path)
        ) from error
    except OSError as error:
        raise storage_error(error, "read", path) from error
