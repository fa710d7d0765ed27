"""What Keras' own writers write, imported: a small model of every layer that matters, and Inception v3 whole."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.zoo.foreign import foreign_tensors
from zoo.architectures import architecture_facts
from zoo.architectures.choosing import NothingExcluded
from zoo.cache import BlobCache
from zoo.catalog import Catalog
from zoo.importer import ImportResult, import_checkpoint
from zoo.readers import read_checkpoint
from zoo.readers.checkpoint import DenseLayer, NotACheckpoint, UnsafeCheckpoint
from zoo.readers.keras_file import read
from zoo.restore_report import IncompleteRestore
from zoo.store.memory import MemoryStore
from zoo.tensors import read_safetensors

FORMATS = ("weights.h5", "keras", "h5")

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # Keras 3.15's, under NumPy 2
    pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`:UserWarning"),
]


@pytest.fixture(scope="module")
def keras() -> Any:
    return pytest.importorskip("keras")


def save(model: Any, path: Path) -> Path:
    """By the writer that the name asks for: `.weights.h5`, `.keras`, or a whole legacy `.h5`."""
    if path.name.endswith(".weights.h5"):
        model.save_weights(path)
    else:
        model.save(path)
    return path


@pytest.mark.parametrize("ending", FORMATS)
def test_a_backbone_in_a_trained_model_with_a_head(ending: str, keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    image = keras.Input((8, 8, 3))
    deep = layers.Conv2D(4, 1, name="made_first")(image)
    shallow = layers.Conv2D(4, 1, use_bias=False, name="made_second")(image)
    x = layers.Concatenate()([shallow, layers.Conv2D(4, 1, name="made_third")(deep)])
    x = layers.BatchNormalization(scale=False, name="bn", epsilon=0.003)(x)
    x = layers.SeparableConv2D(5, 3, name="sep")(layers.DepthwiseConv2D(3, name="dw")(x))
    backbone = keras.Model(image, x, name="backbone")
    head = [layers.GlobalAveragePooling2D(), layers.Dense(3, "relu", name="hid"), layers.Dropout(0.25)]
    model = keras.Sequential([keras.Input((8, 8, 3)), backbone, *head, layers.Dense(2, "softmax", name="out")])
    model.compile("adam", "sparse_categorical_crossentropy")
    rng = np.random.default_rng(1)
    model.train_on_batch(rng.random((2, 8, 8, 3)), np.zeros(2))

    found = read(save(model, tmp_path / f"m.{ending}"))
    values = {
        f"{layer.name}/{weight.name}": np.asarray(weight)
        for layer in (*backbone.layers, *model.layers[1:])
        for weight in layer.weights
        if "seed" not in weight.name
    }
    values["dw/depthwise_kernel"] = values.pop("dw/kernel")
    assert set(found.tensors) == set(values)
    for name, value in values.items():
        np.testing.assert_array_equal(found.tensors[name], value, strict=True)
    assert set(found.aside.values()) == {"the optimizer's state"}
    assert len(found.aside) > 20
    if ending != "weights.h5":
        assert found.dense == (
            DenseLayer(name="hid", activation="relu", dropout=0.25),
            DenseLayer(name="out", activation="softmax"),
        )
        assert found.batch_norm_epsilons == {0.003}


@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_a_lambda_layer_is_refused_by_name(ending: str, keras: Any, tmp_path: Path) -> None:
    layers = keras.layers
    model = keras.Sequential([keras.Input((2,)), layers.Lambda(lambda x: x * 2, name="twice"), layers.Dense(1)])
    with pytest.raises(UnsafeCheckpoint, match=r"layer 'twice' is a Lambda layer"):
        read(save(model, tmp_path / f"m.{ending}"))


@pytest.mark.parametrize("ending", ["keras", "h5"])
def test_an_activation_that_is_a_lambda(ending: str, keras: Any, tmp_path: Path) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, lambda x: x, name="d")])
    with pytest.raises(UnsafeCheckpoint, match=r"layer 'd' holds"):
        read(save(model, tmp_path / f"m.{ending}"))


def test_a_quantised_model(keras: Any, tmp_path: Path) -> None:
    dense = keras.layers.Dense(4, name="d")
    model = keras.Sequential([keras.Input((3,)), dense])
    dense.quantize("int8")
    with pytest.raises(NotACheckpoint, match="layer 'd' is stored as int8"):
        read(save(model, tmp_path / "m.keras"))


@dataclass(frozen=True, kw_only=True)
class Inception:
    """Keras' own InceptionV3 with known values, saved in every format."""

    tensors: Mapping[str, np.ndarray]  # by the names that count from 1
    dense: tuple[DenseLayer, ...]
    folder: Path
    first: str  # what Keras called its first convolution


def random_head() -> tuple[dict[str, np.ndarray], tuple[DenseLayer, ...]]:
    rng = np.random.default_rng(4)
    dense = (
        DenseLayer(name="hidden_x", activation="relu", dropout=0.5),
        DenseLayer(name="out_x", activation="softmax"),
    )
    tensors: dict[str, np.ndarray] = {}
    for name, width, units in (("hidden_x", 2048, 7), ("out_x", 7, 5)):
        tensors[f"{name}/kernel"] = rng.standard_normal((width, units)).astype(np.float32)
        tensors[f"{name}/bias"] = rng.standard_normal(units).astype(np.float32)
    return tensors, dense


def built(keras: Any, tensors: Mapping[str, np.ndarray], dense: tuple[DenseLayer, ...]) -> tuple[Any, str]:
    """The model with these values, each put where the order of making says; and its first convolution's name."""
    layers = keras.layers
    layers.Conv2D(1, 1)  # so that counting begins after 0 in any process, and
    layers.Conv2D(1, 1)
    layers.BatchNormalization()  # apart for the two
    backbone = keras.applications.InceptionV3(weights=None, include_top=False, input_shape=(75, 75, 3))
    x = layers.GlobalAveragePooling2D()(backbone.output)
    for layer in dense:
        x = layers.Dense(tensors[f"{layer.name}/bias"].size, layer.activation, name=layer.name)(x)
        x = layers.Dropout(layer.dropout)(x) if layer.dropout else x
    for kind in ("conv2d", "batch_normalization"):
        found = [layer for layer in backbone.layers if layer.name.startswith(kind)]
        found.sort(key=lambda layer: int(layer.name.removeprefix(kind).lstrip("_") or 0))
        assert len(found) == 94
        for number, layer in enumerate(found, start=1):
            for weight in layer.weights:
                weight.assign(tensors[f"{kind}_{number}/{weight.name}"])
    model = keras.Model(backbone.input, x)
    for layer in dense:
        model.get_layer(layer.name).set_weights([tensors[f"{layer.name}/{part}"] for part in ("kernel", "bias")])
    first = min((layer.name for layer in backbone.layers if layer.name.startswith("conv2d")), key=_number)
    return model, first


def _number(name: str) -> int:
    return int(name.removeprefix("conv2d").lstrip("_") or 0)


@pytest.fixture(scope="module", params=["random", "trained"])
def inception(request: pytest.FixtureRequest, keras: Any, tmp_path_factory: pytest.TempPathFactory) -> Inception:
    """Random values, and those of the real checkpoint where it is there."""
    if request.param == "random":
        tensors, dense = random_head()
        tensors |= foreign_tensors("inception_v3", "keras")
    else:
        source = request.getfixturevalue("shared") / "checkpoints" / "inception_v3_tfjs"
        checkpoint = read_checkpoint("tfjs", source)
        tensors, dense = dict(checkpoint.tensors), checkpoint.dense
    folder = tmp_path_factory.mktemp(f"inception-{request.param}")
    model, first = built(keras, tensors, dense)
    for ending in FORMATS:
        save(model, folder / f"m.{ending}")
    return Inception(tensors=tensors, dense=dense, folder=folder, first=first)


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(MemoryStore(f"keras-{tmp_path.name}"), BlobCache(tmp_path / "cache"))


@pytest.fixture
def run(catalog: Catalog) -> Callable[..., ImportResult]:
    def import_(source: Path, **options: Any) -> ImportResult:
        return import_checkpoint(catalog, kind="keras", source=source, name="m", **options)

    return import_


def expected(inception: Inception) -> dict[str, np.ndarray]:
    """Canonical name → value, by the map whose names count from 1: the tensors' own."""
    facts = architecture_facts("inception_v3")
    names = facts.name_maps["keras"].backbone(facts.resolved({}))
    return {target.name: inception.tensors[stored] for stored, target in names.items()}


@pytest.mark.parametrize("ending", FORMATS)
def test_inception_v3_comes_back_bit_for_bit(
    ending: str, inception: Inception, run: Callable[..., ImportResult], catalog: Catalog
) -> None:
    assert inception.first not in ("conv2d", "conv2d_1")
    # Bare weights don't tell what the head's activations are, so there the head has to be left out by name.
    exclude = [layer.name for layer in inception.dense] if ending == "weights.h5" else []
    result = run(inception.folder / f"m.{ending}", exclude=exclude)
    assert any(f"{inception.first} is conv2d" in note for note in result.notes)
    version = catalog.get("m")
    backbone = read_safetensors(catalog.open_component(version, "backbone"))
    wanted = expected(inception)
    assert backbone.keys() == wanted.keys()
    assert len(wanted) == 376
    for name, value in wanted.items():
        assert backbone[name].tobytes() == value.tobytes(), name
    if exclude:
        assert result.manifest.head is None
        assert set(result.report.unused) == {f"{name}/{part}" for name in exclude for part in ("kernel", "bias")}
        return
    head = read_safetensors(catalog.open_component(version, "head"))
    last = inception.dense[-1].name
    assert head["logits/kernel"].tobytes() == inception.tensors[f"{last}/kernel"].tobytes()
    assert result.manifest.head is not None
    assert result.manifest.head.arguments["dropout"] == [layer.dropout for layer in inception.dense[:-1]]


def test_a_head_is_left_over_until_it_is_excluded_and_typos_get_near_names(
    inception: Inception, run: Callable[..., ImportResult]
) -> None:
    path = inception.folder / "m.weights.h5"
    last = inception.dense[-1].name
    with pytest.raises(IncompleteRestore, match=rf"left over: .*{last}/"):
        run(path, dry_run=True)
    with pytest.raises(NothingExcluded, match=rf"did you mean .*{last}"):
        run(path, dry_run=True, exclude=[f"{last}x"])


def test_two_alike_convolutions_in_each_others_place_are_seen(
    inception: Inception, run: Callable[..., ImportResult], catalog: Catalog, tmp_path: Path
) -> None:
    """Shapes can't tell them apart: only names can, so a reader that mixed two up would not be found by shapes."""
    path = tmp_path / "m.weights.h5"
    path.write_bytes((inception.folder / "m.weights.h5").read_bytes())
    start = _number(inception.first)
    with h5py.File(path, "a") as file:
        titles = {group["vars"].attrs["name"]: group["vars"] for group in file["layers"].values()}
        one, two = titles[f"conv2d_{start + 7}"], titles[f"conv2d_{start + 14}"]  # 5 × 5 … of Mixed_5b and 5c
        one.attrs["name"], two.attrs["name"] = two.attrs["name"], one.attrs["name"]
        assert one["0"].shape == two["0"].shape
    run(path, exclude=[layer.name for layer in inception.dense])
    backbone = read_safetensors(catalog.open_component(catalog.get("m"), "backbone"))
    wrong = [name for name, value in expected(inception).items() if backbone[name].tobytes() != value.tobytes()]
    assert len(wrong) == 2


def test_an_archive_of_older_keras_without_titles_goes_by_its_configuration(
    inception: Inception, run: Callable[..., ImportResult], catalog: Catalog, tmp_path: Path
) -> None:
    weights = tmp_path / "w.h5"
    with zipfile.ZipFile(inception.folder / "m.keras") as archive:
        config = archive.read("config.json")
        weights.write_bytes(archive.read("model.weights.h5"))
    with h5py.File(weights, "a") as file:
        for group in file["layers"].values():
            del group["vars"].attrs["name"]
    with zipfile.ZipFile(tmp_path / "m.keras", "w") as archive:
        archive.writestr("config.json", config)
        archive.write(weights, "model.weights.h5")
    run(tmp_path / "m.keras")
    backbone = read_safetensors(catalog.open_component(catalog.get("m"), "backbone"))
    for name, value in expected(inception).items():
        assert backbone[name].tobytes() == value.tobytes(), name


APPLICATIONS = {
    "ConvNeXtTiny": "convnext_tiny",
    "EfficientNetV2B0": "efficientnet_v2_b0",
    "InceptionResNetV2": "inception_resnet_v2",
    "MobileNetV2": "mobilenet_v2",
    "MobileNetV3Large": "mobilenet_v3_large",
    "MobileNetV3Small": "mobilenet_v3_small",
    "ResNet50": "resnet50",
    "ResNet50V2": "resnet50_v2",
    "Xception": "xception",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", APPLICATIONS)
def test_every_application_comes_in_with_its_classifier(
    name: str, keras: Any, run: Callable[..., ImportResult], tmp_path: Path
) -> None:
    model = getattr(keras.applications, name)(weights=None, classes=7)
    for ending in FORMATS:
        result = run(save(model, tmp_path / f"m.{ending}"), dry_run=True)
        assert result.manifest.architecture.name == APPLICATIONS[name]
        assert result.manifest.head is not None
        assert result.manifest.head.arguments["num_classes"] == 7
