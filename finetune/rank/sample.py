"""Which images are looked at, and which fold each is in: decided once, for every backbone alike.

Takes strata (`Targets.strata`). Gives rows and folds. Next: `finetune.rank.ranking`, `finetune.rank.probe`.

Both are functions of the strata and the seed alone, by the keyed permutation of `finetune.data.order`.
"""

from __future__ import annotations

import numpy as np

from finetune.data.order import EpochOrder


def stratified_sample(strata: np.ndarray, count: int, *, floor: int, seed: int) -> np.ndarray:
    """int64, ascending: `count` of the rows, each stratum with its share, but with `floor` rows where it has them.

    The floors give way, largest strata first, where `count` can't meet them all.
    """
    if count >= len(strata):
        return np.arange(len(strata))
    there = np.bincount(strata)
    exact = there * (count / len(strata))
    wanted = np.maximum(np.floor(exact).astype(np.int64), np.minimum(floor, there))
    by_remainder = np.argsort(-(exact - np.floor(exact)), kind="stable")
    while wanted.sum() < count:
        for place in by_remainder[wanted[by_remainder] < there[by_remainder]][: count - wanted.sum()]:
            wanted[place] += 1
    while wanted.sum() > count:  # the floors took it from whom has most
        wanted[int(np.argmax(wanted))] -= 1
    order = _dealt(strata, seed)
    firsts = np.cumsum(there) - there
    place_in_stratum = np.arange(len(strata)) - np.repeat(firsts, there)
    return np.sort(order[place_in_stratum < np.repeat(wanted, there)])


def fold_of(strata: np.ndarray, folds: int, *, seed: int) -> np.ndarray:
    """int64 [N] from 0 to folds − 1: dealt stratum by stratum in turn: no two folds differ by more than one row.

    A stratum with as many rows as folds or more is in every fold; one with two or more is in two folds at least.
    """
    result = np.empty(len(strata), np.int64)
    result[_dealt(strata, seed)] = np.arange(len(strata)) % folds
    return result


def _dealt(strata: np.ndarray, seed: int) -> np.ndarray:
    """The rows stratum by stratum, in each by chance."""
    chance = EpochOrder(len(strata), seed).indices(0, 0, len(strata))
    return np.lexsort((chance, strata))
