"""An unpickler that can only make containers and descriptions of tensors.

Takes the bytes of one pickle of a PyTorch checkpoint. Gives dicts, lists, plain values and TensorRefs. Next:
`zoo.readers.torch_pickle`, which reads the tensors' values.

A pickle is a program. Two fences keep it from doing anything: before it runs, every opcode and every imported name is
checked against a short list; when it runs, the listed names mean inert stand-ins of ours. No code of PyTorch is needed.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.readers.checkpoint import DamagedCheckpoint, NotACheckpoint, UnsafeCheckpoint

MAX_PICKLE_BYTES = 64 << 20  # names and shapes only: the pickle of a 300-tensor network has 40 kB

# Storage class → NumPy's type of its values; bfloat16 is kept as its bits and widened later.
STORAGES: dict[str, str] = {
    "FloatStorage": "<f4",
    "DoubleStorage": "<f8",
    "HalfStorage": "<f2",
    "BFloat16Storage": "<u2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "|i1",
    "ByteStorage": "|u1",
    "BoolStorage": "|b1",
}

_OPCODES = frozenset(
    """
    PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4
    FLOAT BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES
    SHORT_BINBYTES EMPTY_LIST APPEND APPENDS LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT
    SETITEM SETITEMS GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD
    PERSID BINPERSID
    """.split()  # noqa: SIM905 - a list of fifty would fill the page
)
_MAX_INTEGER_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class StorageRef:
    """A run of values in the checkpoint, by its key."""

    key: str
    type: str  # a key of STORAGES
    values: int
    start: int = 0  # value at which it begins, where it is a view of another storage


@dataclass(frozen=True, kw_only=True)
class TensorRef:
    """A tensor that has not been read: a window on a storage."""

    storage: StorageRef
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def values(self) -> int:
        count = 1
        for side in self.shape:
            count *= side
        return count

    def check(self, name: str) -> None:
        """Raises DamagedCheckpoint or UnsafeCheckpoint unless the window lies within its storage."""
        if self.values > self.storage.values:
            raise UnsafeCheckpoint(
                f"tensor {name!r} claims {self.values} values ({self.shape}), its storage has {self.storage.values}"
            )
        last = self.offset + sum((side - 1) * step for side, step in zip(self.shape, self.stride, strict=True))
        if self.values and last >= self.storage.values:
            raise DamagedCheckpoint(
                f"tensor {name!r} reaches to value {last} of a storage with {self.storage.values} values"
            )


class _Marker:
    """Stands for a storage class; nothing can be done with it."""

    __slots__ = ("type",)

    def __init__(self, type_: str) -> None:
        self.type = type_


class _Ordered(dict[Any, Any]):
    """Stands for collections.OrderedDict; what PyTorch hangs on it (`_metadata`) is dropped."""

    def __init__(self, pairs: Sequence[tuple[Any, Any]] = ()) -> None:
        super().__init__(pairs)

    def __setstate__(self, state: Any) -> None:
        pass


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> TensorRef:
    """Stands for torch._utils._rebuild_tensor_v2; `rest` (requires_grad, hooks, metadata) means nothing here."""
    sides = (*shape, *stride) if isinstance(shape, tuple) and isinstance(stride, tuple) else (None,)
    whole = all(type(side) is int and 0 <= side < 2**48 for side in (*sides, offset))
    if not isinstance(storage, StorageRef) or not whole or len(shape) != len(stride) or len(shape) > 32:
        raise DamagedCheckpoint(f"a tensor of shape {shape!r:.100} and stride {stride!r:.100} at {offset!r:.50}")
    return TensorRef(storage=storage, offset=offset, shape=shape, stride=stride)


def _parameter(data: Any, *rest: Any) -> Any:
    """Stands for torch._utils._rebuild_parameter: a parameter is its tensor."""
    return data


_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _Ordered,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    **{("torch", name): _Marker(name) for name in STORAGES},
}


def _named(module: str, name: str) -> Any:
    if (module, name) not in _NAMES:
        raise UnsafeCheckpoint(
            f"the pickle names {module}.{name}; this reader makes tensors and nothing else, so nothing was loaded",
            hint="convert it to safetensors where it was made: safetensors.torch.save_file(state_dict, FILE)",
            named=f"{module}.{name}"[:200],
        )
    return _NAMES[module, name]


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _named(module, name)

    def persistent_load(self, pid: Any) -> StorageRef:
        """`("storage", class, key, device, values)`, in the old layout with a sixth entry `None` or `(key, offset,
        values)` for a view (torch.serialization)."""
        if (
            not isinstance(pid, tuple)
            or len(pid) not in (5, 6)
            or pid[0] != "storage"
            or not isinstance(pid[1], _Marker)
        ):
            raise NotACheckpoint(f"the pickle refers to {pid!r:.200}, which is no tensor storage")
        key, values = pid[2], pid[4]
        view = pid[5] if len(pid) == 6 else None
        start, count = (
            (0, values) if view is None else view[1:] if isinstance(view, tuple) and len(view) == 3 else (-1, -1)
        )
        if not isinstance(key, str) or any(type(number) is not int or number < 0 for number in (values, start, count)):
            raise DamagedCheckpoint(f"the pickle refers to the storage {pid[2:]!r:.200}")
        if start + count > values:
            raise DamagedCheckpoint(f"the pickle's view {view!r:.200} reaches over its storage of {values} values")
        return StorageRef(key=key, type=pid[1].type, values=count, start=start)


def pickle_end(data: bytes | memoryview, start: int) -> int:
    """Where the pickle that begins at `start` ends, after checking every opcode and name in it without running any.

    Raises UnsafeCheckpoint, DamagedCheckpoint, NotACheckpoint.
    """
    chunk = bytes(data[start : start + MAX_PICKLE_BYTES])
    file = io.BytesIO(chunk)
    try:
        for opcode, argument, position in pickletools.genops(file):
            _check_opcode(opcode.name, argument, position, len(chunk))
    except (ValueError, UnicodeDecodeError, IndexError) as error:
        cut = "the file ends inside a pickle" if file.tell() >= len(chunk) else f"not a pickle: {error}"
        raise DamagedCheckpoint(f"{cut} (at byte {start + file.tell()})") from None
    return start + file.tell()


def _check_opcode(name: str, argument: Any, position: int | None, size: int) -> None:
    if name in ("GLOBAL", "INST"):
        module, _, attribute = str(argument).partition(" ")
        _named(module, attribute)
    if name not in _OPCODES:
        raise UnsafeCheckpoint(f"the pickle uses the opcode {name} (at byte {position}), which tensors don't need")
    # The memo is an array: a small file with a huge index would fill the memory.
    if name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument) > size:
        raise UnsafeCheckpoint(f"the pickle wants {argument} places in memory, more than it has bytes ({size})")
    if name in ("LONG", "LONG1", "LONG4", "INT") and abs(argument) >= 1 << (8 * _MAX_INTEGER_BYTES):
        raise UnsafeCheckpoint(f"the pickle holds an integer of more than {_MAX_INTEGER_BYTES} bytes")


def load_pickle(data: bytes | memoryview, start: int, end: int) -> Any:
    """The value of the pickle in `data[start:end]`, of which `pickle_end` found nothing wrong.

    Raises UnsafeCheckpoint, DamagedCheckpoint, NotACheckpoint.
    """
    try:
        return _Unpickler(io.BytesIO(bytes(data[start:end])), encoding="utf-8").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise DamagedCheckpoint(f"the pickle at byte {start} does not make sense: {error}") from None
    except (MemoryError, RecursionError, OverflowError) as error:
        raise UnsafeCheckpoint(f"the pickle at byte {start} asks for too much: {error!r}") from None


def to_array(ref: TensorRef, data: bytes | memoryview) -> tuple[np.ndarray, str]:
    """The values of a tensor whose storage's bytes (of the key) are `data`, and the type that they have on disk."""
    stored = np.frombuffer(data, dtype=STORAGES[ref.storage.type])
    values = stored[ref.storage.start : ref.storage.start + ref.storage.values]
    step = values.itemsize
    window = np.lib.stride_tricks.as_strided(
        values[ref.offset :] if ref.values else values[:0],
        shape=ref.shape,
        strides=[side * step for side in ref.stride],
        writeable=False,
    )
    if ref.storage.type == "BFloat16Storage":  # the upper half of a float32's bits
        return (window.astype(np.uint32) << 16).view(np.float32), "bfloat16"
    return np.array(window, order="C"), window.dtype.name
