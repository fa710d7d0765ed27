"""Class lists from the data to the answer of a published version: odd names, other orders, other sets; and that a
frozen backbone is frozen."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from finetune.data.queue import training_batches
from finetune.data.sources import open_source
from finetune.jobs.folder import JobFolder
from finetune.models.backbone import Backbone
from finetune.models.heads.dense_arguments import InvalidLabels
from finetune.predictor import Predictor
from finetune.spec import JobSpec
from finetune.training.checkpoints import Checkpoints, spec_digest
from finetune.training.evaluate import evaluate_version
from finetune.training.group import Group
from finetune.training.initialise import initialise
from finetune.training.prepare import prepare
from finetune.training.publish import Initial, RunFacts, export_child, finish, tensor_digests
from finetune.training.weights import as_arrays
from tests.finetune.training.roles import Place
from zoo.catalog import ModelVersion
from zoo.manifest import Head
from zoo.tensors import read_safetensors

COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220), "white": (240, 240, 240)}
# A slash, quotes and a comma, a line end, 300 characters; in another script; names that numbers could be confused with.
ODD = {"red": "warm/red", "green": 'so "green", really', "blue": "blue\nand so on", "white": "白" * 300}
STEPS = 500


pytestmark = pytest.mark.usefixtures("place_cache")


def table(root: Path, names: dict[str, str], *, each: int = 6) -> str:
    """`jsonl:` of plain walls, `each` of a colour, labelled as `names` says."""
    root.mkdir(parents=True)
    with (root / "list.jsonl").open("w", encoding="utf-8") as file:
        for colour, label in names.items():
            for number in range(each):
                rgb = tuple(max(0, value - 3 * number) for value in COLOURS[colour])
                Image.new("RGB", (32, 32), rgb).save(root / f"{colour}{number}.png")
                file.write(json.dumps({"image": f"{colour}{number}.png", "label": label}) + "\n")
    return f"jsonl:{root / 'list.jsonl'}"


@pytest.fixture(scope="module")
def trained(place: Place, tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    """A classifier of the odd names after 500 steps, prepared, trained and published by the parts that a run has."""
    root = tmp_path_factory.mktemp("odd")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELZOO_CACHE", str(place.root / "cache"))
        spec = JobSpec.parse(
            {
                "name": "odd",
                "backbone": "tiny",
                "head": {"kind": "classifier"},
                "data": {"location": table(root / "data", ODD), "split": "stratified:0.7,0.3"},
                "train": {"steps": STEPS, "batch_size": 8, "optimizer": {"learning_rate": 0.01}},
            }
        )
        folder = JobFolder.create(root / "job", job="odd", spec=spec, store_url=(place.root / "store").as_uri())
        prepared = prepare(folder, spec, place.catalog, on_progress=lambda phase, done, total: None)
        start = initialise(
            folder=folder,
            spec=spec,
            catalog=place.catalog,
            prepared=prepared,
            checkpoints=Checkpoints(folder.checkpoints, digest=spec_digest(spec)),
            group=Group(strategy=tf.distribute.get_strategy()),
        )
        train = prepared.splits["train"]
        batches = training_batches(table=train.table, features=train.features_NVD, batch_size=8, seed=1)
        start.trainer.run(iter(batches), STEPS)
        weights = as_arrays(start.network.groups["head"])
        export_child(
            folder=folder,
            request=folder.request(),
            catalog=place.catalog,
            parent=place.catalog.get(prepared.parent),
            assets=prepared.assets,
            head=Head(kind="classifier", arguments=prepared.kind.resolved(prepared.arguments, prepared.assets)),
            weights=weights,
            initial=Initial(start=None, digests=tensor_digests(weights), report={}),
            facts=RunFacts(
                steps=STEPS, best_step=STEPS, stopped_early=False, seconds=0, metrics={}, num_examples={"train": 1}
            ),
        )
        return place.catalog.get(finish(place.catalog, folder)["reference"])


def test_odd_class_names_are_kept_as_they_are(place: Place, trained: ModelVersion) -> None:
    assert trained.manifest.classes == tuple(sorted(ODD.values()))
    metrics = evaluate_version(place.catalog, "odd", split="all")["metrics"]
    assert metrics["accuracy"] == 1
    assert set(metrics["per_class"]) == set(ODD.values())
    source = open_source(dict(trained.manifest.spec or {})["data"]["location"])
    predictor = Predictor.load(place.catalog, "odd")
    for index in (0, 7, 13, 19):
        (said,) = predictor.classify([source.read(index)], top=1)
        assert said[0].label == source.examples[index].label


def test_the_frozen_backbone_is_its_parents_to_the_bit(place: Place, trained: ModelVersion) -> None:
    parent = place.catalog.get("tiny")
    ours, theirs = trained.manifest.component("backbone"), parent.manifest.component("backbone")
    assert ours is not None
    assert ours == theirs
    tensors = [dict(read_safetensors(place.catalog.open_component(each, "backbone"))) for each in (trained, parent)]
    assert tensors[0].keys() == tensors[1].keys()
    for name, value in tensors[0].items():
        assert np.asarray(value).tobytes() == np.asarray(tensors[1][name]).tobytes(), name
    image_BHWC = np.random.default_rng(0).random((4, 32, 32, 3), np.float32)
    vectors = [
        np.asarray(Backbone.from_version(place.catalog, v).feature_vector(image_BHWC)) for v in (trained, parent)
    ]
    np.testing.assert_array_equal(*vectors)
    head = dict(read_safetensors(place.catalog.open_component(trained, "head")))
    assert np.abs(head["logits/kernel"]).max() > 0.3  # which did learn


def test_classes_in_another_order_are_compared_by_name(place: Place, trained: ModelVersion, tmp_path: Path) -> None:
    other = table(tmp_path / "data", dict(reversed(list(ODD.items()))))
    assert evaluate_version(place.catalog, "odd", location=other, split="all")["metrics"]["accuracy"] == 1


def test_fewer_classes_than_were_learnt_are_evaluated(place: Place, trained: ModelVersion, tmp_path: Path) -> None:
    some = table(tmp_path / "data", {colour: ODD[colour] for colour in ("red", "white")})
    metrics = evaluate_version(place.catalog, "odd", location=some, split="all")["metrics"]
    assert metrics["accuracy"] == 1
    assert {name for name, scores in metrics["per_class"].items() if scores["support"]} == {ODD["red"], ODD["white"]}


def test_a_class_that_was_not_learnt_is_refused_with_its_file_and_the_nearest(
    place: Place, trained: ModelVersion, tmp_path: Path
) -> None:
    wrong = table(tmp_path / "data", {**ODD, "red": "warm/reds"})
    with pytest.raises(InvalidLabels, match=r"'warm/reds'.*red0.png.*'warm/red' is its nearest class") as error:
        evaluate_version(place.catalog, "odd", location=wrong, split="all")
    assert "compared by name" in str(error.value.hint)


@pytest.mark.parametrize(
    ("names", "arguments", "match"),
    [
        ({"red": "one"}, {}, "only 'one'"),
        ({"red": "a", "blue": "b"}, {"num_classes": 3}, "num_classes is 3, but the training split has 2 classes: a, b"),
    ],
)
def test_class_lists_that_cannot_be_learnt_are_refused_before_step_1(
    place: Place, tmp_path: Path, names: dict[str, str], arguments: dict[str, int], match: str
) -> None:
    spec = JobSpec.parse(
        {
            "name": "no",
            "backbone": "tiny",
            "head": {"kind": "classifier", "arguments": arguments},
            "data": {"location": table(tmp_path / "data", names), "split": "stratified:0.7,0.3"},
        }
    )
    folder = JobFolder.create(tmp_path / "job", job="no", spec=spec, store_url=(place.root / "store").as_uri())
    with pytest.raises(InvalidLabels, match=match):
        prepare(folder, spec, place.catalog, on_progress=lambda phase, done, total: None)
    assert not folder.prepared_path.exists()
