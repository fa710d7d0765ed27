"""Keras 3's files written by hand, layout by layout, where Keras itself would write no such thing."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

Values = Sequence[np.ndarray]


def write_v3(path: Path, groups: Mapping[str, tuple[str | None, Values]]) -> Path:
    """A weights file: group of a layer → (the layer's name, as Keras has noted it since 3.6; its values)."""
    with h5py.File(path, "w") as file:
        for group, (title, values) in groups.items():
            at = file.create_group(f"{group}/vars")
            if title is not None:
                at.attrs["name"] = title
            for place, value in enumerate(values):
                at.create_dataset(str(place), data=value)
    return path


def layer(kind: str, name: str, *sources: str, **config: Any) -> dict[str, Any]:
    """A layer as Keras 3 writes it, which takes the outputs of `sources`."""
    args = [{"class_name": "__keras_tensor__", "config": {"keras_history": [source, 0, 0]}} for source in sources]
    nodes = [{"args": args if len(args) < 2 else [args], "kwargs": {"mask": None}}] if args else []
    return {
        "module": "keras.layers",
        "class_name": kind,
        "config": {"name": name, **config},
        "registered_name": None,
        "name": name,
        "inbound_nodes": nodes,
    }


def functional(name: str, layers: Sequence[dict[str, Any]], output: str) -> dict[str, Any]:
    config = {"name": name, "layers": list(layers), "output_layers": [output, 0, 0]}
    return {"class_name": "Functional", "config": config, "name": name}


def sequential(*layers: dict[str, Any]) -> dict[str, Any]:
    return {"class_name": "Sequential", "config": {"name": "sequential", "layers": list(layers)}}


def write_archive(path: Path, config: Any, weights: Path | None, *more: tuple[zipfile.ZipInfo | str, bytes]) -> Path:
    """A `.keras`; `config` as JSON, or the bytes themselves."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", json.dumps({"keras_version": "3.15.1"}))
        archive.writestr("config.json", config if isinstance(config, bytes) else json.dumps(config))
        if weights is not None:
            archive.writestr("model.weights.h5", weights.read_bytes())
        for entry, data in more:
            archive.writestr(entry, data)
    return path
