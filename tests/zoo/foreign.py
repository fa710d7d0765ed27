"""Foreign checkpoints with seeded values, made by turning our tensors back into another framework's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.tiny import tiny_tensors
from zoo.architectures import architecture_facts
from zoo.manifest import Architecture

BACK = {"same": None, "conv_oihw": (3, 2, 0, 1), "depthwise_oihw": (2, 3, 0, 1), "linear_oi": (1, 0)}


def foreign_tensors(name: str, layout: str, *, seed: int = 0) -> dict[str, np.ndarray]:
    """The backbone in a foreign layout; a map that multiplies gammas in gets gammas of 1."""
    facts = architecture_facts(name)
    name_map = facts.name_maps[layout]
    ours = tiny_tensors(Architecture(name=name, arguments=dict(name_map.arguments)), seed=seed)
    found: dict[str, np.ndarray] = {}
    for stored, target in name_map.backbone(facts.resolved(name_map.arguments)).items():
        axes = BACK[target.layout]
        value = ours[target.name]
        found[stored] = np.ascontiguousarray(value if axes is None else value.transpose(axes))
        if target.times is not None:
            found[target.times] = np.ones(value.shape[-1], np.float32)
    return found


def with_torch_head(tensors: Mapping[str, np.ndarray], *, classes: int, width: int = 1280) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    head = {
        "_fc.weight": (rng.standard_normal((classes, width)) * 0.05).astype(np.float32),
        "_fc.bias": (rng.standard_normal(classes) * 0.05).astype(np.float32),
    }
    return {**tensors, **head, "_bn0.num_batches_tracked": np.array(5, np.int64)}


def write_tfjs(folder: Path, tensors: Mapping[str, np.ndarray], topology: Any = None) -> Path:
    """An unquantised TF.js model of one shard."""
    folder.mkdir()
    weights = [{"name": name, "shape": list(value.shape), "dtype": "float32"} for name, value in tensors.items()]
    (folder / "weights.bin").write_bytes(b"".join(value.astype("<f4").tobytes() for value in tensors.values()))
    model = {"modelTopology": topology, "weightsManifest": [{"paths": ["weights.bin"], "weights": weights}]}
    (folder / "model.json").write_text(json.dumps(model))
    return folder


def dense_topology(*layers: tuple[str, str, float], epsilon: float = 0.001) -> dict[str, Any]:
    """A model that ends in dense layers (name, activation, dropout after it)."""
    before = "flat"
    written: list[dict[str, Any]] = [
        {"class_name": "BatchNormalization", "name": "bn", "config": {"epsilon": epsilon}, "inbound_nodes": []},
        {"class_name": "Flatten", "name": "flat", "config": {}, "inbound_nodes": [[["bn", 0, 0, {}]]]},
    ]
    for name, activation, dropout in layers:
        config: dict[str, Any] = {"name": name, "activation": activation}
        node = [[[before, 0, 0, {}]]]
        written.append({"class_name": "Dense", "name": name, "config": config, "inbound_nodes": node})
        before = name
        if dropout:
            node = [[[name, 0, 0, {}]]]
            drop = {"class_name": "Dropout", "name": f"{name}_drop", "config": {"rate": dropout}, "inbound_nodes": node}
            written.append(drop)
            before = f"{name}_drop"
    return {"model_config": {"config": {"layers": written, "output_layers": [[before, 0, 0]]}}}
