"""A captioner that looks at the feature map, from the cache's rows to a predictor's files."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune.data.features import FeatureCache
from finetune.decoding_wire import decoding_message, decoding_request
from finetune.explained_files import write_explanations
from finetune.jobs.folder import JobFolder, read_json
from finetune.models.backbone import Backbone
from finetune.models.decoding_options import DecodingRequest, InvalidDecoding
from finetune.models.feature_row import NoFeatureMap, as_rows, row_of_layer
from finetune.predictor import Predictor
from finetune.spec import JobSpec
from finetune.training.evaluate import evaluate_version
from finetune.training.prepare import load_prepared, prepare
from protos.modelzoo.v1 import inference_pb2
from tests.finetune.test_predictor import PHOTOS, digest_of, photo, publish_head
from tests.tiny import TINY_FEATURE_DIM, tiny_backbone_version
from zoo.catalog import Catalog, open_catalog

SHAPE = (3, 3, TINY_FEATURE_DIM)  # of the tiny backbone on 96 × 96


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    folder = tmp_path_factory.mktemp("attending")
    catalog = open_catalog(f"file://{folder}/store")
    parent = tiny_backbone_version(catalog, size=96)
    wanted: dict[str, Any] = {"attention": "soft", "units": 12, "embedding": 8, "attention_units": 6}
    publish_head(catalog, parent, "captioner", "looks", folder, feature_map_shape=SHAPE, **wanted)
    return catalog


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELZOO_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def predictor(catalog: Catalog) -> Predictor:
    return Predictor.load(catalog, "looks", head="captioner")


def _photos(root: Path) -> Path:
    (root / "images").mkdir(parents=True)
    lines = ["image,caption"]
    for place in range(6):
        (root / "images" / f"{place}.png").write_bytes(photo(place + 20))
        lines += [f"{place}.png,a red dog runs", f"{place}.png,the cat sleeps"]
    (root / "captions.txt").write_text("\n".join(lines) + "\n")
    return root


def _spec(photos: Path, **arguments: Any) -> JobSpec:
    head = {"units": 8, "embedding": 8, "min_count": 1, "max_words": 5, "attention_units": 4, "attention": "top_down"}
    return JobSpec.parse(
        {
            "name": "child",
            "backbone": "tiny",
            "head": {"kind": "captioner", "arguments": head | arguments},
            "data": {"location": f"flickr:{photos}", "split": "ordered:4,2", "views": 2},
            "train": {"steps": 2, "evaluate_every": 1},
        }
    )


def test_the_cache_holds_vector_and_map(catalog: Catalog, tmp_path: Path) -> None:
    spec = _spec(_photos(tmp_path / "photos"))
    folder = JobFolder.create(tmp_path / "job", job="j", spec=spec, store_url="memory://x")
    prepared = prepare(folder, spec, catalog, on_progress=lambda phase, done, total: None)
    assert prepared.row.map_shape == SHAPE
    rows_NVX = prepared.splits["train"].features_NVD
    assert rows_NVX is not None
    assert rows_NVX.shape == (4, 2, TINY_FEATURE_DIM * 10)
    backbone = Backbone.from_version(catalog, "tiny")
    from finetune.data.preprocess import preprocess

    image_BHWC = np.stack([preprocess(photo(20), backbone.input_spec, max_pixels=10**6)])
    map_BX = np.asarray(backbone.feature_map(image_BHWC)).reshape(1, -1)
    np.testing.assert_allclose(rows_NVX[0, 0, :TINY_FEATURE_DIM], backbone.feature_vector(image_BHWC)[0], atol=1e-5)
    np.testing.assert_allclose(rows_NVX[0, 0, TINY_FEATURE_DIM:], map_BX[0], atol=1e-5)
    record = read_json(folder.prepared_path)
    assert record is not None
    assert (record["feature_dim"], record["feature_map_shape"]) == (TINY_FEATURE_DIM, list(SHAPE))

    again = load_prepared(folder, spec, catalog)
    assert again.vectors.computed == 0
    np.testing.assert_array_equal(again.splits["train"].features_NVD, rows_NVX)
    again.build_head(seed=1)

    # A head that reads vectors alone finds none of those rows, and leaves them be.
    plain = _spec(tmp_path / "photos", attention="none")
    other = JobFolder.create(tmp_path / "other", job="o", spec=plain, store_url="memory://x")
    vectors = prepare(other, plain, catalog, on_progress=lambda phase, done, total: None)
    assert vectors.splits["train"].first_view().shape == (4, TINY_FEATURE_DIM)
    assert {entry.key["feature_dim"] for entry in FeatureCache().list()} == {TINY_FEATURE_DIM, TINY_FEATURE_DIM * 10}


def test_a_backbone_without_a_map_is_refused_before_the_cache_is_filled(catalog: Catalog, tmp_path: Path) -> None:
    tiny_backbone_version(catalog, "pooled", size=32)  # one place is no map
    spec = _spec(_photos(tmp_path / "photos")).model_copy(update={"backbone": "pooled"})
    folder = JobFolder.create(tmp_path / "job", job="j", spec=spec, store_url="memory://x")
    with pytest.raises(NoFeatureMap, match="one feature vector only"):
        prepare(folder, spec, catalog, on_progress=lambda phase, done, total: None)
    assert FeatureCache().list() == []


def test_a_predictor_says_what_the_head_says_of_the_rows(catalog: Catalog, predictor: Predictor) -> None:
    backbone = Backbone.from_version(catalog, "looks")
    assert row_of_layer(predictor._head, backbone).map_shape == SHAPE
    rows = as_rows(backbone, predictor._head.row)
    from finetune.data.preprocess import preprocess

    images = np.stack([preprocess(data, backbone.input_spec, max_pixels=10**6) for data in PHOTOS])
    expected = predictor._head.captions(np.asarray(rows.feature_vector(images)))
    assert predictor.caption(PHOTOS) == expected
    np.testing.assert_allclose(predictor.embed(PHOTOS), backbone.feature_vector(images), atol=1e-5)
    with pytest.raises(InvalidDecoding, match="words are searched for"):
        predictor.caption(PHOTOS, DecodingRequest(top_k=3))


@pytest.mark.slow
def test_a_resident_predictor_says_the_same(catalog: Catalog, predictor: Predictor) -> None:
    resident = Predictor.load(catalog, "looks", resident=True)
    for data in PHOTOS:
        (mine,), (theirs,) = resident.caption([data]), predictor.caption([data])
        assert [caption.text for caption in mine] == [caption.text for caption in theirs]
        assert [c.log_prob for c in mine] == pytest.approx([c.log_prob for c in theirs], abs=1e-3)


@pytest.mark.slow
def test_a_version_is_evaluated_on_rows(catalog: Catalog, tmp_path: Path) -> None:
    found = evaluate_version(catalog, "looks", location=f"flickr:{_photos(tmp_path / 'photos')}", split="all")
    assert found["num_examples"] == 6
    assert found["metrics"]["perplexity"] > 1


def test_explanations_are_written_for_people_and_programs(predictor: Predictor, tmp_path: Path) -> None:
    files = [(Path("a/x.png"), PHOTOS[0]), (Path("b/x.png"), PHOTOS[1])]
    written = write_explanations(predictor, files, DecodingRequest(beam_size=2), tmp_path / "why")
    assert [path.name for path in written] == ["x.png.json", "x.png.png", "x.png-2.json", "x.png-2.png"]
    said = json.loads(written[0].read_bytes())
    assert said["caption"]["text"] == predictor.caption([PHOTOS[0]], beam_size=2)[0][0].text
    for word in said["words"]:
        assert len(word["top"]) == 5
        assert np.asarray(word["attention"]).shape == SHAPE[:2]
        assert np.sum(word["attention"]) == pytest.approx(1.0, abs=1e-5)
    with Image.open(io.BytesIO(written[1].read_bytes())) as strip:
        assert strip.width >= 2 * 144
        assert np.asarray(strip).std() > 1
    assert digest_of(written[1]) != digest_of(written[3])


def test_a_request_crosses_the_wire_whole() -> None:
    request = DecodingRequest(
        beam_size=4, max_words=7, min_words=0, length_penalty=0.0, no_repeat_ngram=2, sample=True, top_p=0.5, seed=3
    )
    message = inference_pb2.CaptionRequest(beam_size=4, max_words=7, decoding=decoding_message(request))
    assert decoding_request(inference_pb2.CaptionRequest.FromString(message.SerializeToString())) == request
    assert decoding_request(inference_pb2.CaptionRequest()) == DecodingRequest()
