"""What a run says of its data before step 1: each warning fires where it should, and is silent where it shouldn't."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.source import Example
from finetune.jobs.folder import JobFolder, read_json
from finetune.spec import JobSpec
from finetune.training.data_warnings import few_images
from finetune.training.prepare import Prepared, load_prepared, prepare
from tests.finetune.training.roles import Place

COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("place"))


def photos(root: Path, *, copied: bool) -> Path:
    """120 unlike pictures; with `copied`, 0119.png shows what 0007.png shows, a little darker."""
    (root / "images").mkdir(parents=True)
    with (root / "captions.txt").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *((f"{n:04d}.png", "a picture") for n in range(120))])
    for n in range(120):
        blocks_HWC = np.random.default_rng(7 if copied and n == 119 else n).integers(0, 256, (4, 4, 3), np.uint8)
        image = Image.fromarray(blocks_HWC).resize((40, 40), Image.Resampling.BICUBIC)
        (image if n < 119 else image.point(lambda value: value * 0.99)).save(root / "images" / f"{n:04d}.png")
    return root


def walls(root: Path, *, exchanged: int = 0) -> Path:
    """Thirty noisy images of each colour, the first `exchanged` red ones among the green."""
    chance = np.random.default_rng(0)
    for colour in COLOURS:
        (root / colour).mkdir(parents=True)
    for colour, rgb in COLOURS.items():
        for number in range(30):
            noisy = np.array(rgb) + chance.integers(-60, 60, 3) + chance.integers(-20, 20, (32, 32, 3))
            folder = "green" if colour == "red" and number < exchanged else colour
            Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(root / folder / f"{colour}{number}.png")
    return root


def prepared_of(place: Place, root: Path, head: dict[str, object], data: dict[str, object]) -> Prepared:
    spec = JobSpec.parse(
        {
            "name": "child",
            "backbone": "tiny",
            "head": head,
            "data": data,
            "train": {"steps": 10, "evaluate_every": 5},
        }
    )
    folder = JobFolder.create(root / "job", job="j", spec=spec, store_url="memory://x")
    found = prepare(folder, spec, place.catalog, on_progress=lambda phase, done, total: None)
    assert load_prepared(folder, spec, place.catalog).warnings == found.warnings  # a resumed job says them, too
    return found


def about(warnings: Sequence[str], words: str) -> list[str]:
    return [text for text in warnings if words in text]


@pytest.mark.parametrize("copied", [True, False])
def test_a_near_copy_across_the_split_is_told(place: Place, tmp_path: Path, copied: bool) -> None:
    head = {"kind": "captioner", "arguments": {"units": 8, "embedding": 8, "min_count": 1, "max_words": 5}}
    data = {"location": f"flickr:{photos(tmp_path / 'photos', copied=copied)}", "split": "ordered:100,20"}
    found = prepared_of(place, tmp_path, head, data)
    said = about(found.warnings, "0007.png (train) and 0119.png (validation)")
    assert len(said) == copied
    record = read_json(tmp_path / "job" / "prepared" / "prepared.json")
    assert record is not None
    near = record["near_duplicates"]
    assert near["compared"] == {"train": 100, "validation": 20}
    if copied:
        assert near["images"]["validation"] >= 1
        assert (near["worst"][0]["first"], near["worst"][0]["second"]) == ("0007.png", "0119.png")
        assert near["worst"][0]["similarity"] > 0.98
    assert record["label_suspects"] is None  # captions have no labels


def test_splits_by_content_and_by_group_work_in_a_run(place: Place, tmp_path: Path) -> None:
    head = {"kind": "captioner", "arguments": {"units": 8, "embedding": 8, "min_count": 1, "max_words": 5}}
    location = f"flickr:{photos(tmp_path / 'photos', copied=False)}"
    by_content = prepared_of(place, tmp_path / "content", head, {"location": location, "split": "hash-content:0.7,0.3"})
    assert sum(by_content.num_examples.values()) == 120
    split = "group:0.7,0.3:^000|^.{3}"
    by_group = prepared_of(place, tmp_path / "group", head, {"location": location, "split": split})
    assert sum(by_group.num_examples.values()) == 120
    assert all(count % 10 == 0 for count in by_group.num_examples.values())


def test_exchanged_labels_are_suspected_by_name(place: Place, tmp_path: Path) -> None:
    data = {"location": f"folder:{walls(tmp_path / 'data', exchanged=4)}", "split": "stratified:0.8,0.2"}
    found = prepared_of(place, tmp_path, {"kind": "classifier"}, data)
    record = read_json(tmp_path / "job" / "prepared" / "prepared.json")
    assert record is not None
    suspects = record["label_suspects"]["images"]
    exchanged = {
        example.id for example in found.splits["train"].examples if "/red" in example.id and example.label == "green"
    }
    assert {each["id"] for each in suspects[: len(exchanged)]} == exchanged
    assert suspects[0]["seen"] == "red"
    (said,) = about(found.warnings, "may have a wrong label")
    assert suspects[0]["id"] in said
    assert "finetune data inspect" in said


def test_clean_even_data_are_not_warned_of(place: Place, tmp_path: Path) -> None:
    data = {"location": f"folder:{walls(tmp_path / 'data')}", "split": "stratified:0.8,0.2"}
    found = prepared_of(place, tmp_path, {"kind": "classifier"}, data)
    assert not about(found.warnings, "wrong label")
    assert not about(found.warnings, "fewer than")


def labelled(**counts: int) -> list[Example]:
    return [Example(id=f"{name}{n}.png", label=name) for name, count in counts.items() for n in range(count)]


def test_classes_with_fewer_than_five_images_are_named_with_their_counts() -> None:
    said = few_images(labelled(cat=4, dog=5, eel=1))
    assert said is not None
    assert said.startswith("2 classes have fewer than 5 training images: 'eel' (1), 'cat' (4)")
    assert "class_weights=balanced" in said
    assert few_images(labelled(cat=5, dog=5)) is None
    several = [Example(id=str(n), labels=("a", "b") if n < 3 else ("b",)) for n in range(9)]
    assert (few_images(several) or "").startswith("1 class has fewer than 5 training images: 'a' (3)")
    assert few_images([Example(id="x", captions=("a dog",))]) is None
