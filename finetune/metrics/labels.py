"""Metrics of multi-label classification, and the thresholds they are best at.

Takes scores and truths of a whole split. Gives plain numbers. Next: `finetune.models.heads.multilabel_layer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

DEFAULT_THRESHOLD = 0.5


def average_precision(score_N: np.ndarray, truth_N: np.ndarray) -> float:
    """Σ (recall_k − recall_{k−1}) · precision_k down the ranking; rows of equal score count as one step, so that the
    order in which they happen to lie has no influence. NaN without a positive."""
    total = int(truth_N.sum())
    if total == 0:
        return float("nan")
    order = np.argsort(-score_N, kind="stable")
    hits_N = np.cumsum(truth_N[order])
    ends = _ends_of_ties(score_N[order])
    hits_K = hits_N[ends]
    return float(np.sum(np.diff(hits_K, prepend=0) / total * hits_K / (ends + 1)))


def best_thresholds(score_NC: np.ndarray, truth_NC: np.ndarray) -> tuple[float, ...]:
    """For each class the threshold of the greatest F1; a score at or above it says yes.

    It lies midway between the scores it parts. Of several as good, the nearest to 0.5, since few examples leave many;
    0.5 for a class without a positive.
    """
    return tuple(_best_threshold(score_NC[:, c], truth_NC[:, c]) for c in range(score_NC.shape[1]))


def _best_threshold(score_N: np.ndarray, truth_N: np.ndarray) -> float:
    total = int(truth_N.sum())
    if total == 0:
        return DEFAULT_THRESHOLD
    order = np.argsort(-score_N, kind="stable")
    sorted_N = score_N[order].astype(np.float64)
    ends = _ends_of_ties(sorted_N)
    f1_K = 2 * np.cumsum(truth_N[order])[ends] / (ends + 1 + total)
    below_K = np.append(sorted_N[ends[:-1] + 1], 0.0)  # the next lower score; below the last there is only 0
    # A threshold anywhere in (below, at] parts alike; the middle generalises best, 0.5 itself where it lies within.
    middle_K = (sorted_N[ends] + below_K) / 2
    inside_K = (below_K < DEFAULT_THRESHOLD) & (sorted_N[ends] >= DEFAULT_THRESHOLD)
    threshold_K = np.where(inside_K, DEFAULT_THRESHOLD, middle_K)
    best = np.flatnonzero(f1_K >= f1_K.max() - 1e-12)
    return float(threshold_K[best[np.argmin(np.abs(threshold_K[best] - DEFAULT_THRESHOLD))]])


def label_metrics(
    score_NC: np.ndarray, truth_NC: np.ndarray, classes: Sequence[str], thresholds: Sequence[float]
) -> dict[str, Any]:
    """Scores N predictions of C independent classes.

    Args:
        score_NC: 0 to 1. truth_NC: 0 or 1. thresholds: C; a score at or above it says yes.
    Returns:
        map, the mean average precision of the classes that occur among the truths; macro_f1, their mean F1; micro_f1,
        the F1 over all decisions at once; exact, the share of images whose labels are all right;
        per_class: name → average_precision (null without a positive), precision, recall, f1, support, threshold.
        All 0 for an empty split or one without a positive.
    """
    said_NC = score_NC >= np.asarray(thresholds, np.float64)
    truth_NC = truth_NC.astype(bool)
    hits_C, said_C, support_C = (x.sum(axis=0) for x in (said_NC & truth_NC, said_NC, truth_NC))
    f1_C = _ratio(2 * hits_C, said_C + support_C)
    ap_C = np.array([average_precision(score_NC[:, c], truth_NC[:, c]) for c in range(len(classes))])
    present_C = support_C > 0
    return {
        "map": float(ap_C[present_C].mean()) if present_C.any() else 0.0,
        "macro_f1": float(f1_C[present_C].mean()) if present_C.any() else 0.0,
        "micro_f1": float(_ratio(2 * hits_C.sum(), said_C.sum() + support_C.sum())),
        "exact": float((said_NC == truth_NC).all(axis=1).mean()) if len(score_NC) else 0.0,
        "per_class": {
            name: {
                "average_precision": float(ap_C[c]) if present_C[c] else None,
                "precision": float(_ratio(hits_C[c], said_C[c])),
                "recall": float(_ratio(hits_C[c], support_C[c])),
                "f1": float(f1_C[c]),
                "support": int(support_C[c]),
                "threshold": float(thresholds[c]),
            }
            for c, name in enumerate(classes)
        },
        "num_examples": len(score_NC),
    }


def _ends_of_ties(falling_N: np.ndarray) -> np.ndarray:
    """The last place of each run of equal values."""
    return np.append(np.flatnonzero(np.diff(falling_N)), len(falling_N) - 1)


def _ratio(part: Any, whole: Any) -> np.ndarray:
    """0 where there is nothing to divide by."""
    return np.divide(part, whole, out=np.zeros(np.shape(whole), np.float64), where=np.asarray(whole) > 0)
