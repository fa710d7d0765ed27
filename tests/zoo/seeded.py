"""Checkpoints whose every tensor is a function of its name, for comparison with what other libraries computed of them.

Values, pixels and reference outputs lie with the shared data, beside `seeded.py`, which makes the values; references
of more networks, made in the same way, lie in `tests/data`.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import numpy as np

from zoo.tensors import read_safetensors

DATA = Path(__file__).resolve().parents[1] / "data"


class Seeded:
    """The seeded values by network, e.g. `inception_v1.slim`: it has `.shapes.json` and `.reference.safetensors`."""

    def __init__(self, shared: Path) -> None:
        self._folders = (shared / "checkpoints/seeded", DATA)
        self._module = _load(shared / "checkpoints/seeded/seeded.py")

    def tensors(self, network: str) -> dict[str, np.ndarray]:
        """Stored name → value, every tensor of the checkpoint; float32 but for PyTorch's counters."""
        shapes: dict[str, list[int]] = json.loads(self._file(f"{network}.shapes.json").read_text())
        counter = np.array(0, np.int64)
        return {
            name: counter if name.endswith("num_batches_tracked") else self.value(name, tuple(shape))
            for name, shape in shapes.items()
        }

    def value(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        value: np.ndarray = self._module.value(name, shape)
        return value

    def image(self, size: int) -> np.ndarray:
        """What went into the references: float32 [2, size, size, 3] in (-1, 1)."""
        return (self._module.pixels(size) / 127.5 - 1).astype(np.float32)

    def reference(self, network: str) -> dict[str, np.ndarray]:
        """What the other library computed: name → array. The file's metadata says how it was run."""
        return dict(read_safetensors(self._file(f"{network}.reference.safetensors")))

    def _file(self, name: str) -> Path:
        found = [folder / name for folder in self._folders if (folder / name).is_file()]
        if not found:
            raise FileNotFoundError(f"no {name} in {', '.join(map(str, self._folders))}")
        return found[0]


def write_slim(path: Path, tensors: Mapping[str, np.ndarray], *, version: int = 2) -> Path:
    """A checkpoint of variables by name that TensorFlow writes: `<path>.index` and a shard; in V1 the file `path`."""
    import tensorflow as tf

    names, values = list(tensors), [tf.constant(value) for value in tensors.values()]
    if version == 2:
        whole = [""] * len(names)
        tf.raw_ops.SaveV2(prefix=str(path), tensor_names=names, shape_and_slices=whole, tensors=values)
    else:
        tf.raw_ops.Save(filename=str(path), tensor_names=names, data=values)
    return path


def relative_differences(found: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Name → largest difference over the largest reference value, for every name in `reference`."""
    result = {}
    for name, wanted in reference.items():
        assert found[name].shape == wanted.shape, f"{name}: {found[name].shape}, the reference has {wanted.shape}"
        result[name] = float(np.abs(found[name] - wanted).max() / np.abs(wanted).max())
    print("differences over the largest value:", result)
    return result


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
