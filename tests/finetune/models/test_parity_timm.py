"""Inception v4, Inception-ResNet v2 and Xception against what timm, TF-Slim and Keras compute with the same weights.

References of timm lie with the shared data, those of TF-Slim in `tests/data`. Run with -s to see the differences.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.models.backbone import InputTooSmall, build_backbone
from finetune.models.restore import named_variables, restore
from finetune.models.task_model import TaskModel, load_head, load_task_model
from tests.finetune.models.timm_to_slim import renamed_to_slim
from tests.zoo.seeded import Seeded, relative_differences
from tests.zoo.torch_files import tensors as torch_tensors
from tests.zoo.torch_files import write_zip
from zoo.architectures import ARCHITECTURES
from zoo.architectures.facts import ArchitectureFacts, Target
from zoo.architectures.matching import convert, match
from zoo.cache import BlobCache
from zoo.catalog import Catalog
from zoo.importer import ImportResult, import_checkpoint
from zoo.input_spec import InputSpec
from zoo.manifest import Architecture
from zoo.readers.checkpoint import ForeignCheckpoint
from zoo.store.local import LocalStore
from zoo.tensors import read_safetensors, write_safetensors

NETWORKS = ("inception_v4", "inception_resnet_v2", "xception")
LONG = pytest.param("inception_resnet_v2", marks=pytest.mark.slow)  # a big network: 10 to 20 s a test
EACH = ["inception_v4", LONG, pytest.param("xception", marks=pytest.mark.slow)]
SLIM = pytest.mark.parametrize("name", ["inception_v4", LONG])
TOLERANCE = 1e-4  # of the reference's largest value

# Two tensors of one shape in timm's names, which nothing but their place in the network tells apart.
ALIKE = {
    "inception_v4": ("features.11.branch1.1.conv.weight", "features.12.branch1.1.conv.weight"),
    "inception_resnet_v2": ("repeat_1.3.conv2d.weight", "repeat_1.4.conv2d.weight"),
    "xception": ("block5.rep.1.conv1.weight", "block6.rep.1.conv1.weight"),
}


@dataclass(frozen=True)
class Imported:
    """A network imported from a safetensors file with timm's names and seeded values."""

    name: str
    result: ImportResult
    model: TaskModel


@pytest.fixture(scope="module")
def seeded(shared: Path) -> Seeded:
    return Seeded(shared)


@pytest.fixture(scope="module", params=EACH)
def imported(request: pytest.FixtureRequest, seeded: Seeded, tmp_path_factory: pytest.TempPathFactory) -> Imported:
    folder = tmp_path_factory.mktemp(request.param)
    source = folder / "seeded.safetensors"
    write_safetensors(source, seeded.tensors(f"{request.param}.timm"))
    catalog = catalog_in(folder)
    result = import_checkpoint(catalog, kind="safetensors", source=source, name="m")
    source.unlink()
    return Imported(request.param, result, load_task_model(catalog, "m"))


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return catalog_in(tmp_path)


def catalog_in(folder: Path) -> Catalog:
    return Catalog(LocalStore(folder / "store"), BlobCache(folder / "cache"))


def outputs(model: TaskModel, image_BHWC: np.ndarray) -> dict[str, np.ndarray]:
    answer = model.backbone.model(image_BHWC, training=False)
    vector = answer["feature_vector"].numpy()
    return {
        "feature_vector_BD": vector,
        "feature_map_mean_B_C": answer["feature_map"].numpy().mean(axis=(1, 2)),
        "logits_BC": model.head.logits(vector).numpy(),  # type: ignore[attr-defined]
    }


def test_timm(imported: Imported, seeded: Seeded) -> None:
    off = relative_differences(outputs(imported.model, seeded.image(299)), seeded.reference(f"{imported.name}.timm"))
    assert set(off) == {"feature_vector_BD", "feature_map_mean_B_C", "logits_BC"}
    assert max(off.values()) < TOLERANCE
    manifest, report = imported.result.manifest, imported.result.report
    assert manifest.architecture.name == imported.name
    assert manifest.architecture.arguments == ARCHITECTURES[imported.name].name_maps["timm"].arguments
    assert manifest.head is not None
    assert manifest.head.arguments["num_classes"] == 1000
    folded = {stored for stored, why in report.unused.items() if "multiplied into other tensors" in why}
    counters = {stored for stored in report.unused if stored.endswith(".num_batches_tracked")}
    assert folded | counters == set(report.unused)
    assert len(folded) == (0 if imported.name == "xception" else len(counters))


def test_flops_are_those_of_the_network(imported: Imported) -> None:
    counted = 0
    for layer in imported.model.backbone.model.layers:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.SeparableConv2D):
            _, height, width, _ = layer.output.shape
            kernels = [weight.shape for weight in layer.weights if weight.name != "bias"]
            counted += 2 * height * width * sum(int(np.prod(shape)) for shape in kernels)
    assert ARCHITECTURES[imported.name].flops == pytest.approx(counted, rel=0.01)


def test_two_swapped_names_do_not_pass(imported: Imported, seeded: Seeded) -> None:
    one, other = ALIKE[imported.name]

    def swapped(names: dict[str, Target]) -> dict[str, Target]:
        return {**names, one: names[other], other: names[one]}

    variables = named_variables(imported.model.backbone.model)
    right = {name: variable.numpy() for name, variable in variables.items()}
    wrong = converted(imported.name, "timm", seeded.tensors(f"{imported.name}.timm"), swapped)["backbone"]
    assert sum(not np.array_equal(right[name], wrong[name]) for name in right) == 2
    try:
        restore(variables, wrong).require_complete("swapped")
        found = outputs(imported.model, seeded.image(299)[:1])
    finally:
        restore(variables, right).require_complete("as they were")
    reference = {name: value[:1] for name, value in seeded.reference(f"{imported.name}.timm").items()}
    assert min(relative_differences(found, reference).values()) > 10 * TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("imported", ["xception"], indirect=True)
def test_a_pth_gives_the_same_model(seeded: Seeded, imported: Imported, catalog: Catalog, tmp_path: Path) -> None:
    source = write_zip(tmp_path / "xception.pth", torch_tensors(seeded.tensors("xception.timm")))
    manifest = import_checkpoint(catalog, kind="torch", source=source, name="m").manifest
    assert manifest.components == imported.result.manifest.components
    assert manifest.architecture == imported.result.manifest.architecture


@pytest.mark.parametrize(
    ("name", "layout", "network"),
    [
        ("inception_v4", "timm", "inception_v4.timm"),
        ("inception_v4", "slim", "inception_v4.slim"),
        ("inception_resnet_v2", "timm", "inception_resnet_v2.timm"),
        pytest.param("inception_resnet_v2", "slim", "inception_resnet_v2.slim", marks=pytest.mark.slow),
        ("xception", "timm", "xception.timm"),
    ],
)
def test_a_map_that_is_off_by_one_does_not_fit(name: str, layout: str, network: str, seeded: Seeded) -> None:
    def moved(names: dict[str, Target]) -> dict[str, Target]:
        stored = list(names)
        return dict(zip(stored, [names[each] for each in (*stored[1:], stored[0])], strict=True))

    checkpoint = foreign(name, layout, seeded.tensors(network))
    assert match(checkpoint, ARCHITECTURES[name], layout, {}).report.complete
    changed = changed_map(name, layout, moved)
    assert match(checkpoint, changed, layout, {}).report.mismatched


@SLIM
def test_slim(name: str, seeded: Seeded, catalog: Catalog, tmp_path: Path) -> None:
    prefix = tmp_path / "model.ckpt"
    tensors = seeded.tensors(f"{name}.slim")
    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(tensors),
        shape_and_slices=[""] * len(tensors),
        tensors=[*tensors.values()],
    )
    result = import_checkpoint(catalog, kind="slim", source=prefix, name="m")
    manifest = result.manifest
    assert result.layout == "slim"
    assert set(result.report.unused) == {stored for stored in tensors if "/AuxLogits/" in stored}
    reference = seeded.reference(f"{name}.slim")
    wanted = [each.removesuffix("_pooled_BC") for each in reference if each.endswith("_pooled_BC")]
    assert len(wanted) > 5
    model = build_backbone(manifest.architecture, manifest.input_spec, endpoints=wanted)
    restore(named_variables(model), stored_backbone(catalog)).require_complete(name)
    answer = model(seeded.image(299), training=False)
    found = {f"{end}_pooled_BC": answer[end].numpy().mean(axis=(1, 2)) for end in wanted}
    head = load_head(catalog, catalog.get("m"), 1536)
    found["logits_BC"] = head.logits(answer["feature_vector"]).numpy()  # type: ignore[attr-defined]
    assert found["logits_BC"].shape == (2, 1001)
    assert max(relative_differences(found, reference).values()) < TOLERANCE


@SLIM
def test_slim_with_gamma_is_timm_renamed(name: str, seeded: Seeded) -> None:
    """timm's tensors under TF-Slim's names, by a rename written on its own: the same backbone and head to the bit."""
    timm = seeded.tensors(f"{name}.timm")
    slim = renamed_to_slim(name, timm)
    without_aux = {stored for stored in seeded.tensors(f"{name}.slim") if "/AuxLogits/" not in stored}
    assert {stored for stored in slim if not stored.endswith("/gamma")} == without_aux
    theirs, ours = converted(name, "timm", timm), converted(name, "slim-gamma", slim)
    assert set(ours) == set(theirs) == {"backbone", "head"}
    for part, tensors in theirs.items():
        assert set(ours[part]) == set(tensors)
        for tensor, value in tensors.items():
            np.testing.assert_array_equal(ours[part][tensor], value, err_msg=tensor)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras 3.15's, under NumPy 2
@pytest.mark.parametrize("name", [LONG, "xception"])
def test_keras(name: str, catalog: Catalog, tmp_path: Path) -> None:
    """Keras' own network, saved by Keras both ways: one and the same backbone, which computes what Keras does."""
    from keras.src.legacy.saving import legacy_h5_format

    theirs, ends = keras_network(name, size=139)
    theirs.save_weights(tmp_path / "new.weights.h5")
    with h5py.File(tmp_path / "legacy.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, theirs)
    digests = set()
    for file in ("new.weights.h5", "legacy.h5"):
        result = import_checkpoint(catalog, kind="keras", source=tmp_path / file, name="m")
        component = result.manifest.component("backbone")
        assert component is not None
        digests.add(component.digest)
        assert (result.manifest.architecture.name, result.layout) == (name, "keras-from-0")
        assert not result.report.unused
    assert len(digests) == 1
    spec = InputSpec(height=139, width=139)
    model = build_backbone(Architecture(name=name), spec, endpoints=list(ends))
    restore(named_variables(model), stored_backbone(catalog)).require_complete(name)
    image = np.random.default_rng(1).uniform(-1, 1, (2, 139, 139, 3)).astype(np.float32)
    answer = model(image, training=False)
    reference = keras.Model(theirs.input, {end: theirs.get_layer(layer).output for end, layer in ends.items()})(image)
    off = relative_differences({end: answer[end].numpy() for end in ends}, {k: v.numpy() for k, v in reference.items()})
    assert len(off) >= 4
    assert max(off.values()) < 1e-6
    assert np.array_equal(answer["feature_map"], answer[ARCHITECTURES[name].endpoints[-1].name])


def keras_network(name: str, *, size: int) -> tuple[keras.Model, dict[str, str]]:
    """Keras Applications' network with seeded values that neither die nor explode, and endpoint → Keras' layer."""
    if name == "xception":
        model = keras.applications.Xception(include_top=False, weights=None, input_shape=(size, size, 3))
        sums = sorted(
            (layer.name for layer in model.layers if isinstance(layer, keras.layers.Add)),
            key=lambda each: int(each.partition("_")[2] or 0),
        )
        ends = {"block1": "block1_conv2_act", **{f"block{n}": each for n, each in enumerate(sums, start=2)}}
        ends["block14"] = "block14_sepconv2_act"
    else:
        model = keras.applications.InceptionResNetV2(include_top=False, weights=None, input_shape=(size, size, 3))
        ends = {f"Mixed_{each}": f"mixed_{each}" for each in ("5b", "6a", "7a")}
        ends |= {"PreAuxLogits": "block17_20_ac", "Conv2d_7b_1x1": "conv_7b_ac"}
    for layer in model.layers:
        for weight in layer.weights:
            rng = np.random.default_rng(zlib.crc32(f"{layer.name}/{weight.name}".encode()))
            value = rng.standard_normal(weight.shape)
            if "kernel" in weight.name:
                depthwise = weight.name == "depthwise_kernel"
                value *= np.sqrt(2 / np.prod(weight.shape[:2] if depthwise else weight.shape[:-1]))
            elif weight.name in ("gamma", "moving_variance"):
                value = np.exp(0.1 * value)
            else:
                value *= 0.1
            weight.assign(value)
    return model, ends


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_smallest_size_and_any_other(name: str) -> None:
    architecture, least = Architecture(name=name), ARCHITECTURES[name].min_size
    tiny = build_backbone(architecture, InputSpec(height=least, width=least + 20))
    assert tiny.output["feature_map"].shape[1:3] == (1, 1)
    image = np.random.default_rng(0).uniform(-1, 1, (1, least, least + 20, 3)).astype(np.float32)
    assert np.isfinite(tiny(image)["feature_vector"]).all()
    with pytest.raises(InputTooSmall, match=f"at least {least} × {least} pixels"):
        build_backbone(architecture, InputSpec(height=least - 1, width=299))


@pytest.mark.slow
def test_xception_pads_and_normalises_as_it_is_told() -> None:
    """The padding tells on even sides only; the epsilon everywhere."""

    def vector(size: int, **arguments: float | bool) -> np.ndarray:
        model = build_backbone(Architecture(name="xception", arguments=arguments), InputSpec(height=size, width=size))
        for name, variable in named_variables(model).items():
            rng = np.random.default_rng(zlib.crc32(name.encode()))
            if name.endswith("kernel"):
                fan_in = np.prod(variable.shape[:2] if "depthwise" in name else variable.shape[:-1])
                variable.assign(rng.standard_normal(variable.shape) * np.sqrt(2 / fan_in))
        image = np.random.default_rng(0).uniform(-1, 1, (1, size, size, 3)).astype(np.float32)
        return np.asarray(model(image)["feature_vector"])

    # 71 → 35 → 33 → 17 → 9 → 5 → 3, odd throughout; 75 → 37 → 35 → 18 → 9 …: the second pooling meets an even side.
    plain, even = vector(71), vector(75)
    np.testing.assert_array_equal(vector(71, pool_pads_both_sides=True), plain)
    assert np.abs(vector(75, pool_pads_both_sides=True) - even).max() > 0.01 * np.abs(even).max()
    assert np.abs(vector(71, batch_norm_epsilon=1e-5) - plain).max() > 1e-3 * np.abs(plain).max()


def foreign(name: str, layout: str, tensors: Mapping[str, np.ndarray]) -> ForeignCheckpoint:
    return ForeignCheckpoint(files=(), tensors=tensors, frameworks=(ARCHITECTURES[name].name_maps[layout].framework,))


def changed_map(name: str, layout: str, change: Callable[[dict[str, Target]], dict[str, Target]]) -> ArchitectureFacts:
    facts = ARCHITECTURES[name]
    name_map = facts.name_maps[layout]
    changed = dataclasses.replace(name_map, backbone=lambda arguments: change(name_map.backbone(arguments)))
    return dataclasses.replace(facts, name_maps={**facts.name_maps, layout: changed})


def converted(
    name: str,
    layout: str,
    tensors: Mapping[str, np.ndarray],
    change: Callable[[dict[str, Target]], dict[str, Target]] = dict,
) -> dict[str, dict[str, np.ndarray]]:
    """Component → canonical name → value, as an import makes them; `change` spoils the map first."""
    checkpoint = foreign(name, layout, tensors)
    found = match(checkpoint, changed_map(name, layout, change), layout, {})
    found.report.require_complete(f"{name} ({layout})")
    return convert(checkpoint, found)


def stored_backbone(catalog: Catalog) -> dict[str, np.ndarray]:
    return dict(read_safetensors(catalog.open_component(catalog.get("m"), "backbone")))
