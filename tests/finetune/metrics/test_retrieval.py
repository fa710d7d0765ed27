from __future__ import annotations

import numpy as np
import pytest

from finetune.metrics import retrieval
from finetune.metrics.retrieval import retrieval_metrics


def at(*degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def test_worked_by_hand() -> None:
    # a: 0°, 20°; b: 8°, 30°; lone: 90°. Nearest of 0 is b, of 20 is b (30), of 8 is a, of 30 is a.
    metrics = retrieval_metrics(at(0, 20, 8, 30, 90), ["a", "a", "b", "b", "lone"])
    assert metrics["recall_at_1"] == 0
    assert metrics["recall_at_5"] == 1
    assert (metrics["lone_examples"], metrics["num_examples"]) == (1, 5)
    apart = retrieval_metrics(at(0, 1, 90, 91), ["a", "a", "b", "b"])
    assert apart["recall_at_1"] == apart["recall_at_10"] == 1


def test_neighbours_vote_by_their_nearness() -> None:
    # Among the five nearest of each image, its own class has two and the other three, but farther ones.
    metrics = retrieval_metrics(at(0, 2, 4, 180, 182, 184), ["a", "a", "a", "b", "b", "b"])
    assert metrics["knn_accuracy"] == 1


def test_an_image_is_not_its_own_neighbour() -> None:
    assert retrieval_metrics(at(0, 90, 1, 91), ["a", "a", "b", "b"])["recall_at_1"] == 0


def test_against_counting_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = np.random.default_rng(0)
    unit = chance.standard_normal((60, 4)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    labels = [str(n) for n in chance.integers(0, 8, 60)]
    monkeypatch.setattr(retrieval, "_BLOCK", 7)
    metrics = retrieval_metrics(unit, labels)
    for k in (1, 5, 10):
        found = 0
        for row in range(60):
            others = sorted((other for other in range(60) if other != row), key=lambda o: -float(unit[row] @ unit[o]))
            found += any(labels[other] == labels[row] for other in others[:k])
        assert metrics[f"recall_at_{k}"] == pytest.approx(found / 60)


@pytest.mark.parametrize("labels", [[], ["a"], ["a", "b"]])
def test_nobody_to_ask(labels: list[str]) -> None:
    metrics = retrieval_metrics(at(*range(len(labels))).reshape(len(labels), 2), labels)
    assert (metrics["recall_at_1"], metrics["knn_accuracy"], metrics["lone_examples"]) == (0, 0, len(labels))
