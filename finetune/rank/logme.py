"""LogME: how much evidence features give for labels, without training or holding anything out.

Takes features and truth as NumPy arrays. Gives a number. Next: `finetune.rank.ranking`.

You, Liu, Wang and Long, "LogME: Practical Assessment of Pre-trained Models for Transfer Learning" (2021,
arXiv:2102.11005): each label is a linear function of the features with Gaussian weights (precision α) and Gaussian
noise (precision β); the weights are integrated out, and the logarithm of what remains, the evidence, is maximised over
α and β by MacKay's fixed point (section 4.2, algorithm 1), divided by the number of images, and averaged over labels.
As in the paper features are neither centred nor scaled.
"""

from __future__ import annotations

import math

import numpy as np

_ITERATIONS = 1000
_CHANGE = 1e-6  # relative, of α / β: there the search ends
_RANK = 1e-12  # eigenvalues below this share of the largest are rounding
_LEAST_RESIDUAL = 1e-12  # of the labels' sum of squares: features that fit exactly would let β grow without end
_PRECISIONS = (1e-12, 1e12)  # bounds of α and β: features that tell nothing would let α grow without end


def log_evidence(feature_ND: np.ndarray, truth_NC: np.ndarray) -> float:
    """The mean over columns of max over α, β of log p(column | features, α, β) / N. The higher, the better.

    Columns that are the same for every image are left out; NaN where no other is there.
    """
    truth = np.asarray(truth_NC, np.float64)
    truth = truth[:, truth.min(axis=0) != truth.max(axis=0)]
    if truth.shape[1] == 0:
        return math.nan
    eigen_R, squared_RC = _spectrum(np.asarray(feature_ND, np.float64), truth)
    return float(_evidence(eigen_R, squared_RC, np.square(truth).sum(axis=0), *feature_ND.shape).mean())


def _evidence(eigen_R: np.ndarray, squared_RC: np.ndarray, length_C: np.ndarray, count: int, dim: int) -> np.ndarray:
    """[C]. In the basis of the features' singular vectors everything is a sum over R: eigenvalues σ of FᵀF, and the
    squared labels' coordinates there."""
    outside_C = np.maximum(length_C - squared_RC.sum(axis=0), 0)  # what no weights can explain
    sigma = eigen_R[:, None]
    alpha, beta = np.ones_like(length_C), np.ones_like(length_C)
    for _ in range(_ITERATIONS):
        gamma, weights, residual = _moments(sigma, squared_RC, outside_C, length_C, alpha, beta)
        ratio = alpha / beta
        alpha = np.clip(gamma / np.maximum(weights, np.finfo(float).tiny), *_PRECISIONS)
        beta = np.clip((count - gamma) / residual, *_PRECISIONS)
        if np.all(np.abs(alpha / beta - ratio) <= _CHANGE * ratio):
            break
    _, weights, residual = _moments(sigma, squared_RC, outside_C, length_C, alpha, beta)
    determinant = np.log(alpha + beta * sigma).sum(axis=0) + (dim - len(eigen_R)) * np.log(alpha)
    return np.asarray(
        (
            count * np.log(beta)
            + dim * np.log(alpha)
            - count * math.log(2 * math.pi)
            - beta * residual
            - alpha * weights
            - determinant
        )
        / (2 * count)
    )


def _moments(
    sigma: np.ndarray,
    squared_RC: np.ndarray,
    outside_C: np.ndarray,
    length_C: np.ndarray,
    alpha: np.ndarray,
    beta: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the posterior's mean m, by column: the number of weights that the data decide (γ), ‖m‖², ‖F m − y‖²."""
    precision = alpha + beta * sigma
    gamma = (beta * sigma / precision).sum(axis=0)
    weights = (beta**2 * sigma * squared_RC / precision**2).sum(axis=0)
    residual = (squared_RC * (alpha / precision) ** 2).sum(axis=0) + outside_C
    return gamma, weights, np.maximum(residual, _LEAST_RESIDUAL * length_C)


def _spectrum(feature_ND: np.ndarray, truth_NC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvalues [R] of FᵀF above rounding, and (Uᵀ y)² [R, C] for F = U S Vᵀ."""
    count, dim = feature_ND.shape
    if count <= dim:
        values, vectors = np.linalg.eigh(feature_ND @ feature_ND.T)
        kept = values > _RANK * max(float(values[-1]), np.finfo(float).tiny)
        return values[kept], np.square(vectors[:, kept].T @ truth_NC)
    values, vectors = np.linalg.eigh(feature_ND.T @ feature_ND)
    kept = values > _RANK * max(float(values[-1]), np.finfo(float).tiny)
    onto_RC = vectors[:, kept].T @ (feature_ND.T @ truth_NC)
    return values[kept], np.square(onto_RC) / values[kept][:, None]
