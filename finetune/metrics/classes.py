"""Metrics of single-label classification.

Takes probabilities and true classes of a whole split. Gives plain numbers. Next: `finetune.training.evaluator`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from finetune.metrics.calibration import calibration_error


def classification_metrics(probability_NC: np.ndarray, label_N: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """Scores N predictions over C classes.

    Args:
        probability_NC: rows sum to 1. label_N: true class, 0 … C−1. classes: C names.
    Returns:
        accuracy and top_5 in [0, 1] (with fewer than 6 classes top_5 is 1: that is what it means);
        macro_f1, the mean F1 of the classes that occur among the truths;
        ece, the expected calibration error with 15 bins (Guo et al. 2017, arXiv:1706.04599);
        per_class: name → precision, recall, f1, support, for classes that occur among truths or predictions.
        All 0 for an empty split, whose num_examples says so.
    """
    count = len(label_N)
    if count == 0:
        return {"accuracy": 0.0, "top_5": 0.0, "macro_f1": 0.0, "ece": 0.0, "per_class": {}, "num_examples": 0}
    predicted_N = probability_NC.argmax(axis=1)
    right_N = predicted_N == label_N
    # A class counts as among the first five when fewer than five others are strictly likelier.
    own_N = probability_NC[np.arange(count), label_N]
    top_N = (probability_NC > own_N[:, None]).sum(axis=1) < 5
    per_class = _per_class(predicted_N, label_N, classes)
    present = [scores["f1"] for scores in per_class.values() if scores["support"]]
    return {
        "accuracy": float(right_N.mean()),
        "top_5": float(top_N.mean()),
        "macro_f1": float(np.mean(present)),
        "ece": calibration_error(probability_NC.max(axis=1), right_N),
        "per_class": per_class,
        "num_examples": count,
    }


def _per_class(predicted_N: np.ndarray, label_N: np.ndarray, classes: Sequence[str]) -> dict[str, dict[str, Any]]:
    scores: dict[str, dict[str, Any]] = {}
    for place in np.union1d(predicted_N, label_N).tolist():
        hits = int(((predicted_N == place) & (label_N == place)).sum())
        named, support = int((predicted_N == place).sum()), int((label_N == place).sum())
        scores[classes[place]] = {
            "precision": hits / named if named else 0.0,
            "recall": hits / support if support else 0.0,
            "f1": 2 * hits / (named + support),
            "support": support,
        }
    return scores
