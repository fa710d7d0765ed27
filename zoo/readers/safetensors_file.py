"""Reads a safetensors file with any framework's names.

Takes a `.safetensors` file. Gives a ForeignCheckpoint. Next: `zoo.importer`.
"""

from __future__ import annotations

from pathlib import Path

from zoo.readers.checkpoint import ForeignCheckpoint, existing_file, widen
from zoo.tensors import read_safetensors


def read(source: Path) -> ForeignCheckpoint:
    """Raises MissingCheckpointFile, DamagedTensors."""
    path = existing_file(source, what="a safetensors checkpoint", suffixes=(".safetensors",))
    tensors, widened = widen(read_safetensors(path))
    return ForeignCheckpoint(files=(path,), tensors=tensors, frameworks=("torch", "keras"), widened=widened)
