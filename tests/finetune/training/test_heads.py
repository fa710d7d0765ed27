"""Runs of each head in real processes: what is fitted to the validation predictions is published, and answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune.data.sources import open_source
from finetune.jobs.folder import JobFolder, read_json
from finetune.predictor import Predictor
from finetune.training.evaluate import evaluate_version
from finetune.training.publish import finish
from tests.finetune.training.roles import Place, log, spec
from zoo.tensors import read_safetensors

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "pink": (230, 120, 180)}
TRAIN = {
    "steps": 60,
    "evaluate_every": 30,
    "batch_size": 16,
    "deterministic": True,
    "optimizer": {"learning_rate": 0.02},
}


pytestmark = pytest.mark.usefixtures("place_cache")


def walls(place: Place, *colours: str) -> str:
    """Ten noisy images of each colour."""
    root = place.root / "-".join(colours)
    chance = np.random.default_rng(0)
    for colour in colours:
        (root / colour).mkdir(parents=True)
        for number in range(10):
            noisy = np.array(COLOURS[colour]) + chance.integers(-60, 60, (32, 32, 3))
            Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(root / colour / f"{number}.png")
    return f"folder:{root}"


def trained(place: Place, name: str, **changes: Any) -> tuple[JobFolder, dict[str, Any]]:
    folder = JobFolder.create(
        place.root / "jobs" / name,
        job=name,
        spec=spec(name=name, train=TRAIN, **changes),
        store_url=(place.root / "store").as_uri(),
    )
    assert place.run(folder) == (0, 0), log(folder, "chief")[-3000:] + log(folder, "evaluator")[-3000:]
    return folder, finish(place.catalog, folder)


def test_thresholds_of_a_multi_label_run_are_those_of_the_best_checkpoint_and_served(place: Place) -> None:
    data = {"location": "scenes:count=60,size=32", "split": "source"}
    folder, result = trained(place, "labels", head={"kind": "multilabel"}, data=data)
    head = place.catalog.get("labels").manifest.head
    assert head is not None
    best = read_json(folder.evaluation_path(result["best_step"])) or {}
    assert head.arguments["thresholds"] == best["fitted"]["thresholds"]
    assert set(head.arguments["thresholds"]) != {0.5}
    again = evaluate_version(place.catalog, "labels", split="validation")["metrics"]
    for name in ("map", "macro_f1", "micro_f1", "exact"):
        assert again[name] == pytest.approx(result["metrics"]["validation"][name], rel=1e-4), name

    source = open_source("scenes:count=60,size=32")
    images = [source.read(index) for index in range(4)]
    predictor = Predictor.load(place.catalog, "labels")
    above = predictor.classify(images)
    least = dict(zip(place.catalog.get("labels").manifest.classes or (), head.arguments["thresholds"], strict=True))
    assert any(above)
    for labels in above:
        assert all(each.score >= least[each.label] for each in labels)
        assert [each.score for each in labels] == sorted((each.score for each in labels), reverse=True)
    assert [labels[:1] for labels in above] == predictor.classify(images, top=1)
    assert (folder.root / "examples" / "contact-sheet.png").is_file()


@pytest.mark.slow
def test_a_classifier_is_calibrated_and_another_starts_from_it_with_other_classes(place: Place) -> None:
    split = {"split": "stratified:0.7,0.3"}
    folder, result = trained(
        place, "three", head={"kind": "classifier"}, data={"location": walls(place, "red", "green", "blue"), **split}
    )
    first = place.catalog.get("three")
    assert first.manifest.head is not None
    assert first.manifest.head.arguments["temperature"] != 1
    metrics = result["metrics"]["validation"]
    assert metrics["ece"] != metrics["ece_uncalibrated"]
    again = evaluate_version(place.catalog, "three", split="validation")["metrics"]
    assert again["ece"] == pytest.approx(metrics["ece"], rel=1e-3)
    assert (folder.root / "examples" / "contact-sheet.html").is_file()

    changed = {"location": walls(place, "pink", "red", "green"), **split}
    short = spec(train={**TRAIN, "steps": 1, "evaluate_every": 1, "optimizer": {"learning_rate": 1e-9}}).train
    other = JobFolder.create(
        place.root / "jobs" / "other",
        job="other",
        spec=spec(name="other", head={"kind": "classifier"}, data=changed, start_from="three").model_copy(
            update={"train": short}
        ),
        store_url=(place.root / "store").as_uri(),
    )
    assert place.run(other) == (0, 0), log(other, "chief")[-3000:]
    report = finish(place.catalog, other)["restore_report"]["classes"]
    assert report == {"kept": ["green", "red"], "added": ["pink"], "removed": ["blue"]}
    second = place.catalog.get("other")
    old, new = (
        dict(read_safetensors(place.catalog.open_component(version, "head")))["logits/kernel"]
        for version in (first, second)
    )
    assert second.manifest.classes == ("green", "pink", "red")
    np.testing.assert_allclose(new[:, [0, 2]], old[:, [1, 2]], atol=1e-6)
    assert np.abs(new[:, 1] - old[:, 0]).max() > 1e-3


@pytest.mark.slow
def test_an_embedding_run_is_what_embed_answers_with(place: Place) -> None:
    data = {"location": walls(place, "red", "blue"), "split": "stratified:0.7,0.3"}
    _, result = trained(place, "near", head={"kind": "embedding", "arguments": {"dim": 8}}, data=data)
    assert result["metrics"]["validation"]["recall_at_1"] == 1
    source = open_source(data["location"])
    images = [source.read(index) for index in (0, 1, 19)]
    unit_ND = Predictor.load(place.catalog, "near").embed(images)
    head = dict(read_safetensors(place.catalog.open_component(place.catalog.get("near"), "head")))
    feature_ND = Predictor.load(place.catalog, "tiny").embed(images)
    expected = feature_ND @ head["embedding/kernel"] + head["embedding/bias"]
    np.testing.assert_allclose(unit_ND, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)
