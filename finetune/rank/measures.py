"""Measures of scores against truth: accuracy, mean average precision, and what folds say of their own spread.

Takes NumPy arrays. Gives plain numbers. Next: `finetune.rank.targets`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A measure by fold: the folds' mean, and its standard error, sd / √folds.

    The folds share training images, so the true error is larger than the standard error says, and no unbiased
    estimate of it exists (Bengio and Grandvalet, "No Unbiased Estimator of the Variance of K-Fold Cross-Validation",
    JMLR 5, 2004).
    """

    folds: tuple[float, ...]

    @property
    def mean(self) -> float:
        return math.fsum(self.folds) / len(self.folds)

    @property
    def standard_error(self) -> float:
        mean, count = self.mean, len(self.folds)
        return math.sqrt(math.fsum((fold - mean) ** 2 for fold in self.folds) / (count - 1) / count)

    def minus(self, other: Estimate) -> Estimate:
        """Fold by fold: both were asked about the same images, so that what makes a fold hard cancels out."""
        return Estimate(folds=tuple(a - b for a, b in zip(self.folds, other.folds, strict=True)))


def corrected_error(difference: Estimate) -> float:
    """The standard error of a difference between two learners by k folds, for their shared training images.

    √((1/k + test/train) · variance), with test/train = 1/(k − 1): Nadeau and Bengio, "Inference for the Generalization
    Error", Machine Learning 52, 2003.
    """
    count = len(difference.folds)
    variance = difference.standard_error**2 * count
    return math.sqrt((1 / count + 1 / (count - 1)) * variance)


def accuracy(score_NC: np.ndarray, truth_NC: np.ndarray) -> float:
    """The share of rows whose highest score (the first of equal ones) is in the true column."""
    return float(truth_NC[np.arange(len(truth_NC)), score_NC.argmax(axis=1)].mean())


def mean_average_precision(score_NC: np.ndarray, truth_NC: np.ndarray) -> float:
    """The mean over columns with a true row of Σ (Rₖ − Rₖ₋₁) Pₖ over distinct scores k; NaN where there is none.

    Precision isn't interpolated, and rows of equal score come in together, as in scikit-learn's
    `average_precision_score`: an order that the scores don't give earns nothing.
    """
    columns = truth_NC.any(axis=0)
    if not columns.any():
        return math.nan
    score, truth = score_NC[:, columns], truth_NC[:, columns]
    order = np.argsort(-score, axis=0, kind="stable")
    score, truth = np.take_along_axis(score, order, 0), np.take_along_axis(truth, order, 0)
    count = len(score)
    ends = np.full(score.shape, count - 1)
    ends[:-1] = np.where(score[:-1] != score[1:], np.arange(count - 1)[:, None], count - 1)
    ends = np.minimum.accumulate(ends[::-1], axis=0)[::-1]  # the last row of each row's group of equal scores
    found = np.cumsum(truth, axis=0)
    precision = np.take_along_axis(found, ends, 0) / (ends + 1)
    return float(((precision * truth).sum(axis=0) / found[-1]).mean())


def best_of(values: Sequence[float]) -> int:
    """The place of the largest value, the first of equal ones; NaN never wins over a number."""
    return int(np.argmax([-math.inf if math.isnan(value) else value for value in values]))
