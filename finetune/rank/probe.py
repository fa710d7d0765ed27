"""Cross-validation of one backbone's features: the linear probe and the nearest neighbours, fold by fold.

Takes features, Targets and folds. Gives FoldScores. Next: `finetune.rank.ranking`.

Every choice (penalty, k) is made inside a fold's training images, never by what it is then asked (nested
cross-validation). Scaling likewise: mean and deviation are those of the training images.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from finetune.rank.logistic import PENALTIES, fit_logistic
from finetune.rank.measures import Estimate
from finetune.rank.neighbours import neighbour_scores
from finetune.rank.ridge import ridge_scores
from finetune.rank.sample import fold_of
from finetune.rank.targets import Targets

# Above this many classes one-against-rest ridge regression stands in for logistic regression, whose time grows with
# them: 2,000 images of 2,048 features in 200 classes take minutes.
MOST_LOGISTIC = 200
_HELD_OUT = 4  # one in so many training images chooses the penalty
_DEAD = 1e-6  # of the largest deviation: features that hardly move are noise blown up


@dataclass(frozen=True, kw_only=True)
class FoldScores:
    probe: Estimate
    neighbours: Estimate
    k: tuple[int, ...]  # of each fold


def probe_kind(targets: Targets) -> str:
    return "logistic" if targets.by == "label" and len(targets.names) <= MOST_LOGISTIC else "ridge"


def cross_validated(
    feature_ND: np.ndarray,
    targets: Targets,
    fold_N: np.ndarray,
    *,
    seed: int,
    on_fold: Callable[[int, int], None] = lambda done, total: None,
) -> FoldScores:
    """Both scores of float `feature_ND`, row n of which is in fold `fold_N[n]`. `on_fold`: folds done, of how many."""
    folds = int(fold_N.max()) + 1
    linear, near, numbers = [], [], []
    for fold in range(folds):
        on_fold(fold, folds)
        train, test = np.flatnonzero(fold_N != fold), np.flatnonzero(fold_N == fold)
        train_ND, test_MD = scaled(feature_ND[train], feature_ND[test])
        part = targets.rows(train)
        if probe_kind(targets) == "logistic":
            score_MC = logistic_scores(train_ND, part, test_MD, seed=seed)
        else:
            score_MC = ridge_scores(train_ND, part.truth.astype(np.float64), test_MD)
        linear.append(targets.measure(score_MC, test))
        voted_MC, k = neighbour_scores(
            feature_ND[train], part.truth, feature_ND[test], functools.partial(part.measure, rows=np.arange(len(train)))
        )
        near.append(targets.measure(voted_MC, test))
        numbers.append(k)
    on_fold(folds, folds)
    return FoldScores(probe=Estimate(folds=tuple(linear)), neighbours=Estimate(folds=tuple(near)), k=tuple(numbers))


def logistic_scores(train_ND: np.ndarray, part: Targets, test_MD: np.ndarray, *, seed: int) -> np.ndarray:
    """Log probabilities [M, C] with the penalty of the least cross-entropy on a quarter of the training images, fitted
    on all of them. Features are expected to be `scaled`."""
    held = fold_of(part.strata, _HELD_OUT, seed=seed) == 0
    best, start, least = PENALTIES[0], None, np.inf
    weight = None
    for penalty in PENALTIES:  # strong to weak: each begins where the one before ended
        fit = fit_logistic(train_ND[~held], part.truth[~held], penalty, start=weight, iterations=100, tolerance=1e-4)
        weight = fit.weight
        loss = -float(fit.log_probability(train_ND[held])[part.truth[held]].mean())
        if loss < least:
            best, start, least = penalty, weight, loss
    return fit_logistic(train_ND, part.truth, best, start=start, iterations=200, tolerance=1e-4).log_probability(
        test_MD
    )


def scaled(train_ND: np.ndarray, test_MD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Float64; each feature with the training images' mean 0 and the same deviation, such that a row's mean squared
    length is 1; features that don't vary become 0."""
    train, test = np.asarray(train_ND, np.float64), np.asarray(test_MD, np.float64)
    mean_D, deviation_D = train.mean(axis=0), train.std(axis=0)
    alive_D = deviation_D > _DEAD * max(float(deviation_D.max()), np.finfo(float).tiny)
    scale_D = np.where(alive_D, 1 / np.where(alive_D, deviation_D, 1) / np.sqrt(max(1, alive_D.sum())), 0)
    return (train - mean_D) * scale_D, (test - mean_D) * scale_D
