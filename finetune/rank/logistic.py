"""Multinomial logistic regression by L-BFGS: the linear probe for one class an image.

Takes features and classes as NumPy arrays. Gives scores. Next: `finetune.rank.probe`.

The product's classifier head without hidden layers is this very model, so the probe measures what that head can reach.
Kornblith, Shlens and Le, "Do Better ImageNet Models Transfer Better?" (2019, arXiv:1805.08974), section 3, rank
networks the same way: L-BFGS, an L2 penalty chosen on held-out images, warm starts along the penalties. L-BFGS after
Nocedal and Wright, Numerical Optimization (2006), algorithms 7.4 and 7.5, with a backtracking line search.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # of features with a mean squared length of 1; strong to weak
_MEMORY = 10
_SUFFICIENT = 1e-4  # Armijo's constant
_HALVINGS = 30


@dataclass(frozen=True, kw_only=True)
class Fit:
    """`weight` [D + 1, C], the last row the bias. `gradient`: its largest absolute value where the search ended."""

    weight: np.ndarray
    loss: float
    gradient: float
    iterations: int

    def log_probability(self, feature_ND: np.ndarray) -> np.ndarray:
        return _log_softmax(feature_ND @ self.weight[:-1] + self.weight[-1])


def fit_logistic(
    feature_ND: np.ndarray,
    truth_NC: np.ndarray,
    penalty: float,
    *,
    start: np.ndarray | None = None,
    iterations: int = 200,
    tolerance: float = 1e-5,
) -> Fit:
    """Minimises mean cross-entropy + penalty / 2 · ‖weights‖² (the bias is free), until no part of the gradient is
    above `tolerance`, the line search finds no lower point, or `iterations` are done.
    """
    problem = _Problem(feature_ND, truth_NC, penalty)
    shape = (feature_ND.shape[1] + 1, truth_NC.shape[1])
    weight = np.zeros(shape) if start is None else start.copy()
    loss, gradient = problem.at(weight)
    steps: deque[tuple[np.ndarray, np.ndarray, float]] = deque(maxlen=_MEMORY)
    done = 0
    while done < iterations and np.abs(gradient).max() > tolerance:
        direction = -_inverse_hessian_times(gradient, steps)
        slope = float(np.vdot(gradient, direction))
        length = 1.0 if steps else min(1.0, 1.0 / float(np.abs(gradient).sum()))
        for _ in range(_HALVINGS):
            new_weight = weight + length * direction
            new_loss, new_gradient = problem.at(new_weight)
            if new_loss <= loss + _SUFFICIENT * length * slope:
                break
            length /= 2
        else:
            break  # as low as the floats can tell
        moved, turned = new_weight - weight, new_gradient - gradient
        curvature = float(np.vdot(moved, turned))
        if curvature > 1e-12 * float(np.vdot(turned, turned)):
            steps.append((moved, turned, 1 / curvature))
        weight, loss, gradient = new_weight, new_loss, new_gradient
        done += 1
    return Fit(weight=weight, loss=loss, gradient=float(np.abs(gradient).max()), iterations=done)


class _Problem:
    def __init__(self, feature_ND: np.ndarray, truth_NC: np.ndarray, penalty: float) -> None:
        self._feature_ND = np.ascontiguousarray(feature_ND, np.float64)
        self._truth_NC = truth_NC.astype(np.float64)
        self._penalty = penalty

    def at(self, weight: np.ndarray) -> tuple[float, np.ndarray]:
        """The objective and its gradient, of weight's shape."""
        count = len(self._truth_NC)
        log_NC = _log_softmax(self._feature_ND @ weight[:-1] + weight[-1])
        loss = -float(np.vdot(self._truth_NC, log_NC)) / count
        error_NC = (np.exp(log_NC) - self._truth_NC) / count
        gradient = np.empty_like(weight)
        gradient[:-1] = self._feature_ND.T @ error_NC + self._penalty * weight[:-1]
        gradient[-1] = error_NC.sum(axis=0)
        return loss + self._penalty / 2 * float(np.vdot(weight[:-1], weight[:-1])), gradient


def _inverse_hessian_times(gradient: np.ndarray, steps: deque[tuple[np.ndarray, np.ndarray, float]]) -> np.ndarray:
    """Algorithm 7.4, the two-loop recursion, begun with the scaling (7.20)."""
    result = gradient.copy()
    alphas = []
    for moved, turned, inverse in reversed(steps):
        alpha = inverse * float(np.vdot(moved, result))
        alphas.append(alpha)
        result -= alpha * turned
    if steps:
        _, turned, inverse = steps[-1]
        result /= inverse * float(np.vdot(turned, turned))
    for (moved, turned, inverse), alpha in zip(steps, reversed(alphas), strict=True):
        result += (alpha - inverse * float(np.vdot(turned, result))) * moved
    return result


def _log_softmax(logit_NC: np.ndarray) -> np.ndarray:
    shifted = logit_NC - logit_NC.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
