"""A run says when images of validation are nearly those of training, and prepared.json keeps the numbers."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.jobs.folder import JobFolder, read_json
from finetune.spec import JobSpec
from finetune.training.prepare import prepare
from tests.finetune.training.roles import Place


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place.make(tmp_path / "place")


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


def prepared_record(place: Place, root: Path, split: str, *, copied: bool = True) -> dict[str, object]:
    spec = JobSpec.parse(
        {
            "name": "child",
            "backbone": "tiny",
            "head": {"kind": "captioner", "arguments": {"units": 8, "embedding": 8, "min_count": 1, "max_words": 5}},
            "data": {"location": f"flickr:{photos(root / 'photos', copied=copied)}", "split": split},
            "train": {"steps": 10, "evaluate_every": 5},
        }
    )
    folder = JobFolder.create(root / "job", job="j", spec=spec, store_url="memory://x")
    prepare(folder, spec, place.catalog, on_progress=lambda phase, done, total: None)
    record = read_json(folder.prepared_path)
    assert record is not None
    return record


def test_a_near_copy_across_the_split_is_told(place: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    near = prepared_record(place, tmp_path, "ordered:100,20")["near_duplicates"]
    assert isinstance(near, dict)
    assert near["compared"] == {"train": 100, "validation": 20}
    assert near["images"]["validation"] >= 1
    assert (near["worst"][0]["first"], near["worst"][0]["second"]) == ("0007.png", "0119.png")
    assert near["worst"][0]["similarity"] > 0.98
    said = capfd.readouterr().err
    assert "warning: " in said
    assert "0007.png (train) and 0119.png (validation)" in said


def test_splits_by_content_and_by_group_work_in_a_run(place: Place, tmp_path: Path) -> None:
    record = prepared_record(place, tmp_path / "content", "hash-content:0.7,0.3", copied=False)
    assert sum(record["num_examples"].values()) == 120  # type: ignore[attr-defined]
    record = prepared_record(place, tmp_path / "group", "group:0.7,0.3:^000|^.{3}", copied=False)
    assert sum(record["num_examples"].values()) == 120  # type: ignore[attr-defined]
    assert all(count % 10 == 0 for count in record["num_examples"].values())  # type: ignore[attr-defined]
