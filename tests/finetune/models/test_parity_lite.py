"""EfficientNet-Lite1 to Lite4 say what timm and the PyTorch port efficientnet_lite_pytorch said of the same weights."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from finetune.models.task_model import TaskModel, load_task_model
from tests.zoo.seeded import Seeded, relative_differences
from zoo.architectures import ARCHITECTURES
from zoo.architectures.efficientnet_lite import VARIANTS, Variant
from zoo.architectures.facts import Arguments, Target
from zoo.catalog import open_catalog
from zoo.importer import import_checkpoint
from zoo.tensors import write_safetensors


@pytest.fixture(scope="module")
def seeded(shared: Path) -> Seeded:
    return Seeded(shared)


def imported(tensors: dict[str, np.ndarray], folder: Path) -> TaskModel:
    source = folder / "seeded.safetensors"
    write_safetensors(source, tensors)
    catalog = open_catalog()
    import_checkpoint(catalog, kind="safetensors", source=source, name="m")
    return load_task_model(catalog, "m")


def outputs(model: TaskModel, image_BHWC: np.ndarray) -> dict[str, np.ndarray]:
    vector = model.backbone.feature_vector(image_BHWC).numpy()
    return {"feature_vector_BD": vector, "logits_BC": model.head.logits(vector).numpy()}  # type: ignore[attr-defined]


# The port pads once and for all for its usual size; at that size the result must be the same, 260 pixels included.
@pytest.mark.parametrize("library", ["timm", "pytorch"])
@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(variant, id=variant.name, marks=pytest.mark.slow if variant.depth > 1.2 else ())
        for variant in VARIANTS[1:]
    ],
)
def test_features_and_logits(variant: Variant, library: str, seeded: Seeded, tmp_path: Path) -> None:
    network = f"tf_{variant.name}.timm" if library == "timm" else f"{variant.name}.pytorch"
    model = imported(seeded.tensors(network), tmp_path)
    assert model.backbone.architecture.name == variant.name  # found by names and shapes alone
    spec = model.backbone.input_spec
    assert (spec.height, spec.width) == (variant.size, variant.size)
    assert spec.mean == ((0.5, 0.5, 0.5) if library == "timm" else (0.485, 0.456, 0.406))  # TensorFlow's; the port's
    off = relative_differences(outputs(model, seeded.image(variant.size)), seeded.reference(network))
    assert set(off) == {"feature_vector_BD", "logits_BC"}
    assert max(off.values()) < 1e-4


def test_two_blocks_taken_for_each_other_do_not_pass(
    seeded: Seeded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = ARCHITECTURES["efficientnet_lite1"]
    name_map = facts.name_maps["timm"]

    def swapped(arguments: Arguments) -> dict[str, Target]:
        names = name_map.backbone(arguments)
        one, other = "blocks.4.1.bn3.bias", "blocks.4.2.bn3.bias"
        return {**names, one: names[other], other: names[one]}

    maps = MappingProxyType({**facts.name_maps, "timm": dataclasses.replace(name_map, backbone=swapped)})
    monkeypatch.setitem(ARCHITECTURES, facts.name, dataclasses.replace(facts, name_maps=maps))
    network = "tf_efficientnet_lite1.timm"
    found = outputs(imported(seeded.tensors(network), tmp_path), seeded.image(240))
    assert relative_differences(found, seeded.reference(network))["feature_vector_BD"] > 1e-3
