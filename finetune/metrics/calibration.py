"""Calibration of a classifier: its temperature, its calibration error, and below which confidence to abstain.

Takes logits or confidences of a validation split. Gives plain numbers.
Next: `finetune.models.heads.classifier_layer`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

ECE_BINS = 15  # equal widths of confidence, as in Guo et al. 2017
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
_MOST_ROWS = 20_000  # more say nothing new of one number
_CHUNK = 4096


@dataclass(frozen=True, kw_only=True)
class Abstention:
    """`threshold`: predictions of less confidence are better not relied on; None where no threshold reaches the
    precision. `coverage`: the share of predictions at or above it; `precision`: the share of those that are right."""

    threshold: float | None
    coverage: float
    precision: float


def calibration_error(confidence_N: np.ndarray, right_N: np.ndarray) -> float:
    """Expected calibration error with 15 bins (Guo et al. 2017, arXiv:1706.04599): Σ over bins of (share of examples)
    · |accuracy − mean confidence|; a bin holds its upper edge. 0 without examples."""
    bin_N = np.clip(np.ceil(confidence_N * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
    error = 0.0
    for place in np.unique(bin_N):
        inside = bin_N == place
        error += inside.mean() * abs(right_N[inside].mean() - confidence_N[inside].mean())
    return float(error)


def fit_temperature(logit_NC: np.ndarray, label_N: np.ndarray) -> float:
    """The T by which logits are divided before the softmax (Guo et al. 2017), from 0.05 to 20, six digits.

    Minimises Σ cross-entropy + (ln T)² / 2. The second term is a prior that a few dozen examples outweigh; without it a
    validation split of which everything is right, as small ones often are, would drive T to 0 and each answer to
    certainty. 1 without examples.
    """
    if len(label_N) > _MOST_ROWS:
        rows = np.linspace(0, len(label_N) - 1, _MOST_ROWS).astype(np.int64)
        logit_NC, label_N = logit_NC[rows], label_N[rows]

    def cost(log_temperature: float) -> float:
        return _cross_entropy(logit_NC, label_N, math.exp(-log_temperature)) + log_temperature**2 / 2

    low, high = math.log(MIN_TEMPERATURE), math.log(MAX_TEMPERATURE)
    grid = np.linspace(low, high, 25)
    best = int(np.argmin([cost(float(place)) for place in grid]))
    found = _golden_section(cost, float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)]))
    return float(f"{math.exp(found):.6g}")


def abstention(confidence_N: np.ndarray, right_N: np.ndarray, precision: float) -> Abstention:
    """The lowest threshold at or above which at least the share `precision` of predictions is right; 0 where that is so
    of all. Equal confidences stay together."""
    if not len(confidence_N):
        return Abstention(threshold=None, coverage=0.0, precision=0.0)
    order = np.argsort(-confidence_N, kind="stable")
    falling_N = confidence_N[order].astype(np.float64)
    ends = np.append(np.flatnonzero(np.diff(falling_N)), len(falling_N) - 1)
    precision_K = np.cumsum(right_N[order])[ends] / (ends + 1)
    enough = np.flatnonzero(precision_K >= precision)
    if not len(enough):
        return Abstention(threshold=None, coverage=0.0, precision=0.0)
    last = int(enough[-1])
    if last == len(ends) - 1:
        threshold = 0.0
    else:  # rounded down, but never to a confidence that is to stay below
        threshold = max(math.floor(falling_N[ends[last]] * 1e6) / 1e6, math.nextafter(falling_N[ends[last] + 1], 1))
    return Abstention(
        threshold=float(threshold),
        coverage=float((ends[last] + 1) / len(confidence_N)),
        precision=float(precision_K[last]),
    )


def _cross_entropy(logit_NC: np.ndarray, label_N: np.ndarray, scale: float) -> float:
    total = 0.0
    for start in range(0, len(label_N), _CHUNK):
        scaled_BC = logit_NC[start : start + _CHUNK].astype(np.float64) * scale
        scaled_BC -= scaled_BC.max(axis=1, keepdims=True)
        own_B = scaled_BC[np.arange(len(scaled_BC)), label_N[start : start + _CHUNK]]
        total += float(np.sum(np.log(np.exp(scaled_BC).sum(axis=1)) - own_B))
    return total


def _golden_section(cost: Callable[[float], float], low: float, high: float) -> float:
    """The place of the least cost between, to 1e-7 (Kiefer 1953)."""
    ratio = (math.sqrt(5) - 1) / 2
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    cost_left, cost_right = cost(left), cost(right)
    while high - low > 1e-7:
        if cost_left <= cost_right:
            high, right, cost_right = right, left, cost_left
            left = high - ratio * (high - low)
            cost_left = cost(left)
        else:
            low, left, cost_left = left, right, cost_right
            right = low + ratio * (high - low)
            cost_right = cost(right)
    return (low + high) / 2
