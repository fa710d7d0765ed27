from __future__ import annotations

import numpy as np
import pytest

from finetune.metrics.calibration import abstention, calibration_error, fit_temperature
from finetune.metrics.confusion import confusion


def drawn(temperature: float, count: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits, and labels drawn from softmax(logits / temperature)."""
    chance = np.random.default_rng(seed)
    logit = chance.standard_normal((count, 5)) * 3
    p = np.exp(logit / temperature)
    p /= p.sum(axis=1, keepdims=True)
    label = (p.cumsum(axis=1) < chance.random((count, 1))).sum(axis=1)
    return logit.astype(np.float32), label


def confidence(logit: np.ndarray, temperature: float) -> np.ndarray:
    p = np.exp(logit / temperature - (logit / temperature).max(axis=1, keepdims=True))
    return np.asarray((p / p.sum(axis=1, keepdims=True)).max(axis=1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_labels_were_drawn_with_is_found(temperature: float) -> None:
    logit, label = drawn(temperature)
    found = fit_temperature(logit, label)
    assert found == pytest.approx(temperature, rel=0.05)
    right = logit.argmax(axis=1) == label
    assert calibration_error(confidence(logit, found), right) < 0.02
    if temperature != 1.0:
        assert calibration_error(confidence(logit, 1.0), right) > 0.05


def test_a_small_split_that_is_all_right_makes_nothing_certain() -> None:
    logit = np.array([[2.0, 0.0]] * 5, np.float32)
    found = fit_temperature(logit, np.zeros(5, int))
    assert 0.3 < found < 1  # without the prior it would be the least allowed
    assert fit_temperature(logit[:0], np.zeros(0, int)) == pytest.approx(1)


def test_fitting_again_gives_the_same_bits() -> None:
    logit, label = drawn(1.7, 300)
    assert fit_temperature(logit, label) == fit_temperature(logit.copy(), label.copy())


def test_the_threshold_lets_through_as_many_as_the_precision_allows() -> None:
    sure = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    right = np.array([True, True, False, True, False])
    found = abstention(sure, right, 0.75)
    assert (found.threshold, found.coverage, found.precision) == (pytest.approx(0.6), 0.8, 0.75)
    assert found.threshold is not None
    assert (sure >= found.threshold).sum() == 4
    assert abstention(sure, right, 1.0).coverage == 0.4
    assert abstention(sure, right, 0.5).threshold == 0.0


def test_a_precision_out_of_reach_gives_no_threshold() -> None:
    assert abstention(np.array([0.9, 0.8]), np.array([False, True]), 0.9).threshold is None
    assert abstention(np.zeros(0), np.zeros(0, bool), 0.9).threshold is None


def test_equal_confidences_stay_together() -> None:
    found = abstention(np.array([0.9, 0.9, 0.9, 0.2]), np.array([True, True, False, True]), 0.9)
    assert found.threshold is None


def test_confusion_counts_truths_in_rows() -> None:
    found = confusion(np.array([0, 1, 1, 3]), np.array([0, 0, 0, 1]), ("a", "b", "c", "d"))
    assert found["classes"] == ["a", "b", "d"]
    assert found["matrix"] == [[1, 2, 0], [0, 0, 1], [0, 0, 0]]
    assert found["pairs"] == [
        {"truth": "a", "predicted": "b", "count": 2},
        {"truth": "b", "predicted": "d", "count": 1},
    ]


def test_confusion_of_many_classes_stays_small() -> None:
    label = np.arange(200)
    found = confusion((label + 1) % 200, label, [str(n) for n in range(200)])
    assert found["matrix"] is None
    assert len(found["pairs"]) == 20
