"""Training on images, the backbone's end included: the order and the pixels, and a whole run in real processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from finetune.data.augment_mirror import may_mirror
from finetune.data.augmentation import Augmentation
from finetune.data.order import EpochOrder
from finetune.data.order_graph import view_of
from finetune.data.preprocess import load_views, normalise
from finetune.data.share import Share
from finetune.data.sources import open_source
from finetune.jobs.folder import JobFolder
from finetune.models.backbone import Backbone
from finetune.models.heads.head import TargetTable
from finetune.models.task_model import load_task_model
from finetune.training.evaluate import evaluate_version
from finetune.training.image_rows import ImageRows, images_once, view_of_row
from finetune.training.publish import finish
from finetune.training.split_data import SplitData
from tests.finetune.training.roles import Place, kill, log, until
from zoo.input_spec import InputSpec
from zoo.tensors import read_safetensors

SPEC = InputSpec(height=24, width=24)


@pytest.fixture(scope="module")
def split() -> SplitData:
    """Twelve rows of five images: captions, say."""
    source = open_source("scenes:count=20,size=32")
    chosen = (3, 8, 9, 14, 17)
    table = TargetTable(
        image_index=np.array([0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4], np.int32),
        arrays={"number": np.arange(12, dtype=np.int32)},
    )
    examples = tuple(source.examples[index] for index in chosen)
    return SplitData.join(name="train", examples=examples, source_index=chosen, table=table)


def rows(split: SplitData, start_step: int = 0, **options: Any) -> ImageRows:
    return ImageRows(
        split=split,
        source=open_source("scenes:count=20,size=32"),
        spec=SPEC,
        share=Share(batch_size=5),
        seed=7,
        views=3,
        max_pixels=10_000,
        max_bad_share=0.0,
        start_step=start_step,
        **options,
    )


def test_each_row_with_its_image_in_the_order_of_the_rows(split: SplitData) -> None:
    source = open_source("scenes:count=20,size=32")
    order = EpochOrder(12, 7).at(0, 60)
    with rows(split) as batches:
        for step in range(12):
            inputs, targets = next(batches)
            expected = order[step * 5 : step * 5 + 5]
            assert targets["number"].tolist() == expected.tolist()
            assert targets["weight"].tolist() == [1.0] * 5
            for place, row in enumerate(expected):
                epoch = (step * 5 + place) // 12
                view = view_of_row(epoch, int(row), seed=7, num_views=3)
                data = source.read(int(split.source_index[split.table.image_index[row]]))
                pixels = normalise(load_views(data, SPEC, views=(view,), max_pixels=10_000)[0], SPEC)
                np.testing.assert_array_equal(inputs["image"][place], pixels)


def test_resumed_at_any_step_the_pixels_are_the_same(split: SplitData) -> None:
    with rows(split) as batches:
        whole = [next(batches) for _ in range(10)]
    with rows(split, start_step=7) as batches:
        for inputs, targets in whole[7:]:
            again = next(batches)
            np.testing.assert_array_equal(again[0]["image"], inputs["image"])
            np.testing.assert_array_equal(again[1]["number"], targets["number"])


def test_augmented_pixels_are_new_every_epoch_and_the_same_when_resumed(split: SplitData) -> None:
    augmentation = Augmentation(crop="inception", colour="fast", mirror=True, mixup=0.4)
    with rows(split, augmentation=augmentation) as batches:
        whole = [next(batches) for _ in range(12)]
    with rows(split, start_step=9, augmentation=augmentation) as batches:
        for inputs, _ in whole[9:]:
            for name, value in next(batches)[0].items():
                np.testing.assert_array_equal(value, inputs[name])
    seen: dict[int, list[bytes]] = {}
    for inputs, targets in whole:
        assert inputs["partner"].dtype == np.int32
        assert set(inputs["partner"].tolist()) == set(range(5))
        for row, pixels in zip(targets["number"], inputs["image"], strict=True):
            seen.setdefault(int(row), []).append(pixels.tobytes())
    assert all(len(set(pixels)) == 5 for pixels in seen.values())  # five epochs of twelve rows


def test_scenes_are_never_mirrored_since_their_captions_say_left(split: SplitData) -> None:
    source = open_source("scenes:count=20,size=32")
    with rows(split, augmentation=Augmentation(mirror=True)) as batches:
        for _ in range(10):
            inputs, targets = next(batches)
            for row, pixels in zip(targets["number"], inputs["image"], strict=True):
                place = split.table.image_index[row]
                if not may_mirror(split.examples[place].captions):
                    plain = load_views(source.read(int(split.source_index[place])), SPEC, views=(0,), max_pixels=10_000)
                    np.testing.assert_array_equal(pixels, normalise(plain[0], SPEC))


def test_views_are_chosen_as_for_features() -> None:
    row_R = np.arange(40)
    for epoch in (0, 1, 1000):
        graph = view_of(tf.fill([40], tf.constant(epoch, tf.int64)), tf.constant(row_R), 7, 3).numpy()
        assert [view_of_row(epoch, int(row), seed=7, num_views=3) for row in row_R] == graph.tolist()
        assert set(graph.tolist()) == {0, 1, 2}


def test_every_image_once() -> None:
    source = open_source("scenes:count=20,size=32")
    indices = [4, 2, 19, 0, 7]
    batches = list(images_once(source=source, indices=indices, spec=SPEC, batch_size=2, max_pixels=10_000))
    assert [batch.shape for batch in batches] == [(2, 24, 24, 3)] * 3
    together = np.concatenate(batches)
    for place, index in enumerate([*indices, 7]):
        pixels = load_views(source.read(index), SPEC, views=(0,), max_pixels=10_000)[0]
        np.testing.assert_array_equal(together[place], normalise(pixels, SPEC))


TRAIN = {"steps": 30, "evaluate_every": 10, "batch_size": 8}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def unbroken(place: Place) -> JobFolder:
    folder = place.job("unbroken", train=TRAIN, model={"train_from": "block_14"})
    assert place.run(folder) == (0, 0), log(folder, "chief")[-3000:] + log(folder, "evaluator")[-3000:]
    return folder


def test_a_child_with_a_backbone_of_its_own(place: Place, unbroken: JobFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELZOO_CACHE", str(place.root / "cache"))
    result = finish(place.catalog, unbroken)
    child, parent = place.catalog.get("child"), place.catalog.get("tiny")
    own, old = (
        dict(read_safetensors(place.catalog.open_component(version, "backbone"))) for version in (child, parent)
    )
    assert own.keys() == old.keys()
    trained = {name for name in own if not np.array_equal(own[name], old[name])}
    assert trained == {
        name
        for name in own
        if name.startswith(("block_14/", "block_15/", "top/")) and not name.rpartition("/")[2].startswith("moving_")
    }
    fates = child.manifest.lineage.tensors
    assert {name for name, fate in fates.items() if name.startswith("backbone/") and fate == "trained"} == {
        f"backbone/{name}" for name in trained
    }
    assert child.manifest.lineage.parent == "tiny@1"

    evaluated = evaluate_version(place.catalog, "child", split="validation")["metrics"]
    for name, value in result["metrics"]["validation"].items():
        assert evaluated[name] == pytest.approx(value, rel=1e-4), name
    model = load_task_model(place.catalog, "child")
    assert model.backbone.digest != Backbone.from_version(place.catalog, parent).digest
    assert "training waited for input" in log(unbroken, "chief")


@pytest.mark.slow
def test_killed_in_the_midst_it_ends_with_the_same_bits(place: Place, unbroken: JobFolder) -> None:
    folder = place.job("broken", train=TRAIN, model={"train_from": "block_14"})
    chief = place.start("chief", folder)
    until(lambda: (folder.checkpoints / "10").exists(), chief)
    kill(chief)
    assert place.run(folder) == (0, 0), log(folder, "chief")[-3000:]
    assert "resumed at step" in log(folder, "chief")
    for name in ("head.safetensors", "backbone.safetensors"):
        assert (folder.export / name).read_bytes() == (unbroken.export / name).read_bytes()


def test_an_endpoint_that_is_none_is_said_before_anything_is_done(place: Place) -> None:
    folder = place.job("typo", train=TRAIN, model={"train_from": "blok_14"})
    chief = place.start("chief", folder)
    assert chief.wait(timeout=60) == 1
    error = folder.read_error() or {}
    assert error["reason"] == "UnknownEndpoint"
    assert "did you mean block_14" in error["message"]
    assert not Path(folder.prepared / "split.json").exists()
