"""Metrics of embeddings: whether what lies nearest is of the same class.

Takes unit vectors and labels of a whole split. Gives plain numbers. Next: `finetune.models.heads.embedding_layer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

RECALL_AT = (1, 5, 10)
NEIGHBOURS = 5  # that vote in knn_accuracy
MAX_QUERIES = 10_000  # of more, evenly spaced ones ask; all are found
_BLOCK = 1024


def retrieval_metrics(unit_ND: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """Each image asks for its nearest others by cosine, itself left out.

    Args:
        unit_ND: rows of length 1. labels: N class names.
    Returns:
        recall_at_1, _5 and _10, the share of queries with one of their class among so many nearest (Jégou et al. 2011,
        as metric learning uses it; Musgrave et al. 2020); knn_accuracy, the share whose 5 nearest, weighted by their
        cosine, vote for the query's class. Images alone in their class can't be answered and don't ask; their number is
        lone_examples. All 0 where nobody can ask.
    """
    names, label_N = np.unique(np.asarray(labels, dtype=np.str_), return_inverse=True)
    count_C = np.bincount(label_N, minlength=len(names))
    asking = np.flatnonzero(count_C[label_N] > 1)
    lone = len(labels) - len(asking)
    if len(asking) > MAX_QUERIES:
        asking = asking[np.linspace(0, len(asking) - 1, MAX_QUERIES).astype(np.int64)]
    hits = dict.fromkeys(RECALL_AT, 0)
    voted = 0
    most = min(max(*RECALL_AT, NEIGHBOURS), len(labels) - 1)
    for start in range(0, len(asking), _BLOCK):
        query_Q = asking[start : start + _BLOCK]
        near_QK, cosine_QK = _nearest(unit_ND, query_Q, most)
        same_QK = label_N[near_QK] == label_N[query_Q][:, None]
        for k in RECALL_AT:
            hits[k] += int(same_QK[:, :k].any(axis=1).sum())
        voted += int((_votes(label_N[near_QK[:, :NEIGHBOURS]], cosine_QK[:, :NEIGHBOURS]) == label_N[query_Q]).sum())
    asked = max(len(asking), 1)
    return {
        **{f"recall_at_{k}": found / asked for k, found in hits.items()},
        "knn_accuracy": voted / asked,
        "lone_examples": lone,
        "num_examples": len(labels),
    }


def _nearest(unit_ND: np.ndarray, query_Q: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """The `most` nearest others of each query, nearest first (of equals the earlier), and their cosines."""
    cosine_QN = unit_ND[query_Q] @ unit_ND.T
    cosine_QN[np.arange(len(query_Q)), query_Q] = -np.inf
    near_QK = np.sort(np.argpartition(-cosine_QN, most - 1, axis=1)[:, :most], axis=1)
    cosine_QK = np.take_along_axis(cosine_QN, near_QK, axis=1)
    order_QK = np.argsort(-cosine_QK, axis=1, kind="stable")
    return np.take_along_axis(near_QK, order_QK, axis=1), np.take_along_axis(cosine_QK, order_QK, axis=1)


def _votes(label_QK: np.ndarray, cosine_QK: np.ndarray) -> np.ndarray:
    """The label of the greatest sum of (1 + cosine); of equals the one whose nearest is nearest."""
    sum_QK = ((label_QK[:, :, None] == label_QK[:, None, :]) * (1 + cosine_QK)[:, None, :]).sum(axis=2)
    return np.asarray(label_QK[np.arange(len(label_QK)), (np.round(sum_QK, 6)).argmax(axis=1)])
