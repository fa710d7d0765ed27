"""Inception v1, v2 and v3 against what TF-Slim and torchvision computed of the same weights.

Weights are a function of their names (`tests.zoo.seeded`), so that they needn't lie anywhere. Run with -s to see the
measured differences.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from finetune.models.backbone import build_backbone
from finetune.models.restore import named_variables, restore
from finetune.models.task_model import load_head
from tests.zoo.seeded import Seeded, relative_differences, write_slim
from tests.zoo.torch_files import tensors as torch_tensors
from tests.zoo.torch_files import write_zip
from zoo.architectures import ARCHITECTURES
from zoo.architectures.facts import Arguments, Target
from zoo.architectures.matching import convert, match
from zoo.architectures.units import slim_input_spec
from zoo.cache import BlobCache
from zoo.catalog import Catalog
from zoo.importer import ImportResult, import_checkpoint
from zoo.input_spec import InputSpec
from zoo.manifest import Architecture
from zoo.readers.checkpoint import ForeignCheckpoint
from zoo.restore_report import IncompleteRestore
from zoo.store.local import LocalStore
from zoo.tensors import read_safetensors, write_safetensors

CLOSE = 1e-4  # of the largest value: what is asked for; measured are differences below 1e-6
SLIM_ENDS = {
    "inception_v1": ("Mixed_3b", "Mixed_4f", "Mixed_5c"),
    "inception_v2": ("Mixed_3b", "Mixed_4e", "Mixed_5c"),
    "inception_v3": ("Mixed_5b", "Mixed_6e", "Mixed_7c"),
}


@pytest.fixture(scope="module")
def seeded(shared: Path) -> Seeded:
    return Seeded(shared)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(LocalStore(tmp_path / "store"), BlobCache(tmp_path / "cache"))


def pooled_endpoints(
    architecture: Architecture, weights: Mapping[str, np.ndarray], ends: Sequence[str], image_BHWC: np.ndarray
) -> dict[str, np.ndarray]:
    """`<endpoint>_pooled_BC` and `feature_vector_BD` of a network with these weights."""
    size = image_BHWC.shape[1]
    model = build_backbone(architecture, InputSpec(height=size, width=size), endpoints=ends)
    restore(named_variables(model), weights).require_complete(architecture.name)
    outputs = {name: np.asarray(value) for name, value in model(image_BHWC).items()}
    pooled = {f"{name}_pooled_BC": outputs[name].mean(axis=(1, 2)) for name in ends}
    return {**pooled, "feature_vector_BD": outputs["feature_vector"]}


def computed(catalog: Catalog, ends: Sequence[str], image_BHWC: np.ndarray) -> dict[str, np.ndarray]:
    """What the model `m` gives as the references have it, its head included."""
    version = catalog.get("m")
    weights = read_safetensors(catalog.open_component(version, "backbone"))
    found = pooled_endpoints(version.manifest.architecture, weights, ends, image_BHWC)
    vector_BD = found.pop("feature_vector_BD")
    head: Any = load_head(catalog, version, vector_BD.shape[1])
    return {**found, "logits_BC": head.logits(vector_BD).numpy()}


def with_map(
    monkeypatch: pytest.MonkeyPatch, name: str, layout: str, change: Callable[[dict[str, Target]], dict[str, Target]]
) -> None:
    facts = ARCHITECTURES[name]
    original = facts.name_maps[layout]

    def backbone(arguments: Arguments) -> dict[str, Target]:
        return change(original.backbone(arguments))

    maps = {layout: dataclasses.replace(original, backbone=backbone)}  # the only one: another might fit better
    monkeypatch.setitem(ARCHITECTURES, name, dataclasses.replace(facts, name_maps=MappingProxyType(maps)))


@pytest.mark.parametrize(
    ("name", "size", "version"), [("inception_v1", 224, 1), ("inception_v2", 224, 2), ("inception_v3", 299, 2)]
)
def test_slim_checkpoints_compute_what_slim_computed(
    name: str, size: int, version: int, seeded: Seeded, catalog: Catalog, tmp_path: Path
) -> None:
    stored = seeded.tensors(f"{name}.slim")
    source = write_slim(tmp_path / "model.ckpt", stored, version=version)
    result = import_checkpoint(catalog, kind="slim", source=source, name="m")
    manifest = result.manifest
    assert (manifest.architecture.name, result.layout) == (name, "slim")
    assert manifest.input_spec == slim_input_spec(size)
    assert manifest.head is not None
    assert manifest.head.arguments["num_classes"] == 1001
    assert set(result.report.renamed) | set(result.report.unused) == set(stored)
    auxiliary = [n for n in stored if "/AuxLogits/" in n]
    assert sorted(result.report.unused) == sorted(auxiliary)
    reference = {n: v for n, v in seeded.reference(f"{name}.slim").items() if not n.startswith("AuxLogits")}
    assert len(reference) == 4
    found = computed(catalog, SLIM_ENDS[name], seeded.image(size))
    assert max(relative_differences(found, reference).values()) < CLOSE


@pytest.mark.parametrize(("name", "usual", "odd"), [("inception_v1", 224, 173), ("inception_v2", 224, 173)])
def test_every_endpoint_is_slims(name: str, usual: int, odd: int, seeded: Seeded) -> None:
    """At the usual size all of them; at an odd one, where every padding is another one, three."""
    check_endpoints(name, usual, odd, seeded)


@pytest.mark.slow
def test_every_endpoint_of_inception_v3_is_slims(seeded: Seeded) -> None:
    check_endpoints("inception_v3", 299, 203, seeded)


def check_endpoints(name: str, usual: int, odd: int, seeded: Seeded) -> None:
    weights = in_our_names(seeded.tensors(f"{name}.slim"), name, "slim")
    reference = seeded.reference(f"{name}.slim-endpoints")
    every = [endpoint.name for endpoint in ARCHITECTURES[name].endpoints]
    architecture = Architecture(name=name)
    found = pooled_endpoints(architecture, weights, every, seeded.image(usual))
    some = pooled_endpoints(architecture, weights, SLIM_ENDS[name], seeded.image(odd))
    found |= {f"{n}_pooled_{odd}_BC": some[f"{n}_pooled_BC"] for n in SLIM_ENDS[name]}
    vector = found.pop("feature_vector_BD")
    np.testing.assert_allclose(vector, found[f"{every[-1]}_pooled_BC"], rtol=1e-5)
    assert set(found) == set(reference)
    assert max(relative_differences(found, reference).values()) < CLOSE


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_torchvisions_googlenet(kind: str, seeded: Seeded, catalog: Catalog, tmp_path: Path) -> None:
    stored = seeded.tensors("inception_v1.torchvision")
    result = import_stored(catalog, kind, stored, tmp_path)
    assert (result.manifest.architecture.name, result.layout) == ("inception_v1", "torchvision")
    assert result.manifest.architecture.arguments == {"torch_padding": True}
    spec = result.manifest.input_spec  # its files want values in (-1, 1), and a crop of 224 from 256
    assert (spec.mean, spec.std, spec.fit, spec.crop_fraction) == ((0.5,) * 3, (0.5,) * 3, "shortest", 0.875)
    assert result.manifest.head is not None
    assert result.manifest.head.arguments["num_classes"] == 1000
    auxiliary = {n: why for n, why in result.report.unused.items() if n.startswith(("aux1.", "aux2."))}
    assert len(auxiliary) == 20
    assert all("auxiliary" in why for why in auxiliary.values())
    found = computed(catalog, SLIM_ENDS["inception_v1"], seeded.image(224))
    reference = {n: v for n, v in seeded.reference("inception_v1.torchvision").items() if "_237" not in n}
    assert max(relative_differences(found, reference).values()) < CLOSE


def test_torchvisions_googlenet_at_a_size_whose_maps_have_odd_sides(seeded: Seeded) -> None:
    """At 237 pixels its poolings meet maps of 119, 59 and 29, where PyTorch's and TensorFlow's begin differently."""
    stored = seeded.tensors("inception_v1.torchvision")
    weights = in_our_names(stored, "inception_v1", "torchvision")
    reference = {n: v for n, v in seeded.reference("inception_v1.torchvision").items() if "_237" in n}
    for torch_padding in (True, False):
        architecture = Architecture(name="inception_v1", arguments={"torch_padding": torch_padding})
        found = pooled_endpoints(architecture, weights, SLIM_ENDS["inception_v1"], seeded.image(237))
        found["logits_BC"] = found.pop("feature_vector_BD") @ stored["fc.weight"].T + stored["fc.bias"]
        odd = {name.replace("_BC", "_237_BC"): value for name, value in found.items()}
        off = max(relative_differences(odd, reference).values())
        assert off < CLOSE if torch_padding else off > 0.05


@pytest.mark.slow  # the network that test_parity compares with timm's, by way of names that are timm's too
def test_torchvisions_inception_v3(seeded: Seeded, catalog: Catalog, tmp_path: Path) -> None:
    result = import_stored(catalog, "safetensors", seeded.tensors("inception_v3.torchvision"), tmp_path)
    assert result.layout == "torch"
    assert result.manifest.architecture.arguments == {"pool_counts_padding": True}
    left_aside = [n for n in result.report.unused if n.startswith("AuxLogits.")]
    assert len(left_aside) == 14
    found = computed(catalog, SLIM_ENDS["inception_v3"], seeded.image(299))
    reference = seeded.reference("inception_v3.torchvision")
    assert max(relative_differences(found, reference).values()) < CLOSE


def import_stored(catalog: Catalog, kind: str, stored: Mapping[str, np.ndarray], folder: Path) -> ImportResult:
    if kind == "torch":
        source = write_zip(folder / "m.pth", torch_tensors(stored))
    else:
        source = folder / "m.safetensors"
        write_safetensors(source, stored)
    return import_checkpoint(catalog, kind=kind, source=source, name="m")


def in_our_names(stored: Mapping[str, np.ndarray], name: str, layout: str) -> dict[str, np.ndarray]:
    """The backbone of a checkpoint, by one name map."""
    facts = ARCHITECTURES[name]
    checkpoint = ForeignCheckpoint(files=(), tensors=stored, frameworks=(facts.name_maps[layout].framework,))
    found = match(checkpoint, facts, layout, {})
    found.report.require_complete(name)
    return convert(checkpoint, found)["backbone"]


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("inception_v1", "Mixed_4c/Branch_3/Conv2d_0b_1x1", "Mixed_4d/Branch_3/Conv2d_0b_1x1"),
        ("inception_v2", "Mixed_4b/Branch_1/Conv2d_0a_1x1/BatchNorm", "Mixed_3b/Branch_1/Conv2d_0a_1x1/BatchNorm"),
        ("inception_v2", "Mixed_5b/Branch_2/Conv2d_0c_3x3", "Mixed_5c/Branch_2/Conv2d_0c_3x3"),
    ],
)
def test_two_scopes_of_equal_shape_swapped_do_not_pass(
    name: str,
    one: str,
    other: str,
    seeded: Seeded,
    catalog: Catalog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    network = name.title().replace("_", "")

    def partner(stored: str) -> str:
        for here, there in ((f"{network}/{one}/", f"{network}/{other}/"), (f"{network}/{other}/", f"{network}/{one}/")):
            if stored.startswith(here):
                return there + stored.removeprefix(here)
        return stored

    with_map(monkeypatch, name, "slim", lambda original: {n: original[partner(n)] for n in original})
    source = write_slim(tmp_path / "model.ckpt", seeded.tensors(f"{name}.slim"))
    import_checkpoint(catalog, kind="slim", source=source, name="m")
    found = computed(catalog, SLIM_ENDS[name], seeded.image(224))
    assert relative_differences(found, {"logits_BC": seeded.reference(f"{name}.slim")["logits_BC"]})["logits_BC"] > 0.01


@pytest.mark.parametrize("name", SLIM_ENDS)
def test_a_map_that_is_off_by_one_unit_is_refused(
    name: str, seeded: Seeded, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(original: dict[str, Target]) -> dict[str, Target]:
        stored = list(original)
        return dict(zip(stored, [original[n] for n in (*stored[4:], *stored[:4])], strict=True))

    with_map(monkeypatch, name, "slim", moved)
    source = write_slim(tmp_path / "model.ckpt", seeded.tensors(f"{name}.slim"))
    with pytest.raises(IncompleteRestore, match="of another shape"):
        import_checkpoint(catalog, kind="slim", source=source, name="m", architecture=name)
    assert not list(catalog.store.list("models/"))


MODULES = {"3a": "3b", "3b": "3c", "4a": "4b", "4b": "4c", "4c": "4d", "4d": "4e", "4e": "4f", "5a": "5b", "5b": "5c"}
# torchvision's module → Slim's scope, written down apart from the maps that are tested with it.
GOOGLENET_SCOPES = {"conv1": "Conv2d_1a_7x7", "conv2": "Conv2d_2b_1x1", "conv3": "Conv2d_2c_3x3"} | {
    f"inception{theirs}.{branch}": f"Mixed_{ours}/{scope}"
    for theirs, ours in MODULES.items()
    for branch, scope in {
        "branch1": "Branch_0/Conv2d_0a_1x1",
        "branch2.0": "Branch_1/Conv2d_0a_1x1",
        "branch2.1": "Branch_1/Conv2d_0b_3x3",
        "branch3.0": "Branch_2/Conv2d_0a_1x1",
        "branch3.1": "Branch_2/Conv2d_0a_3x3" if ours == "5b" else "Branch_2/Conv2d_0b_3x3",
        "branch4.1": "Branch_3/Conv2d_0b_1x1",
    }.items()
}
SLIM_PARTS = {
    "conv.weight": "weights",
    "bn.weight": "BatchNorm/gamma",
    "bn.bias": "BatchNorm/beta",
    "bn.running_mean": "BatchNorm/moving_mean",
    "bn.running_var": "BatchNorm/moving_variance",
}


def test_slim_names_with_gamma_compute_what_torchvision_computed(seeded: Seeded) -> None:
    """torchvision's weights, gammas among them, under Slim's names: the two maps meet in one network."""
    theirs = seeded.tensors("inception_v1.torchvision")
    slim = {
        f"InceptionV1/{scope}/{SLIM_PARTS[part]}": theirs[f"{module}.{part}"]
        for module, scope in GOOGLENET_SCOPES.items()
        for part in SLIM_PARTS
    }
    slim = {name: value.transpose(2, 3, 1, 0) if value.ndim == 4 else value for name, value in slim.items()}
    weights = in_our_names(slim, "inception_v1", "slim-gamma")
    padded = Architecture(name="inception_v1", arguments={"torch_padding": True})
    outputs = pooled_endpoints(padded, weights, SLIM_ENDS["inception_v1"], seeded.image(224))
    reference = seeded.reference("inception_v1.torchvision")
    wanted = {name: reference[name] for name in outputs if name in reference}
    assert len(wanted) == 3
    assert max(relative_differences(outputs, wanted).values()) < CLOSE


@pytest.mark.parametrize(
    ("name", "arguments", "size", "map_size"),
    [
        ("inception_v1", {}, (15, 15), (1, 1)),
        ("inception_v1", {}, (100, 173), (4, 6)),
        ("inception_v1", {"torch_padding": True}, (15, 15), (1, 1)),
        ("inception_v1", {"torch_padding": True}, (100, 173), (3, 5)),  # as torchvision's own gives
        ("inception_v2", {}, (32, 32), (1, 1)),
        ("inception_v2", {}, (100, 173), (4, 6)),
    ],
)
def test_any_size(name: str, arguments: dict[str, bool], size: tuple[int, int], map_size: tuple[int, int]) -> None:
    architecture = Architecture(name=name, arguments=dict(arguments))
    model = build_backbone(architecture, InputSpec(height=size[0], width=size[1]))
    assert model.output["feature_map"].shape[1:3] == map_size
    image = np.zeros((1, *size, 3), np.float32)
    assert np.isfinite(model(image)["feature_vector"]).all()
