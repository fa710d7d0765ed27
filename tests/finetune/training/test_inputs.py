"""What a spec says of the order and the features, down to the batches that a chief and its workers are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune.data.features import FeatureCache
from finetune.data.share import Share
from finetune.jobs.folder import JobFolder
from finetune.spec import JobSpec
from finetune.training.inputs import training_input
from finetune.training.prepare import Prepared, prepare
from finetune.training.stages import stages_of
from tests.finetune.training.roles import Place
from tests.tiny import TINY_FEATURE_DIM

BATCH = 10


pytestmark = pytest.mark.usefixtures("place_cache")


@pytest.fixture(scope="module")
def walls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighteen red, four green and two blue images."""
    root = tmp_path_factory.mktemp("walls")
    for colour, count in (("red", 18), ("green", 4), ("blue", 2)):
        (root / colour).mkdir()
        for number in range(count):
            image = Image.new("RGB", (32, 32), colour)
            image.putpixel((number, number), (9, 9, 9))  # no two are the same
            image.save(root / colour / f"{number}.png")
    return root


def prepared(place: Place, root: Path, walls: Path, **changes: Any) -> tuple[JobSpec, Prepared]:
    value: dict[str, Any] = {
        "name": "walls",
        "backbone": "tiny",
        "head": {"kind": "classifier"},
        "data": {"location": f"folder:{walls}", "split": "stratified:0.75,0.25"} | changes.pop("data", {}),
        "train": {"batch_size": BATCH},
    }
    spec = JobSpec.parse(value | changes)
    folder = JobFolder.create(root / "job", job="j", spec=spec, store_url="memory://x")
    return spec, prepare(folder, spec, place.catalog, on_progress=lambda phase, done, total: None)


def batches(place: Place, spec: JobSpec, made: Prepared, *, first: int, steps: int, **share: int) -> list[Any]:
    found = []
    (stage,) = stages_of(spec)
    own = Share(batch_size=BATCH, **share)
    with training_input(spec, made, place.catalog, stage, share=own)(first) as iterator:
        for _ in range(steps):
            inputs, targets = next(iterator)
            found.append(({name: np.asarray(v) for name, v in inputs.items()}, np.asarray(targets["label"]),
                          np.asarray(targets["weight"])))  # fmt: skip
    return found


@pytest.mark.parametrize("model", [pytest.param({}, marks=pytest.mark.slow), {"train_from": "block_14"}])
def test_balanced_batches_whatever_is_trained_and_whoever_makes_them(
    place: Place, tmp_path: Path, walls: Path, model: dict[str, str]
) -> None:
    spec, made = prepared(place, tmp_path, walls, data={"order": "balanced"}, model=model)
    whole = batches(place, spec, made, first=0, steps=6)
    counts = np.bincount(np.concatenate([labels for _, labels, _ in whole]), minlength=3)
    assert counts.tolist() == [20, 20, 20]
    resumed = batches(place, spec, made, first=4, steps=2)
    shares = [batches(place, spec, made, first=4, steps=2, worker=worker, num_workers=3) for worker in range(3)]
    for step in range(2):
        (inputs, labels, _), (again, same, _) = whole[4 + step], resumed[step]
        name = "image" if model else "feature_vector"
        np.testing.assert_array_equal(again[name], inputs[name])
        np.testing.assert_array_equal(same, labels)
        pieces = [share[step] for share in shares]
        together = np.concatenate([piece[name][weight > 0] for piece, _, weight in pieces])
        np.testing.assert_array_equal(together, inputs[name])


def test_features_of_half_the_size_are_fed_as_float32(place: Place, tmp_path: Path, walls: Path) -> None:
    full_spec, full = prepared(place, tmp_path / "full", walls)
    half_spec, half = prepared(place, tmp_path / "half", walls, data={"features": "float16"})
    stored = half.splits["train"].features_NVD
    assert stored is not None
    assert stored.dtype == np.float16
    assert half.splits["train"].first_view().dtype == np.float32
    ((wide, labels, _),) = batches(place, full_spec, full, first=3, steps=1)
    ((narrow, same, _),) = batches(place, half_spec, half, first=3, steps=1)
    assert narrow["feature_vector"].dtype == np.float32
    assert narrow["feature_vector"].shape == (BATCH, TINY_FEATURE_DIM)
    np.testing.assert_array_equal(same, labels)
    np.testing.assert_array_equal(narrow["feature_vector"], wide["feature_vector"].astype(np.float16))
    assert {entry.dtype for entry in FeatureCache().list()} == {"float32", "float16"}
