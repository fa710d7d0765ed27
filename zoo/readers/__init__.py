"""The foreign formats that can be read: one file and one line each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from zoo.errors import InvalidArgument
from zoo.readers import hub, keras_process, safetensors_file, slim, tfjs, torch_pickle
from zoo.readers.checkpoint import ForeignCheckpoint, ReadOptions

# A source is a path on this machine, or what else the format's own tools take, e.g. a handle. Readers that there is
# nothing to choose for take the path alone.
READERS: dict[str, Callable[[str, ReadOptions], ForeignCheckpoint]] = {
    "hub": hub.read,
    "keras": lambda source, options: keras_process.read(Path(source)),
    "safetensors": lambda source, options: safetensors_file.read(Path(source)),
    "slim": lambda source, options: slim.read(Path(source), options),
    "tfjs": lambda source, options: tfjs.read(Path(source)),
    "torch": lambda source, options: torch_pickle.read(Path(source), options),
}


class UnknownKind(InvalidArgument):
    """A format that is not in `READERS`."""


def read_checkpoint(kind: str, source: str | Path, options: ReadOptions | None = None) -> ForeignCheckpoint:
    """Reads a foreign checkpoint whole. Raises UnknownKind and what its reader raises (`zoo.readers.checkpoint`)."""
    if kind not in READERS:
        raise UnknownKind(f"no reader for {kind!r}; there are {', '.join(sorted(READERS))}", kind=kind[:100])
    return READERS[kind](str(source), options or ReadOptions())
