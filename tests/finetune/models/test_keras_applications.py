"""Keras' own networks, written by Keras' own writers, come in through `zoo import keras` with nothing changed."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest

from finetune.models.backbone import Backbone, build_backbone
from finetune.models.restore import named_variables
from finetune.models.task_model import load_head
from zoo.architectures import ARCHITECTURES
from zoo.catalog import Catalog, ModelVersion, open_catalog
from zoo.importer import ImportResult, import_checkpoint
from zoo.input_spec import InputSpec
from zoo.manifest import Architecture

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras 3.15's, NumPy 2


def test_inception_v3_says_what_keras_says(tmp_path: Path) -> None:
    from keras.src.legacy.saving import legacy_h5_format

    keras.utils.set_random_seed(5)
    keras.backend.clear_session()  # the file's names count layers from the first one that the process made
    theirs = keras.applications.InceptionV3(weights=None, classes=10)
    for layer in theirs.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_variance.assign(np.linspace(0.5, 2, layer.moving_variance.shape[0]))
    with h5py.File(tmp_path / "inception.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, theirs)

    catalog = open_catalog()
    imported = import_checkpoint(catalog, kind="keras", source=tmp_path / "inception.h5", name="inception")
    assert imported.published is not None
    assert imported.report.complete
    version = imported.published.version
    assert version.manifest.architecture.name == "inception_v3"

    backbone = Backbone.from_version(catalog, version)
    head = load_head(catalog, version, backbone.feature_dim)
    image_BHWC = np.random.default_rng(1).uniform(-1, 1, (1, 299, 299, 3)).astype(np.float32)
    ours = np.asarray(head.probabilities(np.asarray(backbone.feature_vector(image_BHWC))))
    np.testing.assert_allclose(ours, np.asarray(theirs(image_BHWC, training=False)), atol=1e-6)


# Architecture → Keras' function, the module with its preprocess_input, the layer that gives the feature vector.
NETWORKS = {
    "convnext_tiny": ("ConvNeXtTiny", "convnext", "convnext_tiny_head_layernorm"),
    "efficientnet_v2_b0": ("EfficientNetV2B0", "efficientnet_v2", "avg_pool"),
    "mobilenet_v2": ("MobileNetV2", "mobilenet_v2", "global_average_pooling2d"),
    "mobilenet_v3_large": ("MobileNetV3Large", "mobilenet_v3", "global_average_pooling2d"),
    "mobilenet_v3_small": ("MobileNetV3Small", "mobilenet_v3", "global_average_pooling2d"),
    "resnet50": ("ResNet50", "resnet50", "avg_pool"),
    "resnet50_v2": ("ResNet50V2", "resnet_v2", "avg_pool"),
}
SIDE = 64
QUICK = ("mobilenet_v2", "resnet50")
EACH = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NETWORKS]


def keras_network(architecture: str, **options: Any) -> keras.Model:
    """Keras' own model, classifier and preprocessing included, with weights that all make a difference."""
    keras.utils.set_random_seed(7)
    keras.backend.clear_session()
    function = getattr(keras.applications, NETWORKS[architecture][0])
    model = function(weights=None, classes=10, input_shape=(SIDE, SIDE, 3), **options)
    generator = np.random.default_rng(11)
    for weight in model.weights:  # Keras starts biases with 0, scales with 1, and ConvNeXt's LayerScale with 1e-6
        if len(weight.shape) == 1:
            around_one = weight.name in ("gamma", "moving_variance")
            noise = 0.1 * generator.standard_normal(weight.shape)
            weight.assign(np.exp(noise) if around_one else 0.5 + noise if "variable" in weight.name else noise)
    return model


def what_keras_says(architecture: str, model: keras.Model, pixels_BHWC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Feature vectors and class probabilities of uint8 pixels, by Keras' own preprocessing."""
    _, module, layer = NETWORKS[architecture]
    applications = importlib.import_module(f"keras.applications.{module}")
    both = keras.Model(model.input, [model.get_layer(layer).output, model.output])
    vector, probability = both(applications.preprocess_input(pixels_BHWC.astype(np.float32)), training=False)
    return np.asarray(vector).reshape(len(pixels_BHWC), -1), np.asarray(probability)


def pixels() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (2, SIDE, SIDE, 3), dtype=np.uint8)


def prepared(pixels_BHWC: np.ndarray, spec: InputSpec) -> np.ndarray:
    scaled = pixels_BHWC.astype(np.float32) * np.float32(spec.scale)
    return ((scaled - np.float32(spec.mean)) / np.float32(spec.std)).astype(np.float32)


def spec_of(manifest_spec: InputSpec) -> InputSpec:
    return manifest_spec.model_copy(update={"height": SIDE, "width": SIDE})


def import_file(catalog: Catalog, path: Path, architecture: str, **options: Any) -> ImportResult:
    spec = spec_of(ARCHITECTURES[architecture].input_spec)
    return import_checkpoint(catalog, kind="keras", source=path, name="m", input_spec=spec, **options)


def published(result: ImportResult) -> ModelVersion:
    assert result.published is not None
    return result.published.version


@pytest.mark.parametrize("architecture", EACH)
def test_features_are_those_of_keras(architecture: str, tmp_path: Path) -> None:
    theirs = keras_network(architecture)
    theirs.save_weights(tmp_path / "one.weights.h5")
    catalog = open_catalog()
    result = import_file(catalog, tmp_path / "one.weights.h5", architecture)
    version = published(result)
    assert version.manifest.architecture.name == architecture
    backbone = Backbone.from_version(catalog, version)
    image_BHWC = prepared(pixels(), backbone.input_spec)
    vector = np.asarray(backbone.feature_vector(image_BHWC))
    wanted, probability = what_keras_says(architecture, theirs, pixels())
    largest = np.abs(wanted).max()
    off = np.abs(vector - wanted).max() / largest
    print(f"{architecture}: {off:.1e} of the largest value")
    assert off < 1e-5
    if architecture == "resnet50":  # its weights took blue first; what is published takes red first
        assert result.report.transposed == ("backbone/conv1_conv/kernel",)
        assert np.abs(np.asarray(backbone.feature_vector(image_BHWC[..., ::-1])) - wanted).max() > 1e-2 * largest
    head = load_head(catalog, version, backbone.feature_dim)
    assert not result.report.unused
    np.testing.assert_allclose(np.asarray(head.probabilities(vector)), probability, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
@pytest.mark.parametrize("architecture", NETWORKS)
def test_every_kind_of_file_gives_the_same_bits(architecture: str, tmp_path: Path) -> None:
    theirs = keras_network(architecture)
    theirs.save_weights(tmp_path / "one.weights.h5")
    theirs.save(tmp_path / "two.keras")
    theirs.save(tmp_path / "three.h5")
    results = [
        import_file(open_catalog(), tmp_path / name, architecture, dry_run=True)
        for name in ("one.weights.h5", "two.keras", "three.h5")
    ]
    one, *others = [(result.manifest.components, result.manifest.head) for result in results]
    assert others == [one, one]


@pytest.mark.parametrize(
    ("architecture", "width"),
    [
        ("mobilenet_v2", 0.35),
        pytest.param("mobilenet_v2", 1.4, marks=pytest.mark.slow),
        pytest.param("mobilenet_v3_small", 0.75, marks=pytest.mark.slow),
    ],
)
def test_the_width_multiplier_is_told_by_the_shapes(architecture: str, width: float, tmp_path: Path) -> None:
    theirs = keras_network(architecture, alpha=width)
    theirs.save_weights(tmp_path / "narrow.weights.h5")
    catalog = open_catalog()
    version = published(import_file(catalog, tmp_path / "narrow.weights.h5", architecture))
    assert version.manifest.architecture.arguments == {"width": width}
    backbone = Backbone.from_version(catalog, version)
    vector = np.asarray(backbone.feature_vector(prepared(pixels(), backbone.input_spec)))
    wanted, _ = what_keras_says(architecture, theirs, pixels())
    assert np.abs(vector - wanted).max() < 1e-5 * np.abs(wanted).max()


def in_keras_2_names(architecture: str) -> Callable[[str, str], tuple[str, str, str]]:
    """(layer, value) of Keras 3 → (group, layer, value) as Keras 2.10 wrote them, from its builders' source."""

    def mobilenet(layer: str, value: str) -> tuple[str, str, str]:
        scope = re.sub(r"_bn$", "/BatchNorm", layer)
        scope = re.sub(r"^(expanded_conv(?:_\d+)?)_(?=[a-z])", r"\1/", scope).replace(
            "squeeze_excite_conv", "squeeze_excite/Conv"
        )
        scope = re.sub(r"^conv", "Conv", scope).replace("logits", "Logits")
        kernel = "depthwise_kernel" if layer.endswith("depthwise") and value == "kernel" else value
        return scope, scope, kernel

    def convnext(layer: str, value: str) -> tuple[str, str, str]:
        group = re.sub(r"_stem_(conv|layernorm)$", "_stem", layer)
        group = re.sub(r"_downsampling_(?:conv|layernorm)_(\d)$", r"_downsampling_block_\1", group)
        return group, layer, "Variable" if layer.endswith("layer_scale") else value

    return convnext if architecture.startswith("convnext") else mobilenet


@pytest.mark.parametrize("architecture", [pytest.param("convnext_tiny", marks=pytest.mark.slow), "mobilenet_v3_small"])
def test_names_of_keras_2(architecture: str, tmp_path: Path) -> None:
    """As in the files that Keras Applications publish, which Keras 3 reads by order and not by name."""
    theirs = keras_network(architecture)
    theirs.save_weights(tmp_path / "new.weights.h5")
    renamed = in_keras_2_names(architecture)
    groups: dict[str, list[tuple[str, np.ndarray]]] = {}
    for layer in theirs._flatten_layers(include_self=False, recursive=True):
        for weight in () if isinstance(layer, keras.Model) else layer.weights:
            group, owner, value = renamed(layer.name, weight.name)
            groups.setdefault(group, []).append((f"{owner}/{value}:0", np.asarray(weight)))
    with h5py.File(tmp_path / "old.h5", "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in groups]
        for name, weights in groups.items():
            group = file.create_group(name)
            group.attrs["weight_names"] = [stored.encode() for stored, _ in weights]
            for stored, array in weights:
                group[stored] = array
    catalog = open_catalog()
    new = import_file(catalog, tmp_path / "new.weights.h5", architecture, dry_run=True)
    old = import_file(catalog, tmp_path / "old.h5", architecture, dry_run=True)
    assert (new.layout, old.layout) == ("keras", "keras-2")
    assert old.manifest.components == new.manifest.components
    assert old.manifest.head == new.manifest.head


@pytest.mark.slow
def test_convnext_is_the_same_without_its_classifier(tmp_path: Path) -> None:
    """Keras calls the LayerNorm after the pooling `layer_normalization` then."""
    keras.backend.clear_session()
    bare = keras.applications.ConvNeXtTiny(weights=None, include_top=False, input_shape=(32, 32, 3), pooling="avg")
    bare.save_weights(tmp_path / "bare.weights.h5")
    result = import_file(open_catalog(), tmp_path / "bare.weights.h5", "convnext_tiny", dry_run=True)
    assert result.layout == "keras-no-top"
    assert "backbone/convnext_tiny_head_layernorm/gamma" in result.report.restored


@pytest.mark.parametrize("width", [0.25, pytest.param(1.3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("architecture", ["mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small"])
def test_shapes_follow_the_width_multiplier(architecture: str, width: float) -> None:
    model = build_backbone(Architecture(name=architecture, arguments={"width": width}), InputSpec(height=32, width=32))
    shapes = {name: tuple(variable.shape) for name, variable in named_variables(model).items()}
    assert shapes == ARCHITECTURES[architecture].tensor_shapes({"width": width})


def multiply_adds(model: keras.Model) -> int:
    """Of convolutions and dense layers; the rest is a per cent."""
    total = 0
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D | keras.layers.DepthwiseConv2D | keras.layers.Dense):
            total += int(np.prod(layer.output.shape[1:-1]) * np.prod(layer.kernel.shape))
    return total


@pytest.mark.slow
@pytest.mark.parametrize("architecture", NETWORKS)
def test_flops_are_counted(architecture: str) -> None:
    facts = ARCHITECTURES[architecture]
    model = build_backbone(Architecture(name=architecture), facts.input_spec)
    assert facts.flops == pytest.approx(2 * multiply_adds(model), rel=0.005)
