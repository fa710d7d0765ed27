"""Near duplicates: the pairs that are there, whatever the blocks; the worst first; bounded work that is owned up to."""

from __future__ import annotations

import itertools
import tracemalloc

import numpy as np
import pytest

from finetune.data import duplicates
from finetune.data.duplicates import PartFeatures, near_duplicates, near_duplicates_of_split
from finetune.data.features import FeatureArray
from finetune.data.source import Example
from finetune.data.splits import Split

DIM = 64


def vectors(count: int, seed: int = 0) -> np.ndarray:
    """Far apart from each other, but with a great mean in common."""
    noise = np.random.default_rng(seed).standard_normal((count, DIM)).astype(np.float32)
    return noise + 5


def examples(count: int) -> list[Example]:
    return [Example(id=f"{n:05d}.jpg") for n in range(count)]


def part(vectors_ND: np.ndarray, first: int = 0) -> PartFeatures:
    """Two views, of which the second would match everything."""
    views_NVD = np.stack([vectors_ND, np.ones_like(vectors_ND)], axis=1)
    rows = np.arange(len(vectors_ND))[::-1].copy()
    return PartFeatures(features=views_NVD, rows=rows, indices=first + rows)


def by_hand(left: np.ndarray, right: np.ndarray, mean: np.ndarray, threshold: float) -> set[tuple[int, int]]:
    found = set()
    for (i, a), (j, b) in itertools.product(enumerate(left), enumerate(right)):
        one, other = (a - mean).astype(float), (b - mean).astype(float)
        if one @ other / np.linalg.norm(one) / np.linalg.norm(other) >= threshold:
            found.add((i, j))
    return found


@pytest.mark.parametrize("block", [7, 64, 5000])
def test_pairs_across_parts_are_those_counted_by_hand(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_BLOCK", block)
    train, validation, test = vectors(150, 1), vectors(60, 2), vectors(40, 3)
    validation[3] = train[20] * 1.001
    validation[4] = train[20] + 0.02 * vectors(1, 9)[0]
    test[7] = validation[9]
    test[8] = train[149]
    mean = np.concatenate([train, validation, test]).mean(axis=0)
    parts = {"train": part(train), "validation": part(validation, 150), "test": part(test, 210)}
    told: list[tuple[int, int]] = []
    found = near_duplicates(parts, examples(250), threshold=0.9, on_progress=lambda *at: told.append(at))
    expected = {
        (f"{i + a:05d}.jpg", f"{j + b:05d}.jpg")
        for left, right, a, b in ((train, validation, 0, 150), (train, test, 0, 210), (validation, test, 150, 210))
        for i, j in by_hand(left, right, mean, 0.9)
    }
    assert {(pair.first, pair.second) for pair in found.worst} == expected
    assert ("00020.jpg", "00153.jpg") in expected
    assert found.pairs == len(expected) == 4
    assert found.images == {"validation": 2, "test": 2}
    similarities = [pair.similarity for pair in found.worst]
    assert similarities == sorted(similarities, reverse=True)
    assert similarities[0] == pytest.approx(1, abs=1e-4)
    pair = next(pair for pair in found.worst if pair.first == "00159.jpg")
    assert (pair.first_part, pair.second, pair.second_part) == ("validation", "00217.jpg", "test")
    assert told[-1][0] == told[-1][1]
    warning = found.warning()
    assert warning is not None
    assert warning.startswith("2 of 60 validation images and 2 of 40 test images are nearly the same as another of ")
    assert "00020.jpg (train) and 0015" in warning
    assert "hardly tells" not in warning


@pytest.mark.parametrize("block", [7, 5000])
def test_one_part_is_compared_with_itself_each_pair_once(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_BLOCK", block)
    some = vectors(120)
    some[100] = some[3]
    some[101] = some[3]
    found = near_duplicates({"all": part(some)}, examples(120), threshold=0.9)
    assert (found.pairs, found.images) == (3, {"all": 3})
    assert {frozenset((pair.first, pair.second)) for pair in found.worst} == {
        frozenset(pair) for pair in itertools.combinations(("00003.jpg", "00100.jpg", "00101.jpg"), 2)
    }


def test_nothing_alike_nothing_said() -> None:
    found = near_duplicates({"train": part(vectors(200, 1)), "validation": part(vectors(50, 2), 200)}, examples(250))
    assert (found.pairs, found.worst, found.warning()) == (0, (), None)
    assert near_duplicates({}, []).pairs == 0


def test_features_that_tell_nothing_apart_are_doubted() -> None:
    """Vectors along one line: a network tuned to few classes."""
    line = np.outer(np.linspace(-1, 1, 200), np.ones(DIM)).astype(np.float32) + 3
    found = near_duplicates({"train": part(line), "validation": part(line[::4] + 0.001, 200)}, examples(250))
    assert found.pairs > 1000
    assert len(found.worst) == 20
    assert "hardly tells these images apart" in str(found.warning())


def test_too_much_work_is_done_on_a_sample_and_said() -> None:
    train = vectors(1000, 1)
    validation = train[:50].copy()
    parts = {"train": part(train), "validation": part(validation, 1000)}
    found = near_duplicates(parts, examples(1050), threshold=0.9, most_products=DIM * 500 * 50)
    assert found.compared["validation"] == 50
    assert found.available == {"train": 1000, "validation": 50}
    assert 400 < found.compared["train"] <= 500
    assert 5 < found.images["validation"] < 50
    assert f"compared were {found.compared['train']} of 1000 train images" in str(found.warning())


def test_memory_stays_the_same_for_any_number_of_images() -> None:
    """Blocks of 2,048: two of them, their product and what is kept of it."""
    features = np.ones((30_000, 1, DIM), np.float32)
    features[:, 0] += np.random.default_rng(1).standard_normal((30_000, DIM), np.float32)
    rows = np.arange(30_000)
    parts = {"train": PartFeatures(features=features, rows=rows, indices=rows)}
    parts["validation"] = PartFeatures(features=features[:6000], rows=rows[:6000], indices=rows[:6000])
    tracemalloc.start()
    found = near_duplicates(parts, examples(30_000), threshold=0.9)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.images == {"validation": 6000}
    assert most < 60e6  # the whole product would be 720 MB


def test_from_cached_features_and_a_split() -> None:
    some = vectors(120)
    some[110] = some[5]
    some[111] = 0  # a bad image's row

    def array(indices: range) -> FeatureArray:
        valid = np.array([index != 111 for index in indices])
        return FeatureArray(features=some[indices][:, None], indices=tuple(indices), valid=valid, bad=[], computed=0)

    features = {"train": array(range(100)), "validation": array(range(100, 120))}
    split = Split(train=range(100), validation=[n for n in range(100, 120) if n != 111])
    found = near_duplicates_of_split(features, split, examples(120))
    assert found is not None
    assert [(pair.first, pair.second) for pair in found.worst] == [("00005.jpg", "00110.jpg")]
    assert near_duplicates_of_split({"train": features["train"]}, split, examples(120)) is None
