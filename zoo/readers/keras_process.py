"""Reads Keras' files in a process of their own, and takes only arrays and facts from it.

Takes a path. Gives a ForeignCheckpoint. Next: `zoo.importer`. The process is `zoo.readers.keras_child`.

The HDF5 library (1.14) was written for files that one's own programs made: with a few changed bytes it overruns its
memory or walks in circles (fuzzing found both within minutes). Here that costs the child, which may compute for a
while only, and is told as damage; the importing process, which may hold other work, never opens the file.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from zoo.errors import Internal, ZooError, from_dict
from zoo.readers.checkpoint import (
    DamagedCheckpoint,
    DenseLayer,
    ForeignCheckpoint,
    MissingCheckpointFile,
    NotACheckpoint,
    UnsafeCheckpoint,
)
from zoo.tensors import read_safetensors

TENSORS, FACTS, ERROR = "tensors.safetensors", "facts.json", "error.json"
REFUSED = 3  # the child's exit status when it has written ERROR
_ENDS = {
    signal.SIGXCPU: "computed without end in the HDF5 library",
    signal.SIGKILL: "was killed, as for want of memory",
}
_ERRORS: dict[str, type[ZooError]] = {
    leaf.__name__: leaf for leaf in (DamagedCheckpoint, MissingCheckpointFile, NotACheckpoint, UnsafeCheckpoint)
}


def read(source: Path, *, seconds: int = 10) -> ForeignCheckpoint:
    """Reads every weight; the child may compute for `seconds` (waiting for a slow disk doesn't count), and longer for
    a large file.

    Raises what `zoo.readers.keras_file.read` raises; DamagedCheckpoint also where the file brought the child down.

    A child that got no memory is told as killed: nobody can tell who asked for too much.
    """
    with tempfile.TemporaryDirectory(prefix="zoo-import-") as folder:
        child = subprocess.run(
            [sys.executable, "-m", "zoo.readers.keras_child", str(source), folder, str(seconds)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        if child.returncode == 0:
            return _checkpoint(Path(folder))
        if child.returncode == REFUSED:
            raise _error(json.loads((Path(folder) / ERROR).read_bytes()))
        if child.returncode < 0:
            number = signal.Signals(-child.returncode)
            how = _ENDS.get(number, f"crashed in the HDF5 library ({number.name})")
            raise DamagedCheckpoint(
                f"{source} is damaged, or made to do harm: the process that read it {how}; nothing else was touched"
            )
        told = child.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise Internal(f"{source}: the process that reads it ended with {child.returncode}: {told[:500]}")


def _checkpoint(folder: Path) -> ForeignCheckpoint:
    facts = json.loads((folder / FACTS).read_bytes())
    stored = read_safetensors(folder / TENSORS)
    return ForeignCheckpoint(
        files=tuple(Path(path) for path in facts["files"]),
        tensors={name: stored[name] for name in facts["names"]},
        frameworks=("keras",),
        widened=facts["widened"],
        dense=tuple(DenseLayer(**layer) for layer in facts["dense"]),
        batch_norm_epsilons=frozenset(facts["batch_norm_epsilons"]),
        aside=facts["aside"],
        notes=tuple(facts["notes"]),
    )


def _error(told: dict[str, Any]) -> ZooError:
    leaf = _ERRORS.get(told["reason"])
    return from_dict(told) if leaf is None else leaf(told["message"], hint=told["hint"], **told["details"])
