"""Ridge regression in closed form, one column a label: the linear probe for several labels an image, and for words.

Takes features and truth as NumPy arrays. Gives scores. Next: `finetune.rank.probe`.

One decomposition answers every penalty and every column at once, which iterating can't do for hundreds of words. The
penalty is the one with the least squared error when each training image is left out in turn, which the decomposition
gives for nothing (Allen's PRESS; Golub, Heath and Wahba, "Generalized Cross-Validation as a Method for Choosing a Good
Ridge Parameter", Technometrics 21, 1979, equation 1.3). Regression of one-against-rest labels orders images about as
logistic regression does, and average precision looks at the order alone.
"""

from __future__ import annotations

import numpy as np

PENALTIES = tuple(10.0**power for power in range(-6, 2))  # times the number of images
_RANK = 1e-10  # squared singular values below this share of the largest are rounding


def ridge_scores(train_ND: np.ndarray, truth_NC: np.ndarray, test_MD: np.ndarray) -> np.ndarray:
    """[M, C] scores of `test_MD`; features are expected to be centred on the training images."""
    count = len(train_ND)
    left_NR, singular_R, test_MR = _decomposed(train_ND, test_MD)
    mean_C = truth_NC.mean(axis=0)
    target_RC = left_NR.T @ (truth_NC - mean_C)
    errors = []
    for penalty in PENALTIES:
        shrunk_R = singular_R**2 / (singular_R**2 + penalty * count)
        residual_NC = truth_NC - mean_C - left_NR @ (shrunk_R[:, None] * target_RC)
        leverage_N = 1 / count + (left_NR**2) @ shrunk_R
        # A leverage of 1: the row alone decides its own fit, and nothing is known of it without it.
        errors.append(float(np.square(residual_NC / np.maximum(1 - leverage_N, 1e-9)[:, None]).mean()))
    penalty = PENALTIES[int(np.argmin(errors))] * count
    return np.asarray(mean_C + test_MR @ ((singular_R / (singular_R**2 + penalty))[:, None] * target_RC))


def _decomposed(train_ND: np.ndarray, test_MD: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """U [N, R], S [R] of train = U S Vᵀ, and test V [M, R]; by the smaller of the two Gram matrices."""
    count, dim = train_ND.shape
    if count <= dim:
        values, vectors = np.linalg.eigh(train_ND @ train_ND.T)
    else:
        values, vectors = np.linalg.eigh(train_ND.T @ train_ND)
    kept = values > _RANK * max(float(values[-1]), np.finfo(float).tiny)
    singular_R, vectors = np.sqrt(values[kept]), vectors[:, kept]
    if count <= dim:
        return vectors, singular_R, test_MD @ (train_ND.T @ (vectors / singular_R))
    return (train_ND @ vectors) / singular_R, singular_R, test_MD @ vectors
