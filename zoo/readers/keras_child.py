"""The process that reads a Keras file: `python -m zoo.readers.keras_child SOURCE FOLDER SECONDS`.

Takes a path, a folder to answer in, and how long it may compute. Gives arrays and facts, or the refusal. Next:
`zoo.readers.keras_process`.
"""

from __future__ import annotations

import json
import resource
import sys
from dataclasses import asdict
from pathlib import Path

from zoo.errors import ZooError
from zoo.readers.keras_file import read
from zoo.readers.keras_process import ERROR, FACTS, REFUSED, TENSORS
from zoo.tensors import write_safetensors

_BYTES_PER_SECOND = 10_000_000  # slower than any machine reads; 90 MB take half a second here


def main(source: Path, folder: Path, seconds: int) -> int:
    size = sum(path.stat().st_size for path in ([source] if source.is_file() else source.glob("*")) if path.exists())
    limit = seconds + size // _BYTES_PER_SECOND
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        found = read(source)
    except ZooError as error:
        (folder / ERROR).write_text(json.dumps(error.to_dict()))
        return REFUSED
    write_safetensors(folder / TENSORS, found.tensors)
    facts = {
        "files": [str(path) for path in found.files],
        "names": list(found.tensors),
        "widened": dict(found.widened),
        "dense": [asdict(layer) for layer in found.dense],
        "batch_norm_epsilons": sorted(found.batch_norm_epsilons),
        "aside": dict(found.aside),
        "notes": found.notes,
    }
    (folder / FACTS).write_text(json.dumps(facts))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
