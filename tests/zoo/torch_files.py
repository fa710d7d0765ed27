"""Writes what `torch.save` writes, in both layouts, without PyTorch; and the same with something wrong in it.

After torch/serialization.py (`_legacy_save`, `_save`): a tensor is a call of `_rebuild_tensor_v2` on a storage, which
is a persistent id `("storage", class, key, device, values)`.
"""

from __future__ import annotations

import io
import pickle
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
CLASSES = {"float32": "FloatStorage", "float64": "DoubleStorage", "float16": "HalfStorage", "int64": "LongStorage"}


class Storage:
    """`values` as they lie on disk; `kind` is the storage class, by default that of the values' dtype."""

    def __init__(self, key: str, values: np.ndarray, *, kind: str | None = None, claims: int | None = None) -> None:
        self.key = key
        self.values = np.ascontiguousarray(values).reshape(-1)
        self.kind = kind or CLASSES[values.dtype.name]
        self.claims = self.values.size if claims is None else claims


class Tensor:
    def __init__(
        self, storage: Storage, shape: tuple[int, ...], *, stride: tuple[int, ...] | None = None, offset: int = 0
    ) -> None:
        steps = [1]
        for side in reversed(shape[1:]):
            steps.insert(0, steps[0] * side)
        self.storage, self.shape, self.offset = storage, shape, offset
        self.stride = tuple(steps[: len(shape)]) if stride is None else stride

    def __reduce__(self) -> Any:
        rebuild = sys.modules["torch._utils"]._rebuild_tensor_v2
        return rebuild, (self.storage, self.offset, self.shape, self.stride, False, OrderedDict())


def tensors(values: Mapping[str, np.ndarray]) -> OrderedDict[str, Any]:
    """A state_dict of whole tensors, each with a storage of its own."""
    state: OrderedDict[str, Any] = OrderedDict()
    for place, (name, value) in enumerate(values.items()):
        state[name] = Tensor(Storage(str(place), value), value.shape)
    return state


def write_legacy(path: Path, obj: Any, *, keys: list[str] | None = None) -> Path:
    with _torch() as names:
        data, storages = _pickled(obj, names, tail=(None,))
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    parts = [pickle.dumps(value, protocol=2) for value in (MAGIC, 1001, system)]
    order = sorted(storages) if keys is None else keys
    parts += [data, pickle.dumps(order, protocol=2)]
    for key in order:
        storage = storages[key]
        parts += [storage.claims.to_bytes(8, "little"), storage.values.tobytes()]
    path.write_bytes(b"".join(parts))
    return path


def write_zip(
    path: Path,
    obj: Any,
    *,
    compression: int = zipfile.ZIP_STORED,
    without: tuple[str, ...] = (),
    raw: bytes | None = None,
) -> Path:
    """`raw`: the bytes of data.pkl, in place of the object's."""
    with _torch() as names:
        data, storages = _pickled(obj, names, tail=())
    with zipfile.ZipFile(path, "w", compression) as archive:
        entries = {"data.pkl": data if raw is None else raw, "byteorder": b"little", "version": b"3\n"}
        entries |= {f"data/{key}": storage.values.tobytes() for key, storage in storages.items()}
        for name, content in entries.items():
            if name not in without:
                archive.writestr(f"archive/{name}", content)
    return path


def _pickled(obj: Any, names: types.ModuleType, tail: tuple[Any, ...]) -> tuple[bytes, dict[str, Storage]]:
    storages: dict[str, Storage] = {}

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            if not isinstance(value, Storage):
                return None
            storages[value.key] = value
            return ("storage", getattr(names, value.kind), value.key, "cpu", value.claims, *tail)

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump(obj)
    return buffer.getvalue(), storages


@contextmanager
def _torch() -> Iterator[types.ModuleType]:
    """Modules named as PyTorch's, so that pickling finds the names to write; gone again afterwards."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")

    def _rebuild_tensor_v2(*parts: Any) -> None:
        raise AssertionError("only its name is ever used")

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    utils._rebuild_tensor_v2 = _rebuild_tensor_v2  # type: ignore[attr-defined]
    for kind in (*CLASSES.values(), "BFloat16Storage"):
        setattr(torch, kind, type(kind, (), {"__module__": "torch"}))
    before = {name: sys.modules.get(name) for name in ("torch", "torch._utils")}
    sys.modules |= {"torch": torch, "torch._utils": utils}
    try:
        yield torch
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
