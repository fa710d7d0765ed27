"""What is decided before step 1: bad records, splits, vocabularies, where to start from."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from finetune.data.queue import training_batches
from finetune.jobs.folder import DamagedJobFile, JobFolder, read_json
from finetune.spec import InvalidSpec, JobSpec
from finetune.training.bad_records import TooManyBadRecords
from finetune.training.checkpoints import AnotherCheckpoint, Checkpoints, spec_digest
from finetune.training.group import Group
from finetune.training.initialise import Start, initialise
from finetune.training.prepare import DataChanged, EmptySplit, Prepared, UnfitStart, load_prepared, prepare
from finetune.training.publish import Initial, RunFacts, export_child, finish, tensor_digests
from finetune.training.weights import as_arrays
from tests.finetune.training.conftest import PLAIN
from tests.finetune.training.roles import Place
from tests.tiny import tiny_backbone_version
from zoo.catalog import ModelVersion
from zoo.manifest import Head

COLOURS = ["red", "lime", "blue", "gold", "black", "white", "pink", "cyan", "navy", "teal"]


pytestmark = pytest.mark.usefixtures("place_cache")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten plain images with two captions each, in the layout that flickr: reads."""
    root = tmp_path / "photos"
    (root / "images").mkdir(parents=True)
    rows = []
    for place, colour in enumerate(COLOURS):
        Image.new("RGB", (40, 40), colour).save(root / "images" / f"{place}.jpg")
        rows += [[f"{place}.jpg", f"a {colour} wall"], [f"{place}.jpg", f"something {colour}"]]
    write_captions(root, rows)
    return root


def write_captions(root: Path, rows: list[list[str]]) -> None:
    with (root / "captions.txt").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["image", "caption"], *rows])


def plan(photos: Path, **changes: Any) -> JobSpec:
    value: dict[str, Any] = {
        "name": "child",
        "backbone": "tiny",
        "head": {"kind": "captioner", "arguments": {"units": 8, "embedding": 8, "min_count": 1, "max_words": 5}},
        "data": {"location": f"flickr:{photos}", "split": "ordered:6,2,2"} | changes.pop("data", {}),
        "train": {"steps": 10, "evaluate_every": 5} | changes.pop("train", {}),
    }
    return JobSpec.parse(value | changes)


def go(place: Place, root: Path, spec: JobSpec) -> tuple[JobFolder, Prepared]:
    folder = JobFolder.create(root / "job", job="j", spec=spec, store_url="memory://x")
    return folder, prepare(folder, spec, place.catalog, on_progress=lambda phase, done, total: None)


def start(place: Place, folder: JobFolder, spec: JobSpec, prepared: Prepared) -> Start:
    return initialise(
        folder=folder,
        spec=spec,
        catalog=place.catalog,
        prepared=prepared,
        checkpoints=Checkpoints(folder.checkpoints, digest=spec_digest(spec)),
        group=Group(strategy=tf.distribute.get_strategy()),
    )


def words(prepared: Prepared) -> set[str]:
    return set(json.loads(prepared.assets.files["vocabulary.json"])["words"])


def test_the_vocabulary_comes_from_the_training_split_only(place: Place, tmp_path: Path, photos: Path) -> None:
    _, prepared = go(place, tmp_path, plan(photos))
    assert words(prepared) == {"a", "wall", "something", *COLOURS[:6]}
    assert prepared.num_examples == {"train": 6, "validation": 2, "test": 2}
    train = prepared.splits["train"]
    assert len(train.table.image_index) == 12
    assert train.first_view().shape == (6, 160)


def test_photos_with_one_caption_each_are_memorised_exactly(place: Place, tmp_path: Path, photos: Path) -> None:
    """Whatever stands between a photo and its caption (split, bad records, features, order) keeps them together."""
    write_captions(photos, [[f"{n}.jpg", f"a {colour} wall"] for n, colour in enumerate(COLOURS)])
    (photos / "images" / "2.jpg").write_bytes(b"")
    arguments = {**PLAIN, "units": 32, "embedding": 32, "min_count": 1, "max_words": 5}
    spec = plan(
        photos,
        head={"kind": "captioner", "arguments": arguments},
        data={"split": "ordered:9,1", "max_bad_share": 0.1},
        train={"steps": 400, "optimizer": {"learning_rate": 0.02, "schedule": "cosine"}},
    )
    folder, prepared = go(place, tmp_path, spec)
    begun = start(place, folder, spec, prepared)
    train = prepared.splits["train"]
    batches = training_batches(table=train.table, features=train.features_NVD, batch_size=8, seed=1)
    begun.trainer.run(iter(batches), 400)
    said = [captions[0].text for captions in begun.network.head.captions(train.first_view())]  # type: ignore[attr-defined]
    assert said == [f"a {colour} wall" for colour in COLOURS[:9] if colour != "blue"]


def test_bad_records_are_dropped_counted_and_listed_up_to_a_share(place: Place, tmp_path: Path, photos: Path) -> None:
    (photos / "images" / "1.jpg").write_bytes(b"")
    data = (photos / "images" / "7.jpg").read_bytes()
    (photos / "images" / "7.jpg").write_bytes(data[: len(data) // 2])  # only decoding shows it
    folder, prepared = go(place, tmp_path, plan(photos, data={"max_bad_share": 0.2}))
    assert prepared.num_examples == {"train": 5, "validation": 1, "test": 2}
    assert COLOURS[1] not in words(prepared)
    bad = read_json(folder.prepared / "bad_records.json")
    assert bad is not None
    assert [record["id"] for record in bad["records"]] == ["1.jpg", "7.jpg"]
    assert (bad["count"], bad["total"], prepared.bad_records) == (2, 10, 2)
    # Every feature row still belongs to its own image.
    np.testing.assert_array_equal(prepared.splits["train"].row_of, [0, 1, 2, 3, 4])
    again = load_prepared(folder, plan(photos, data={"max_bad_share": 0.2}), place.catalog)
    for part, split in prepared.splits.items():
        np.testing.assert_array_equal(again.splits[part].first_view(), split.first_view())
        np.testing.assert_array_equal(again.splits[part].table.arrays["tokens"], split.table.arrays["tokens"])


def test_more_bad_records_than_allowed_fail_naming_the_first(place: Place, tmp_path: Path, photos: Path) -> None:
    (photos / "images" / "1.jpg").write_bytes(b"")
    (photos / "images" / "9.jpg").write_bytes(b"text, not an image")
    with pytest.raises(TooManyBadRecords, match=r"2 of 10 records .*20\.0%.*1\.jpg: .*; 9\.jpg: ") as caught:
        go(place, tmp_path, plan(photos))
    assert caught.value.details["count"] == "2"
    assert not (tmp_path / "job" / "prepared" / "prepared.json").exists()


def test_a_split_that_only_bad_records_would_fill_is_named(place: Place, tmp_path: Path, photos: Path) -> None:
    for name in ("6.jpg", "7.jpg"):
        (photos / "images" / name).write_bytes(b"")
    with pytest.raises(EmptySplit, match="validation"):
        go(place, tmp_path, plan(photos, data={"max_bad_share": 0.5}))


def test_faults_of_head_arguments_have_their_path(place: Place, tmp_path: Path, photos: Path) -> None:
    wrong = {"kind": "captioner", "arguments": {"units": 0, "colour": "red"}}
    with pytest.raises(InvalidSpec, match=r"head\.arguments\.units.*head\.arguments\.colour"):
        go(place, tmp_path, plan(photos, head=wrong))


def test_data_that_changed_since_are_refused_on_resume(place: Place, tmp_path: Path, photos: Path) -> None:
    spec = plan(photos)
    folder, _ = go(place, tmp_path, spec)
    rows = list(csv.reader(io.StringIO((photos / "captions.txt").read_text())))[1:]
    write_captions(photos, [[rows[0][0], "another caption"], *rows[1:]])
    with pytest.raises(DataChanged, match="not what they were"):
        load_prepared(folder, spec, place.catalog)


def test_what_was_prepared_for_another_spec_is_refused(place: Place, tmp_path: Path, photos: Path) -> None:
    folder, _ = go(place, tmp_path, plan(photos))
    with pytest.raises(DamagedJobFile, match="another spec"):
        load_prepared(folder, plan(photos, train={"steps": 11}), place.catalog)


def test_fresh_weights_follow_the_seed(place: Place, tmp_path: Path, photos: Path) -> None:
    weights = []
    for number, seed in enumerate((1, 1, 2)):
        spec = plan(photos, train={"seed": seed})
        folder, prepared = go(place, tmp_path / str(number), spec)
        begun = start(place, folder, spec, prepared)
        assert (begun.step, begun.initial.start) == (0, None)
        assert {f"head/{name}" for name in begun.network.groups["head"]} == set(begun.initial.report["fresh"])
        weights.append(as_arrays(begun.network.groups["head"]))
    assert all(np.array_equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(np.array_equal(weights[0][name], weights[2][name]) for name in weights[0])


def test_resuming_comes_before_everything_else_and_not_with_another_spec(
    place: Place, tmp_path: Path, photos: Path
) -> None:
    spec = plan(photos)
    folder, prepared = go(place, tmp_path, spec)
    first = start(place, folder, spec, prepared)
    first.network.groups["head"]["output/bias"].assign_add(np.ones(9 + 4, np.float32))
    first.trainer.global_step.assign(5)
    checkpoints = Checkpoints(folder.checkpoints, digest=spec_digest(spec))
    checkpoints.save(first.trainer.variables, step=5, train_loss=1.0, seconds=3.0)
    again = start(place, folder, spec, prepared)
    assert (again.step, again.seconds) == (5, 3.0)
    assert dict(again.initial.digests) == dict(first.initial.digests)
    np.testing.assert_array_equal(again.network.groups["head"]["output/bias"].numpy(), np.ones(13, np.float32))
    with pytest.raises(AnotherCheckpoint):
        start(place, folder, plan(photos, train={"steps": 11}), prepared)


def publish(place: Place, root: Path, spec: JobSpec) -> tuple[ModelVersion, dict[str, np.ndarray]]:
    """A version whose head is untrained, with its weights."""
    folder, prepared = go(place, root, spec)
    begun = start(place, folder, spec, prepared)
    weights = as_arrays(begun.network.groups["head"])
    export_child(
        folder=folder,
        request=folder.request(),
        catalog=place.catalog,
        parent=place.catalog.get(prepared.parent),
        assets=prepared.assets,
        head=Head(kind="captioner", arguments=prepared.kind.resolved(prepared.arguments, prepared.assets)),
        weights=weights,
        initial=Initial(start=None, digests=tensor_digests(weights), report={}),
        facts=RunFacts(steps=1, best_step=1, stopped_early=False, seconds=0, metrics={}, num_examples={}),
    )
    return place.catalog.get(finish(place.catalog, folder)["reference"]), weights


def test_starting_from_a_version_takes_its_head_and_its_vocabulary(place: Place, tmp_path: Path, photos: Path) -> None:
    version, weights = publish(place, tmp_path / "first", plan(photos, name="first"))
    # Other training examples: a vocabulary learnt anew would be another one.
    spec = plan(photos, start_from="first", data={"split": "ordered:8,2"}, train={"seed": 7})
    folder, prepared = go(place, tmp_path / "second", spec)
    assert words(prepared) == {"a", "wall", "something", *COLOURS[:6]}
    begun = start(place, folder, spec, prepared)
    assert (begun.step, begun.initial.start) == (0, version.reference)
    for name, value in as_arrays(begun.network.groups["head"]).items():
        np.testing.assert_array_equal(value, weights[name])
    assert not begun.initial.report["fresh"]
    assert f"head/{sorted(weights)[0]}" in begun.initial.report["restored"]


def test_a_version_that_cannot_be_the_start_is_refused(place: Place, tmp_path: Path, photos: Path) -> None:
    publish(place, tmp_path / "first", plan(photos, name="narrow"))
    with pytest.raises(UnfitStart, match="backbone only"):
        go(place, tmp_path / "a", plan(photos, start_from="tiny"))
    with pytest.raises(UnfitStart, match=r"captioner head.*classifier"):
        go(place, tmp_path / "b", plan(photos, start_from="narrow", head={"kind": "classifier"}))
    tiny_backbone_version(place.catalog, "other", seed=3)
    with pytest.raises(UnfitStart, match="another backbone"):
        go(place, tmp_path / "c", plan(photos, start_from="narrow", backbone="other"))
    wider = {"kind": "captioner", "arguments": {"units": 9, "embedding": 8, "min_count": 1, "max_words": 5}}
    spec = plan(photos, start_from="narrow", head=wider)
    folder, prepared = go(place, tmp_path / "d", spec)
    with pytest.raises(Exception, match=r"of another shape: lstm/bias stored \(32,\), wanted \(36,\)"):
        start(place, folder, spec, prepared)
