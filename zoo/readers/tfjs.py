"""Reads a TensorFlow.js layers-model: `model.json` and binary shards, plain or quantised.

Takes the folder or its `model.json`. Gives a ForeignCheckpoint. Next: `zoo.importer`.

Format: https://github.com/tensorflow/tfjs/tree/master/tfjs-core/src/io (`WeightsManifestEntry`, `decodeWeights`). The
shards of a group are one string of bytes, in which the weights follow each other in manifest order. The topology is
read as data, to learn what the dense layers are; no layer is ever made from it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from zoo.readers.checkpoint import (
    DamagedCheckpoint,
    ForeignCheckpoint,
    MissingCheckpointFile,
    NotACheckpoint,
    UnsafeCheckpoint,
    existing_file,
)
from zoo.readers.keras_topology import refuse_code, topology_facts

MODEL_FILE = "model.json"
MAX_MODEL_BYTES = 64 << 20
_DTYPES = {"float32": "<f4", "int32": "<i4", "bool": "|b1", "uint8": "|u1"}
_QUANTISED = {"uint8": "|u1", "uint16": "<u2", "float16": "<f2"}


@dataclass(frozen=True, kw_only=True)
class Weight:
    """An entry of the manifest, checked."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    stored: str  # NumPy's type of the stored bytes
    scale: float | None = None
    minimum: float = 0.0

    @property
    def values(self) -> int:
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        return self.values * np.dtype(self.stored).itemsize


def read(source: Path) -> ForeignCheckpoint:
    """Reads and dequantises every weight.

    Raises:
        MissingCheckpointFile: no model.json, or shards missing; all are looked for before any is read.
        NotACheckpoint: not a layers-model, or a type that this reader doesn't know.
        DamagedCheckpoint: shards that are shorter or longer than the manifest says.
        UnsafeCheckpoint: a shard outside the folder, or code in the topology.
    """
    model_file = source / MODEL_FILE if source.is_dir() else source
    if source.is_dir() and not model_file.exists():
        raise MissingCheckpointFile(f"{source} has no {MODEL_FILE}, which a TF.js model begins with")
    existing_file(model_file, what="a TF.js model.json", suffixes=(".json",))
    model = _json(model_file)
    refuse_code(model.get("modelTopology"), str(model_file))
    groups = [_group(model_file, place, entry) for place, entry in enumerate(_manifest(model_file, model))]
    shards = [shard for paths, _ in groups for shard in paths]
    missing = sorted({shard.name for shard in shards if not shard.is_file()})
    if missing:
        raise MissingCheckpointFile(
            f"{model_file.parent}: {len(missing)} of {len(shards)} shards are missing: {', '.join(missing)}",
            missing=",".join(missing)[:500],
        )
    for paths, weights in groups:
        _check_size(model_file, paths, weights)
    tensors: dict[str, np.ndarray] = {}
    for paths, weights in groups:
        data = b"".join(path.read_bytes() for path in paths)
        start = 0
        for weight in weights:
            if weight.name in tensors:
                raise DamagedCheckpoint(f"{model_file}: two weights are named {weight.name!r}")
            tensors[weight.name] = _decode(weight, data[start : start + weight.bytes])
            start += weight.bytes
    every = [weight for _, weights in groups for weight in weights]
    dense, epsilons = topology_facts(model.get("modelTopology"))
    return ForeignCheckpoint(
        files=(model_file, *dict.fromkeys(shards)),
        tensors=tensors,
        frameworks=("keras",),
        dequantised=frozenset(weight.name for weight in every if weight.scale is not None),
        widened={weight.name: "float16" for weight in every if weight.stored == "<f2"},
        dense=dense,
        batch_norm_epsilons=epsilons,
    )


def _json(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_MODEL_BYTES:
        raise UnsafeCheckpoint(
            f"{path} has {path.stat().st_size} bytes; a TF.js model.json has at most {MAX_MODEL_BYTES}"
        )
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise NotACheckpoint(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise NotACheckpoint(f"{path} holds a {type(value).__name__}, a TF.js model is a JSON object")
    return value


def _manifest(path: Path, model: Mapping[str, Any]) -> list[Any]:
    manifest = model.get("weightsManifest")
    if not isinstance(manifest, list) or not manifest:
        raise NotACheckpoint(
            f"{path} is no TF.js model: it has no weightsManifest; its keys are {', '.join(sorted(model)) or 'none'}"
        )
    return manifest


def _group(model_file: Path, place: int, entry: Any) -> tuple[list[Path], list[Weight]]:
    if (
        not isinstance(entry, dict)
        or not isinstance(entry.get("paths"), list)
        or not isinstance(entry.get("weights"), list)
    ):
        raise NotACheckpoint(f"{model_file}: weightsManifest[{place}] has no lists `paths` and `weights`")
    paths = [_shard(model_file, name) for name in entry["paths"]]
    return paths, [_weight(model_file, weight) for weight in entry["weights"]]


def _shard(model_file: Path, name: Any) -> Path:
    """A shard is a file in the model's folder or below; anything else would read files nobody meant to share."""
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        raise NotACheckpoint(f"{model_file}: {name!r} is not the name of a shard")
    pure = PurePosixPath(name)
    folder = model_file.parent.resolve()
    path = model_file.parent / pure
    if pure.is_absolute() or ".." in pure.parts or not path.resolve().is_relative_to(folder):
        raise UnsafeCheckpoint(f"{model_file}: shard {name!r} lies outside the model's folder")
    return path


def _weight(model_file: Path, entry: Any) -> Weight:
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name:
        raise NotACheckpoint(f"{model_file}: a weight without a name: {str(entry)[:100]}")
    shape, dtype, quantisation = entry.get("shape"), entry.get("dtype"), entry.get("quantization")
    if not isinstance(shape, list) or not all(type(side) is int and side >= 0 for side in shape):
        raise NotACheckpoint(f"{model_file}: weight {name!r} has the shape {shape!r}")
    if dtype not in _DTYPES:
        raise NotACheckpoint(f"{model_file}: weight {name!r} has the type {dtype!r}; known are {', '.join(_DTYPES)}")
    if quantisation is None:
        return Weight(name=name, shape=tuple(shape), dtype=dtype, stored=_DTYPES[dtype])
    stored = quantisation.get("dtype") if isinstance(quantisation, dict) else None
    if stored not in _QUANTISED or (stored == "float16" and dtype != "float32") or dtype not in ("float32", "int32"):
        raise NotACheckpoint(
            f"{model_file}: weight {name!r} ({dtype}) is quantised as {stored!r}; known are {', '.join(_QUANTISED)}"
        )
    if stored == "float16":
        return Weight(name=name, shape=tuple(shape), dtype=dtype, stored=_QUANTISED[stored])
    scale, minimum = quantisation.get("scale"), quantisation.get("min")
    numbers = [value for value in (scale, minimum) if isinstance(value, int | float) and math.isfinite(value)]
    if len(numbers) != 2:
        raise NotACheckpoint(f"{model_file}: weight {name!r} has the scale {scale!r} and the minimum {minimum!r}")
    return Weight(
        name=name, shape=tuple(shape), dtype=dtype, stored=_QUANTISED[stored], scale=numbers[0], minimum=numbers[1]
    )


def _check_size(model_file: Path, paths: list[Path], weights: list[Weight]) -> None:
    found = sum(path.stat().st_size for path in paths)
    wanted = sum(weight.bytes for weight in weights)
    if found != wanted:
        sizes = ", ".join(f"{path.name} {path.stat().st_size}" for path in paths)
        what = "cut short" if found < wanted else "too long"
        raise DamagedCheckpoint(
            f"{model_file.parent}: the shards are {what}: {found} bytes, the manifest wants {wanted} ({sizes})"
        )


def _decode(weight: Weight, data: bytes) -> np.ndarray:
    """Affine values are scale · integer + minimum in double precision, then float32: as TF.js computes them, whose
    numbers are doubles and whose arrays are Float32Array."""
    stored = np.frombuffer(data, dtype=weight.stored).reshape(weight.shape)
    if weight.scale is None:
        return stored.astype(weight.dtype)
    real = stored.astype(np.float64) * weight.scale + weight.minimum
    # JavaScript's Math.round: halves go up.
    return (np.floor(real + 0.5) if weight.dtype == "int32" else real).astype(weight.dtype)
