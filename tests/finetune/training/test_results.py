"""What a captioner says of a split, in COCO's result format: written when evaluating, scored as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from finetune.metrics.results_file import read_results
from finetune.score import score_results
from finetune.spec import JobSpec
from finetune.training.evaluate import NoCaptionsToWrite, evaluate_version
from tests.finetune.test_predictor import publish_head
from tests.tiny import tiny_backbone_version
from zoo.catalog import Catalog, open_catalog

SAID = ["a red dog", "a dog runs", "the cat", "a cat runs", "the red dog runs", "a red cat"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(autouse=True)
def _cache(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELZOO_CACHE", str(place / "cache"))


@pytest.fixture(scope="module")
def coco(place: Path) -> str:
    """Six photos as COCO numbers and names them."""
    root = place / "coco"
    (root / "val2014").mkdir(parents=True)
    (root / "annotations").mkdir()
    images, annotations = [], []
    for number, caption in enumerate(SAID, start=40):
        name = f"COCO_val2014_{number:012}.jpg"
        Image.new("RGB", (40, 40), (40 * (number - 40), 90, 200)).save(root / "val2014" / name)
        images.append({"id": number, "file_name": name})
        annotations.append({"id": number, "image_id": number, "caption": caption})
    file = root / "annotations" / "captions_val2014.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations}))
    return f"coco:{file}"


@pytest.fixture(scope="module")
def catalog(place: Path, coco: str) -> Catalog:
    catalog = open_catalog(f"file://{place}/store")
    parent = tiny_backbone_version(catalog)
    for name in ("captioner", "classifier"):
        publish_head(catalog, parent, name, name, place)
    value = {"name": "trained", "backbone": "tiny", "head": {"kind": "captioner"}}
    spec = JobSpec.parse({**value, "data": {"location": coco, "split": "ordered:3,2,1"}})
    manifest = catalog.get("captioner").manifest.model_copy(update={"spec": spec.to_json()})
    catalog.publish("trained", manifest, {})
    return catalog


def test_captions_are_written_and_score_as_they_were_evaluated(catalog: Catalog, coco: str, place: Path) -> None:
    file = place / "results.json"
    found: dict[str, Any] = evaluate_version(catalog, "captioner", location=coco, split="all", results=file)
    said = read_results(file)
    assert list(said) == [40, 41, 42, 43, 44, 45]
    metrics = found["metrics"]
    assert "captions" not in metrics  # no metric
    assert "novel_captions" not in metrics  # nobody knows what an imported captioner learnt from
    scored = score_results(file, location=coco, split="all")["metrics"]
    assert scored == {name: pytest.approx(metrics[name], rel=1e-6, abs=1e-12) for name in scored}
    assert metrics["vocabulary_used"] > 0


def test_captions_of_the_training_split_are_known_of_a_version_trained_here(catalog: Catalog, coco: str) -> None:
    own = evaluate_version(catalog, "trained", split="test")["metrics"]
    assert own["novel_captions"] in (0, 1)  # one image
    other = evaluate_version(catalog, "trained", split="test", settings=["data.split=ordered:2,3,1"])["metrics"]
    assert "novel_captions" not in other  # not the split that it learnt from


def test_a_head_without_captions_writes_none(catalog: Catalog, coco: str, place: Path) -> None:
    with pytest.raises(NoCaptionsToWrite, match="classifier head"):
        evaluate_version(catalog, "classifier", location=coco, split="all", results=place / "none.json")
    assert not (place / "none.json").exists()
