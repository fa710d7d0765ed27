"""Real weights against what independent runtimes computed from them. Run with -s to see the measured differences."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from finetune.models.task_model import TaskModel, load_task_model
from zoo.architectures import ARCHITECTURES
from zoo.architectures.facts import ArchitectureFacts, Arguments, NameMap, Target
from zoo.cache import BlobCache
from zoo.catalog import Catalog
from zoo.importer import import_checkpoint
from zoo.input_spec import InputSpec
from zoo.restore_report import IncompleteRestore
from zoo.store.local import LocalStore
from zoo.tensors import read_safetensors, write_safetensors


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(LocalStore(tmp_path / "store"), BlobCache(tmp_path / "cache"))


def imported(catalog: Catalog, kind: str, source: Path, spec: Path | InputSpec, **options: Any) -> TaskModel:
    import_checkpoint(catalog, kind=kind, source=source, name="m", input_spec=spec, **options)
    return load_task_model(catalog, "m")


def normalised(pixels_BHWC: np.ndarray, spec: InputSpec) -> np.ndarray:
    """(pixel × scale − mean) / std, written out here: parity must not rest on our own preprocessing."""
    scaled = pixels_BHWC.astype(np.float32) * np.float32(spec.scale)
    return ((scaled - np.float32(spec.mean)) / np.float32(spec.std)).astype(np.float32)


def outputs(model: TaskModel, image_BHWC: np.ndarray) -> dict[str, np.ndarray]:
    vector = model.backbone.feature_vector(image_BHWC).numpy()
    return {
        "feature_vector_BD": vector,
        "feature_map_BHWC": model.backbone.feature_map(image_BHWC).numpy(),
        "logits_BC": model.head.logits(vector).numpy(),  # type: ignore[attr-defined]
        "probabilities_BC": model.head.probabilities(vector).numpy(),  # type: ignore[attr-defined]
    }


def differences(found: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray]) -> dict[str, float]:
    both = [name for name in reference if name in found]
    result = {name: float(np.abs(found[name] - reference[name]).max()) for name in both}
    print("largest differences:", result)
    return result


def test_inception_v3_from_tfjs(shared: Path, catalog: Catalog) -> None:
    folder = shared / "checkpoints/inception_v3_tfjs"
    reference = read_safetensors(folder / "reference.safetensors")
    model = imported(catalog, "tfjs", folder, folder / "input_spec.json", classes=folder / "classes.json")
    found = outputs(model, normalised(reference["pixels_BHWC_uint8"], model.backbone.input_spec))
    off = differences(found, reference)
    assert off["feature_vector_BD"] < 1e-4
    assert off["probabilities_BC"] < 1e-5
    assert model.head.classes == ("Drawing", "Hentai", "Neutral", "Porn", "Sexy")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "file"),
    [("safetensors", "efficientnet_lite0.safetensors"), ("torch", "efficientnet-lite0-57934424.pth")],
)
def test_efficientnet_lite0(kind: str, file: str, shared: Path, catalog: Catalog) -> None:
    folder = shared / "checkpoints/efficientnet_lite0"
    reference = read_safetensors(folder / "reference.safetensors")
    model = imported(catalog, kind, folder / file, folder / "input_spec.json")
    found = outputs(model, normalised(reference["pixels_BHWC_uint8"], model.backbone.input_spec))
    off = differences(found, reference)
    assert off["feature_vector_BD"] < 1e-3
    assert off["feature_map_BHWC"] < 1e-3
    assert off["logits_BC"] < 1e-3


@pytest.mark.parametrize(("network", "size"), [("tf_efficientnet_lite0", 224), ("inception_v3", 299)])
def test_seeded_weights_against_timm(network: str, size: int, shared: Path, catalog: Catalog, tmp_path: Path) -> None:
    folder = shared / "checkpoints/seeded"
    seeded = _module(folder / "seeded.py")
    shapes = json.loads((folder / f"{network}.timm.shapes.json").read_text())
    source = tmp_path / "seeded.safetensors"
    write_safetensors(source, {name: seeded.value(name, tuple(shape)) for name, shape in shapes.items()})
    usual = InputSpec(height=size, width=size, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    model = imported(catalog, "safetensors", source, usual)
    reference = read_safetensors(folder / f"{network}.timm.reference.safetensors")
    found = outputs(model, (seeded.pixels(size) / 127.5 - 1).astype(np.float32))
    found["feature_map_mean_B_C"] = found["feature_map_BHWC"].mean(axis=(1, 2))
    off = differences(found, reference)
    assert set(off) == {"feature_vector_BD", "feature_map_mean_B_C", "logits_BC"}
    assert max(off.values()) < 1e-3


def test_swapped_names_of_equal_shape_do_not_pass(
    shared: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swapped(original: dict[str, Target]) -> dict[str, Target]:
        one, other = "_blocks.6._depthwise_conv.weight", "_blocks.7._depthwise_conv.weight"
        return {**original, one: original[other], other: original[one]}

    _with_map(monkeypatch, "efficientnet_lite0", "torch", swapped)
    folder = shared / "checkpoints/efficientnet_lite0"
    reference = read_safetensors(folder / "reference.safetensors")
    source = folder / "efficientnet_lite0.safetensors"
    model = imported(catalog, "safetensors", source, folder / "input_spec.json")
    found = outputs(model, normalised(reference["pixels_BHWC_uint8"], model.backbone.input_spec))
    assert differences(found, reference)["feature_vector_BD"] > 0.1


def test_a_map_that_is_off_by_one_does_not_pass(
    shared: Path, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(original: dict[str, Target]) -> dict[str, Target]:
        stored = list(original)
        return dict(zip(stored, [original[name] for name in (*stored[4:], *stored[:4])], strict=True))

    _with_map(monkeypatch, "inception_v3", "keras", moved)
    with pytest.raises(IncompleteRestore, match="of another shape"):
        import_checkpoint(catalog, kind="tfjs", source=shared / "checkpoints/inception_v3_tfjs", name="m")


def _with_map(monkeypatch: pytest.MonkeyPatch, architecture: str, layout: str, change: Any) -> None:
    facts: ArchitectureFacts = ARCHITECTURES[architecture]
    name_map: NameMap = facts.name_maps[layout]

    def backbone(arguments: Arguments) -> dict[str, Target]:
        return dict(change(name_map.backbone(arguments)))

    changed = dataclasses.replace(name_map, backbone=backbone)
    maps = MappingProxyType({**facts.name_maps, layout: changed})
    monkeypatch.setitem(ARCHITECTURES, architecture, dataclasses.replace(facts, name_maps=maps))


def _module(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
