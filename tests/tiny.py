"""A backbone small enough for any test: EfficientNet-Lite0 at an eighth of its width, with seeded weights."""

from __future__ import annotations

import hashlib
import math
import tempfile
import zlib
from pathlib import Path

import numpy as np

from zoo.architectures import architecture_facts
from zoo.catalog import Catalog, ModelVersion
from zoo.input_spec import InputSpec
from zoo.manifest import Architecture, Component, Manifest
from zoo.tensors import write_safetensors

TINY = Architecture(name="efficientnet_lite0", arguments={"width": 0.125})
TINY_FEATURE_DIM = 160


def tiny_tensors(architecture: Architecture = TINY, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Seeded values of sensible size for every tensor of a backbone: activations neither die nor explode."""
    facts = architecture_facts(architecture.name)
    shapes = facts.tensor_shapes(facts.resolved(architecture.arguments))
    return {name: _value(name, shape, seed) for name, shape in shapes.items()}


def _value(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    noise = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape)
    kind = name.rpartition("/")[2]
    if kind in ("kernel", "depthwise_kernel"):
        fan_in = math.prod(shape[:2]) if kind == "depthwise_kernel" else math.prod(shape[:-1])
        return (noise * math.sqrt(2 / fan_in)).astype(np.float32)
    around_one = kind in ("gamma", "moving_variance")
    return (np.exp(0.1 * noise) if around_one else 0.1 * noise).astype(np.float32)


def tiny_backbone_version(
    catalog: Catalog, name: str = "tiny", *, seed: int = 0, size: int = 32, architecture: Architecture = TINY
) -> ModelVersion:
    """Publishes a backbone (no head) whose input is `size` × `size` RGB / 255; the feature vector has 160 values."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "backbone.safetensors"
        tensors = tiny_tensors(architecture, seed=seed)
        write_safetensors(path, tensors)
        digest = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
        component = Component(name="backbone", digest=digest, bytes=path.stat().st_size, num_tensors=len(tensors))
        manifest = Manifest(
            architecture=architecture, input_spec=InputSpec(height=size, width=size), components=(component,)
        )
        return catalog.publish(name, manifest, {digest: path}).version
