"""k nearest neighbours by cosine: what features tell without any training.

Takes features and truth as NumPy arrays. Gives scores. Next: `finetune.rank.probe`.

Neighbours vote with exp(cosine / 0.07), after Wu, Xiong, Yu and Lin, "Unsupervised Feature Learning via Non-Parametric
Instance Discrimination" (2018, arXiv:1805.01978), section 3.4. k is the one that does best when each training image is
left out in turn.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from finetune.rank.measures import best_of

NUMBERS = (1, 3, 5, 10, 20)  # k
_TEMPERATURE = 0.07
_BLOCK = 1024  # rows compared with all others at once


def neighbour_scores(
    train_ND: np.ndarray,
    truth_NC: np.ndarray,
    test_MD: np.ndarray,
    measure: Callable[[np.ndarray], float],
) -> tuple[np.ndarray, int]:
    """[M, C] scores in [0, 1] of `test_MD`, and the k. `measure` judges [N, C] scores of the training images."""
    train, test = _of_length_1(train_ND), _of_length_1(test_MD)
    numbers = [k for k in NUMBERS if k < len(train)] or [1]
    left_out = _votes(train, train, truth_NC, numbers, without_self=True) if len(train) > 1 else []
    k = numbers[best_of([measure(score_NC) for score_NC in left_out])] if left_out else 1
    return _votes(test, train, truth_NC, [k], without_self=False)[0], k


def _votes(
    query_MD: np.ndarray, train_ND: np.ndarray, truth_NC: np.ndarray, numbers: list[int], *, without_self: bool
) -> list[np.ndarray]:
    """For each k of `numbers`, ascending, the scores [M, C]."""
    truth = truth_NC.astype(np.float64)
    scores = [np.empty((len(query_MD), truth.shape[1])) for _ in numbers]
    for start in range(0, len(query_MD), _BLOCK):
        cosine_BN = query_MD[start : start + _BLOCK] @ train_ND.T
        here = np.arange(len(cosine_BN))
        if without_self:
            cosine_BN[here, start + here] = -np.inf
        nearest_BK = np.argsort(-cosine_BN, axis=1, kind="stable")[:, : numbers[-1]]
        weight_BK = np.exp((np.take_along_axis(cosine_BN, nearest_BK, 1) - 1) / _TEMPERATURE)
        sum_BC, total_B = np.zeros((len(here), truth.shape[1])), np.zeros(len(here))
        for place in range(nearest_BK.shape[1]):
            sum_BC += weight_BK[:, place, None] * truth[nearest_BK[:, place]]
            total_B += weight_BK[:, place]
            if place + 1 in numbers:
                scores[numbers.index(place + 1)][start : start + _BLOCK] = sum_BC / total_B[:, None]
    return scores


def _of_length_1(feature_ND: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(feature_ND, axis=1, keepdims=True)
    return np.asarray(feature_ND / np.where(lengths > 0, lengths, 1))
