from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from finetune.models.backbone import Backbone, build_backbone
from finetune.models.restore import named_variables
from finetune.models.task_model import NoHead, load_head, load_task_model
from tests.tiny import TINY, TINY_FEATURE_DIM, tiny_backbone_version, tiny_tensors
from tests.zoo.foreign import foreign_tensors, with_torch_head
from zoo.cache import BlobCache, blob_key
from zoo.catalog import Catalog, ModelVersion
from zoo.errors import DataLoss, NotFound
from zoo.importer import import_checkpoint
from zoo.input_spec import InputSpec
from zoo.manifest import Architecture, Component, Manifest
from zoo.restore_report import IncompleteRestore
from zoo.store.local import LocalStore
from zoo.tensors import write_safetensors


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(LocalStore(tmp_path / "store"), BlobCache(tmp_path / "cache"))


def images(count: int = 3, side: int = 32) -> np.ndarray:
    return np.random.default_rng(5).random((count, side, side, 3), np.float32)


def test_features_have_the_stated_shapes(catalog: Catalog) -> None:
    version = tiny_backbone_version(catalog)
    backbone = Backbone.from_version(catalog, "tiny")
    vector = backbone.feature_vector(images())
    feature_map = backbone.feature_map(images())
    assert vector.shape == (3, TINY_FEATURE_DIM)
    assert vector.dtype == tf.float32
    assert feature_map.shape == (3, *backbone.feature_map_shape)
    assert backbone.feature_dim == TINY_FEATURE_DIM
    assert (backbone.input_spec, backbone.architecture) == (version.manifest.input_spec, version.manifest.architecture)
    np.testing.assert_allclose(vector, tf.reduce_mean(feature_map, axis=[1, 2]), rtol=1e-5, atol=1e-6)
    assert backbone.report.complete
    assert set(backbone.report.restored) == set(tiny_tensors())


def test_features_differ_between_images_and_weights(catalog: Catalog) -> None:
    tiny_backbone_version(catalog, "a", seed=1)
    tiny_backbone_version(catalog, "b", seed=2)
    one, other = (Backbone.from_version(catalog, name) for name in "ab")
    vectors = one.feature_vector(images()).numpy()
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3
    assert np.abs(vectors - other.feature_vector(images()).numpy()).max() > 1e-3


def test_training_mode_changes_no_bit(catalog: Catalog) -> None:
    tiny_backbone_version(catalog)
    backbone = Backbone.from_version(catalog, "tiny")
    before = {name: variable.numpy() for name, variable in named_variables(backbone.model).items()}
    learning = backbone.model(images(), training=True)
    still = backbone.model(images(), training=False)
    for name in ("feature_vector", "feature_map"):
        np.testing.assert_array_equal(learning[name], still[name])
    for name, variable in named_variables(backbone.model).items():
        np.testing.assert_array_equal(variable.numpy(), before[name], err_msg=name)
    assert not backbone.model.trainable_variables


def test_one_trace_for_every_batch_size(catalog: Catalog) -> None:
    tiny_backbone_version(catalog)
    backbone = Backbone.from_version(catalog, "tiny")
    for count in (1, 2, 5):
        backbone.feature_vector(images(count))
    assert backbone._vector.experimental_get_tracing_count() == 1


def test_the_digest_is_what_decides_the_features(catalog: Catalog) -> None:
    tiny_backbone_version(catalog, "a", seed=1)
    tiny_backbone_version(catalog, "same", seed=1, size=64)
    tiny_backbone_version(catalog, "b", seed=2)
    a, same, b = (Backbone.from_version(catalog, name) for name in ("a", "same", "b"))
    assert a.digest == same.digest
    assert a.digest != b.digest
    assert a.component_digest == catalog.get("a").manifest.components[0].digest


def test_arguments_are_part_of_the_digest() -> None:
    model = build_backbone(TINY, InputSpec(height=75, width=75))  # of any architecture: the digest is of the words

    def digest(**arguments: bool) -> str:
        return Backbone(
            architecture=Architecture(name="inception_v3", arguments=dict(arguments)),
            input_spec=InputSpec(height=75, width=75),
            component_digest="sha256:0",
            model=model,
            report=None,
        ).digest

    assert digest() == digest(pool_counts_padding=False) != digest(pool_counts_padding=True)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> tuple[Catalog, ModelVersion]:
    """EfficientNet-Lite0 with an output layer of 6 classes, seeded; images of 32 × 32."""
    root = tmp_path_factory.mktemp("classifier")
    catalog = Catalog(LocalStore(root / "store"), BlobCache(root / "cache"))
    source = root / "m.safetensors"
    write_safetensors(source, with_torch_head(foreign_tensors("efficientnet_lite0", "torch"), classes=6))
    names = root / "names.txt"
    names.write_text("a\nb\nc\nd\ne\n")
    spec = InputSpec(height=32, width=32)
    result = import_checkpoint(catalog, kind="safetensors", source=source, name="m", classes=names, input_spec=spec)
    assert result.published is not None
    return catalog, result.published.version


def test_an_imported_classifier_answers(classifier: tuple[Catalog, ModelVersion]) -> None:
    catalog, _ = classifier
    model = load_task_model(catalog, "m")
    feature_BD = model.backbone.feature_vector(images())
    probability_BC = model.head.probabilities(feature_BD).numpy()  # type: ignore[attr-defined]
    assert probability_BC.shape == (3, 6)
    np.testing.assert_allclose(probability_BC.sum(axis=1), 1, rtol=1e-5)
    assert model.head.classes == ("a", "b", "c", "d", "e")  # type: ignore[attr-defined]
    assert model.head.class_offset == 1  # type: ignore[attr-defined]


def test_the_head_s_bytes_are_never_read(classifier: tuple[Catalog, ModelVersion], tmp_path: Path) -> None:
    catalog, version = classifier
    fresh = Catalog(catalog.store, BlobCache(tmp_path / "cache"))
    head = version.manifest.component("head")
    assert head is not None
    key = blob_key(head.digest)
    data = catalog.store.read(key)
    catalog.store.delete(key)
    try:
        backbone = Backbone.from_version(fresh, version)
        assert backbone.feature_vector(images()).shape == (3, 1280)
        with pytest.raises(DataLoss):
            load_head(fresh, version, backbone.feature_dim)
    finally:
        catalog.store.create(key, data)


def test_a_backbone_has_no_head_to_load(catalog: Catalog) -> None:
    version = tiny_backbone_version(catalog)
    with pytest.raises(NoHead, match="tiny@1 is a backbone only"):
        load_head(catalog, version, TINY_FEATURE_DIM)
    with pytest.raises(NoHead, match="tiny@1 is a backbone only"):
        load_task_model(catalog, "tiny")


def test_a_head_for_other_features_does_not_fit(classifier: tuple[Catalog, ModelVersion]) -> None:
    catalog, version = classifier
    with pytest.raises(IncompleteRestore, match=r"logits/kernel stored \(1280, 6\), wanted \(100, 6\)"):
        load_head(catalog, version, 100)


def test_an_unknown_reference(catalog: Catalog) -> None:
    with pytest.raises(NotFound):
        Backbone.from_version(catalog, "nobody@3")


def test_a_file_of_another_width_is_refused(catalog: Catalog, tmp_path: Path) -> None:
    path = tmp_path / "b.safetensors"
    write_safetensors(path, tiny_tensors(Architecture(name="efficientnet_lite0", arguments={"width": 0.25})))
    version = tiny_backbone_version(catalog)
    record = Component(
        name="backbone", digest=_sha256(path), bytes=path.stat().st_size, num_tensors=len(tiny_tensors())
    )
    manifest = Manifest(
        architecture=version.manifest.architecture, input_spec=version.manifest.input_spec, components=(record,)
    )
    catalog.publish("wide", manifest, {record.digest: path})
    with pytest.raises(IncompleteRestore, match=r"backbone of wide@1: \d+ of another shape.*times the width"):
        Backbone.from_version(catalog, "wide")


def _sha256(path: Path) -> str:
    from zoo.cache import file_digest

    return file_digest(path)
