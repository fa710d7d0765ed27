"""The foreign formats that can be read: one file and one line each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from zoo.errors import InvalidArgument
from zoo.readers import keras_h5, safetensors_file, tfjs, torch_pickle
from zoo.readers.checkpoint import ForeignCheckpoint

READERS: dict[str, Callable[[Path], ForeignCheckpoint]] = {
    "keras": keras_h5.read,
    "safetensors": safetensors_file.read,
    "tfjs": tfjs.read,
    "torch": torch_pickle.read,
}


class UnknownKind(InvalidArgument):
    """A format that is not in `READERS`."""


def read_checkpoint(kind: str, source: Path) -> ForeignCheckpoint:
    """Reads a foreign checkpoint whole. Raises UnknownKind and what its reader raises (`zoo.readers.checkpoint`)."""
    if kind not in READERS:
        raise UnknownKind(f"no reader for {kind!r}; there are {', '.join(sorted(READERS))}", kind=kind[:100])
    return READERS[kind](source)
