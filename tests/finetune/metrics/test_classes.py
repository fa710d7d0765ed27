from __future__ import annotations

import numpy as np
import pytest

from finetune.metrics.classes import classification_metrics


def test_worked_by_hand() -> None:
    probability = np.array([[0.7, 0.2, 0.1], [0.4, 0.5, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    metrics = classification_metrics(probability, np.array([0, 0, 1, 1]), ("a", "b", "c"))
    assert metrics["accuracy"] == 0.5
    assert metrics["per_class"] == {
        "a": {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2},
        "b": {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2},
        "c": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0},
    }
    assert metrics["macro_f1"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    # Four bins with one example each: |1 − .7|, |0 − .5|, |1 − .8|, |0 − .4|.
    assert metrics["ece"] == pytest.approx((0.3 + 0.5 + 0.2 + 0.4) / 4)
    assert metrics["num_examples"] == 4


def test_top_5_counts_the_classes_that_are_likelier() -> None:
    probability = np.array([[0.3, 0.25, 0.2, 0.12, 0.08, 0.05]] * 2)
    metrics = classification_metrics(probability, np.array([4, 5]), list("abcdef"))
    assert metrics["top_5"] == 0.5


def test_perfect_calibration_is_zero() -> None:
    probability = np.array([[0.75, 0.25]] * 4)
    assert classification_metrics(probability, np.array([0, 0, 0, 1]), "ab")["ece"] == pytest.approx(0)


def test_certainty_falls_into_the_last_bin() -> None:
    metrics = classification_metrics(np.array([[1.0, 0.0]]), np.array([0]), "ab")
    assert metrics["ece"] == 0
    assert metrics["accuracy"] == 1


def test_an_empty_split() -> None:
    assert classification_metrics(np.zeros((0, 2)), np.zeros(0, int), "ab")["num_examples"] == 0
