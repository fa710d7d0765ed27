"""Shares of every class: who goes where when each class is to be in each part.

Takes classes of examples as numbers. Gives parts. Next: `finetune.data.split_rules`.

An example stands in the stratum of its rarest class. Strata are dealt from the rarest class to the commonest, counting
what the class already has in each part (iterative stratification after Sechidis, Tsoumakas and Vlahavas, "On the
Stratification of Multi-Label Data", 2011, dealing a class at a time). With one class an example that is the ordinary
stratified split. Examples without a class are a stratum of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def stratified_parts(
    *, classes: np.ndarray, ends: np.ndarray, positions: np.ndarray, num_classes: int, shares: Sequence[float]
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """int8 [N] of parts (-1 none), and the pairs (class, part) that lack an example.

    Args:
        classes: of all examples end to end; example i has those before ends[i].
        positions: [N], the order in which a stratum is dealt.
    """
    total = len(ends)
    lengths = np.diff(ends, prepend=0)
    owner = np.repeat(np.arange(total), lengths)  # the example of each entry of `classes`
    counts = np.bincount(classes, minlength=num_classes)
    rank = np.empty(num_classes + 1, np.int64)
    rank[np.lexsort((np.arange(num_classes), counts))] = np.arange(num_classes)
    rank[num_classes] = num_classes  # no class
    by_rank = np.argsort(rank, kind="stable")
    stratum = np.full(total, num_classes, np.int64)
    np.minimum.at(stratum, owner, rank[classes])
    order = np.lexsort((positions, stratum))  # stratum by stratum, each in the order of dealing
    starts = np.searchsorted(stratum[order], np.arange(num_classes + 2))
    several = len(classes) > np.count_nonzero(lengths)
    parts = np.full(total, -1, np.int8)
    has = np.zeros((num_classes, len(shares)), np.int64)
    for place in range(num_classes + 1):
        members = order[starts[place] : starts[place + 1]]
        number = int(by_rank[place])
        if number < num_classes:
            wanted = _counts(int(counts[number]), shares)
            need = _still(wanted, has[number].tolist(), len(members), whole=sum(shares) > 1 - 1e-9)
        else:
            need = _least(len(members), shares)
        dealt = np.repeat(np.arange(len(shares)), need)
        parts[members[: len(dealt)]] = dealt
        if several:
            held = lengths[members[: len(dealt)]]
            firsts = np.repeat(ends[members[: len(dealt)]] - np.cumsum(held), held)
            np.add.at(has, (classes[firsts + np.arange(len(firsts))], np.repeat(dealt, held)), 1)
        elif number < num_classes:
            has[number] += need
    lacking = np.argwhere(has == 0)
    return parts, [(int(number), int(part)) for number, part in lacking]


def _counts(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers ≥ 1 near total × share (largest remainders), with the sum the shares ask for."""
    wanted = max(len(shares), round(total * min(1.0, sum(shares))))
    counts = [max(1, int(total * share)) for share in shares]
    while sum(counts) < wanted:
        most = max(range(len(shares)), key=lambda part: total * shares[part] - counts[part])
        counts[most] += 1
    while sum(counts) > wanted:
        counts[counts.index(max(counts))] -= 1
    return counts


def _least(total: int, shares: Sequence[float]) -> list[int]:
    """As `_counts`, but a part may go without."""
    return _counts(total, shares) if total >= len(shares) else [total, *[0] * (len(shares) - 1)]


def _still(wanted: Sequence[int], has: Sequence[int], left: int, *, whole: bool) -> list[int]:
    """How many of `left` examples each part gets; `whole`: none may stay in no part."""
    need = [max(0, want - have) for want, have in zip(wanted, has, strict=True)]
    while sum(need) > left:  # an earlier stratum gave a part too many; take from who has most
        parts = [part for part in range(len(need)) if need[part]]
        fullest = max(parts, key=lambda part: (has[part] + need[part], -part))
        need[fullest] -= 1
    if whole and sum(need) < left:
        need[0] += left - sum(need)
    return need
