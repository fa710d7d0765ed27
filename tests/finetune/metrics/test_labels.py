from __future__ import annotations

import numpy as np
import pytest

from finetune.metrics.labels import average_precision, best_thresholds, label_metrics


def test_average_precision_worked_by_hand() -> None:
    # Ranking: yes, no, yes, no → (1/1 + 2/3) / 2.
    assert average_precision(np.array([0.9, 0.8, 0.7, 0.1]), np.array([1, 0, 1, 0])) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(np.array([0.1, 0.9]), np.array([0, 1])) == 1
    assert np.isnan(average_precision(np.array([0.1, 0.9]), np.array([0, 0])))


def test_equal_scores_count_as_one_step_whatever_their_order() -> None:
    score = np.array([0.5, 0.5, 0.5, 0.5])
    for truth in ([1, 0, 0, 0], [0, 0, 0, 1]):
        assert average_precision(score, np.array(truth)) == pytest.approx(0.25)


def test_average_precision_of_a_ranking_by_counting_down() -> None:
    chance = np.random.default_rng(0)
    score, truth = chance.permutation(200) / 200, chance.integers(0, 2, 200)
    ranked = truth[np.argsort(-score)]
    direct = np.mean([ranked[: k + 1].mean() for k in range(200) if ranked[k]])
    assert average_precision(score, truth) == pytest.approx(direct)


def test_thresholds_part_where_f1_is_greatest() -> None:
    score = np.array([[0.30, 0.9, 0.2], [0.25, 0.6, 0.3], [0.05, 0.2, 0.9], [0.04, 0.1, 0.8]])
    truth = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0]])
    # Midway between .25 and .05; 0.5 where it parts as well; 0.5 without a positive.
    assert best_thresholds(score, truth) == (pytest.approx(0.15), 0.5, 0.5)


def test_thresholds_are_the_best_of_all() -> None:
    chance = np.random.default_rng(1)
    score, truth = chance.random((60, 4)), chance.integers(0, 2, (60, 4))
    found = best_thresholds(score, truth)

    def f1(c: int, threshold: float) -> float:
        said = score[:, c] >= threshold
        return float(2 * (said & (truth[:, c] == 1)).sum() / (said.sum() + truth[:, c].sum()))

    for c in range(4):
        assert f1(c, found[c]) == pytest.approx(max(f1(c, t) for t in score[:, c]))


def test_metrics_worked_by_hand() -> None:
    score = np.array([[0.9, 0.6], [0.4, 0.7], [0.2, 0.1]])
    truth = np.array([[1, 0], [1, 1], [0, 0]])
    metrics = label_metrics(score, truth, ("a", "b"), (0.5, 0.5))
    assert metrics["per_class"]["a"] == {
        "average_precision": 1.0,
        "precision": 1.0,
        "recall": 0.5,
        "f1": pytest.approx(2 / 3),
        "support": 2,
        "threshold": 0.5,
    }
    assert metrics["map"] == 1.0
    assert metrics["macro_f1"] == pytest.approx(2 / 3)  # b: precision 1/2, recall 1
    assert metrics["micro_f1"] == pytest.approx(4 / 6)  # 2 hits; 3 said, 3 true
    assert metrics["exact"] == pytest.approx(1 / 3)


def test_classes_without_a_positive_and_empty_splits() -> None:
    metrics = label_metrics(np.array([[0.9, 0.1]]), np.array([[1, 0]]), ("a", "b"), (0.5, 0.5))
    assert metrics["per_class"]["b"]["average_precision"] is None
    assert metrics["map"] == metrics["macro_f1"] == 1.0
    empty = label_metrics(np.zeros((0, 2)), np.zeros((0, 2)), ("a", "b"), (0.5, 0.5))
    assert (empty["map"], empty["micro_f1"], empty["num_examples"]) == (0, 0, 0)
