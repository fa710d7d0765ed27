"""The header of a safetensors file that isn't here as a whole: which tensors there are, and at which bytes.

Takes the file's first bytes. Gives a TensorPlace a tensor. Next: `zoo.tensor_fetch` reads those bytes alone.

`zoo.tensors` reads whole files through the library, which checks their header; what it refuses is refused here too:
https://github.com/huggingface/safetensors#format. 8 bytes say the length of a JSON object (little-endian), whose
entries give dtype, shape and the place behind it; no two overlap, and nothing lies between them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.tensors import DamagedTensors, TensorInfo, UnstorableTensor, numpy_name, width_of

LENGTH_BYTES = 8  # before the header
MAX_HEADER = 100_000_000  # bytes; the library's limit too


@dataclass(frozen=True, kw_only=True)
class TensorPlace:
    info: TensorInfo
    start: int  # in the file; `info.bytes` bytes from there

    @property
    def end(self) -> int:
        return self.start + self.info.bytes

    def value(self, data: bytes, start: int) -> np.ndarray:
        """The tensor, from bytes of the file that begin at `start`; it keeps them in memory and can't be written to."""
        if self.info.dtype == "bfloat16":
            import ml_dtypes  # noqa: F401 - makes NumPy know that type
        count = math.prod(self.info.shape)
        if count == 0:
            return np.empty(self.info.shape, np.dtype(self.info.dtype))
        little = np.dtype(self.info.dtype).newbyteorder("<")
        return np.frombuffer(data, little, count, self.start - start).reshape(self.info.shape)


def header_length(first: bytes, size: int, where: str) -> int:
    """Bytes of the header, from the file's first 8; `size`: of the file. Raises DamagedTensors."""
    length = int.from_bytes(first[:LENGTH_BYTES], "little")
    if size < LENGTH_BYTES or not 2 <= length <= min(MAX_HEADER, size - LENGTH_BYTES):
        raise DamagedTensors(
            f"{where} is not a safetensors file: its first 8 bytes announce a header of {length} bytes, of {size} in "
            f"all (allowed: up to {MAX_HEADER})"
        )
    return length


def parse_header(text: bytes, size: int, where: str) -> dict[str, TensorPlace]:
    """Name → place. `text`: the header; `size`: of the file; `where` names it in errors.

    Raises DamagedTensors, UnstorableTensor (a type not known here).
    """
    try:
        value = json.loads(text, object_pairs_hook=_without_doubles)
    except (ValueError, RecursionError) as error:
        raise DamagedTensors(f"{where}: its header is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise DamagedTensors(f"{where}: its header holds a JSON {type(value).__name__}, an object was expected")
    value.pop("__metadata__", None)
    begin = LENGTH_BYTES + len(text)
    places = {name: _place(name, entry, begin, where) for name, entry in value.items()}
    end = begin
    for name, place in sorted(places.items(), key=lambda item: (item[1].start, item[1].end)):
        if place.start != end:
            raise DamagedTensors(f"{where}: tensor {name!r} begins at byte {place.start}, {end} was expected")
        end = place.end
    if end != size:
        raise DamagedTensors(f"{where}: its tensors end at byte {end}, the file at {size}")
    return places


def _place(name: str, entry: Any, begin: int, where: str) -> TensorPlace:
    try:
        stored, shape, (first, last) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        sound = all(type(number) is int and number >= 0 for number in (*shape, first, last))
    except (TypeError, KeyError, ValueError):
        sound = False
    if not sound:
        raise DamagedTensors(f"{where}: the header's entry for tensor {name!r} is {json.dumps(entry)[:200]}")
    dtype = numpy_name(stored)
    if dtype is None:
        raise UnstorableTensor(f"{where}: tensor {name!r} has the type {stored!r:.50}, which is not known here")
    size = math.prod(shape) * width_of(stored)
    if last - first != size:
        raise DamagedTensors(f"{where}: tensor {name!r} ({dtype} {list(shape)}) has {last - first} bytes, not {size}")
    return TensorPlace(info=TensorInfo(name=name, dtype=dtype, shape=shape, bytes=size), start=begin + first)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a name comes twice")
    return value
