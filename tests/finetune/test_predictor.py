from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune.data.image_header import UnreadableImage
from finetune.data.preprocess import preprocess
from finetune.data.source import Example
from finetune.models.backbone import Backbone
from finetune.models.feature_row import build_head, row_of
from finetune.models.heads import head_kind
from finetune.models.heads.head import Assets
from finetune.models.restore import named_variables
from finetune.predictor import MAX_PIXELS, InvalidRequest, Predictor, WrongHead
from tests.tiny import TINY_FEATURE_DIM, tiny_backbone_version
from zoo.catalog import Catalog, ModelVersion, open_catalog
from zoo.errors import NotFound
from zoo.manifest import Asset, Component, Head, VocabularyFacts
from zoo.tensors import write_safetensors

EXAMPLES = [
    Example(id="a", captions=("a red dog runs", "the dog runs"), label="dog"),
    Example(id="b", captions=("a blue cat sleeps", "the cat sleeps"), label="cat"),
    Example(id="c", captions=("a red cat runs", "the cat runs"), label="cat"),
]


def digest_of(path: Path) -> str:
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def publish_head(
    catalog: Catalog,
    parent: ModelVersion,
    kind_name: str,
    name: str,
    folder: Path,
    *,
    feature_map_shape: tuple[int, int, int] | None = None,
    **wanted: Any,
) -> tuple[Any, str]:
    """A version of `parent`'s backbone with a fresh head; gives the head layer and the version's reference."""
    kind = head_kind(kind_name)
    small = {"min_count": 1, "max_words": 5} if kind_name == "captioner" else {}
    arguments = kind.Arguments.model_validate(small | wanted)
    assets: Assets = kind.learn_assets(EXAMPLES, arguments)
    row = row_of(kind, arguments, feature_dim=TINY_FEATURE_DIM, feature_map_shape=feature_map_shape)
    layer = build_head(kind, arguments=arguments, row=row, assets=assets, seed=3)
    layer_as_keras: Any = layer
    head_path = folder / f"{name}.safetensors"
    tensors = {path: np.asarray(variable) for path, variable in named_variables(layer_as_keras).items()}
    write_safetensors(head_path, tensors)
    files = {digest_of(head_path): head_path}
    asset_entries = []
    for asset_name, data in assets.files.items():
        path = folder / f"{name}-{asset_name}"
        path.write_bytes(data)
        files[digest_of(path)] = path
        asset_entries.append(Asset(name=asset_name, digest=digest_of(path), bytes=len(data)))
    component = Component(
        name="head", digest=digest_of(head_path), bytes=head_path.stat().st_size, num_tensors=len(tensors)
    )
    manifest = parent.manifest.model_copy(
        update={
            "components": (*parent.manifest.components, component),
            "head": Head(kind=kind_name, arguments=kind.resolved(arguments, assets)),
            "classes": assets.classes,
            "assets": tuple(asset_entries),
            "vocabulary": VocabularyFacts(size=assets.vocabulary_size, tokenizer=assets.tokenizer)
            if assets.vocabulary_size and assets.tokenizer
            else None,
        }
    )
    return layer, catalog.publish(name, manifest, files).version.reference


@dataclass(frozen=True, kw_only=True)
class Zoo:
    catalog: Catalog
    backbone: Backbone
    captioner: Any
    classifier: Any


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    folder = tmp_path_factory.mktemp("predictor")
    catalog = open_catalog(f"file://{folder}/store")
    parent = tiny_backbone_version(catalog)
    captioner, _ = publish_head(catalog, parent, "captioner", "cap", folder)
    classifier, _ = publish_head(catalog, parent, "classifier", "cls", folder)
    backbone = Backbone.from_version(catalog, parent)
    return Zoo(catalog=catalog, backbone=backbone, captioner=captioner, classifier=classifier)


def photo(seed: int, size: tuple[int, int] = (40, 30)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


PHOTOS = [photo(seed) for seed in range(3)]


def features(zoo: Zoo, images: list[bytes]) -> np.ndarray:
    image_BHWC = np.stack([preprocess(data, zoo.backbone.input_spec, max_pixels=MAX_PIXELS) for data in images])
    return np.asarray(zoo.backbone.feature_vector(image_BHWC))


def test_captions_are_those_of_the_published_head(zoo: Zoo) -> None:
    predictor = Predictor.load(zoo.catalog, "cap", head="captioner")
    predictor.warm_up()
    found = predictor.caption(PHOTOS, beam_size=2)
    expected = zoo.captioner.captions(features(zoo, PHOTOS), beam_size=2)
    assert [[c.text for c in beams] for beams in found] == [[c.text for c in beams] for beams in expected]
    for some, others in zip(found, expected, strict=True):
        np.testing.assert_allclose([c.log_prob for c in some], [c.log_prob for c in others], rtol=1e-4)
    assert all(len(c.text.split()) <= 2 for beams in predictor.caption(PHOTOS, max_words=2) for c in beams)


def test_labels_are_those_of_the_published_head_best_first(zoo: Zoo) -> None:
    predictor = Predictor.load(zoo.catalog, "cls@1", head="classifier")
    predictor.warm_up()
    found = predictor.classify(PHOTOS)
    probability_BC = np.asarray(zoo.classifier.probabilities(features(zoo, PHOTOS)))
    for labels, row in zip(found, probability_BC, strict=True):
        assert [label.label for label in labels] == [("cat", "dog")[place] for place in np.argsort(-row)]
        np.testing.assert_allclose([label.score for label in labels], np.sort(row)[::-1], rtol=1e-4)
    assert [len(labels) for labels in predictor.classify(PHOTOS, top=1)] == [1, 1, 1]


def test_embeddings_are_the_backbones_feature_vectors(zoo: Zoo) -> None:
    predictor = Predictor.load(zoo.catalog, "tiny")
    predictor.warm_up()
    np.testing.assert_allclose(predictor.embed(PHOTOS), features(zoo, PHOTOS), rtol=1e-4, atol=1e-5)
    resident = Predictor.load(zoo.catalog, "tiny", resident=True)
    resident.warm_up()
    np.testing.assert_allclose(resident.embed(PHOTOS), predictor.embed(PHOTOS), rtol=1e-4, atol=1e-5)
    many = [PHOTOS[0]] * 33  # more than are held in memory at a time
    assert predictor.embed(many).shape == (33, TINY_FEATURE_DIM)
    assert predictor.embed([]).shape == (0, TINY_FEATURE_DIM)


def test_a_version_without_the_head_is_refused_before_anything_is_built(zoo: Zoo) -> None:
    for reference, kind, said in [
        ("tiny", "captioner", "tiny@1 has a backbone only, no captioner head"),
        ("cls", "captioner", "cls@1 has a classifier head, no captioner head"),
        ("cap", "classifier", "cap@1 has a captioner head, no classifier head"),
    ]:
        with pytest.raises(WrongHead, match=said) as caught:
            Predictor.load(zoo.catalog, reference, head=kind)
        assert caught.value.hint is not None
        assert f"--head {kind}" in caught.value.hint
    with pytest.raises(WrongHead):
        Predictor.load(zoo.catalog, "tiny").caption(PHOTOS)
    with pytest.raises(NotFound):
        Predictor.load(zoo.catalog, "unheard")


def test_options_out_of_range_and_unreadable_images_are_named(zoo: Zoo) -> None:
    captioner = Predictor.load(zoo.catalog, "cap", max_pixels=2000)
    for options in ({"beam_size": 0}, {"beam_size": 21}, {"max_words": 0}, {"max_words": 201}):
        with pytest.raises(InvalidRequest, match=next(iter(options))):
            captioner.caption(PHOTOS, **options)
    with pytest.raises(InvalidRequest, match="top is 0"):
        Predictor.load(zoo.catalog, "cls").classify(PHOTOS, top=0)
    for bad in (b"", b"text", PHOTOS[0][:60], photo(1, (60, 60))):
        with pytest.raises(UnreadableImage, match=r"^image 2: ") as caught:
            captioner.caption([PHOTOS[0], bad])
        assert caught.value.details["image"] == "1"
