"""Which classes are taken for which, in bounded size.

Takes predicted and true classes of a whole split. Gives plain numbers. Next: `finetune.models.heads.classifier_layer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

MAX_CLASSES = 32  # a table of more is no longer read, and a manifest holds it for ever
MAX_PAIRS = 20


def confusion(predicted_N: np.ndarray, label_N: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    """`pairs`: the up to 20 most frequent mistakes, {truth, predicted, count}, most frequent first; `matrix` (rows:
    truths, columns: predictions) over `classes`, those that occur, where they are 32 or fewer, else both are null."""
    occurring = np.union1d(predicted_N, label_N).astype(np.int64)
    count = np.zeros((len(occurring), len(occurring)), np.int64)
    np.add.at(count, (np.searchsorted(occurring, label_N), np.searchsorted(occurring, predicted_N)), 1)
    names = [classes[place] for place in occurring]
    wrong = count * (1 - np.eye(len(occurring), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MAX_PAIRS]
    pairs = [
        {"truth": names[truth], "predicted": names[said], "count": int(wrong[truth, said])}
        for truth, said in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[truth, said]
    ]
    small = len(occurring) <= MAX_CLASSES
    return {"classes": names if small else None, "matrix": count.tolist() if small else None, "pairs": pairs}
