"""`data.order`, as a spec says it, to a RowOrder.

Takes a word and the rows' targets. Gives a RowOrder. Next: `finetune.data.queue`, `finetune.training.image_rows`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from finetune.data.order import EpochOrder, RowOrder
from finetune.data.order_balanced import BalancedOrder
from finetune.data.order_weighted import WeightedOrder
from zoo.errors import InvalidArgument

# shuffled: every row once an epoch. balanced: every class equally often. paired: balanced, and two rows of a class side
# by side, for losses that compare images of a class. weighted: between shuffled and balanced, see `class_weights`.
OrderName = Literal["shuffled", "balanced", "paired", "weighted"]
DEFAULT_POWER = 0.5
_CLASSES = ("label", "labels")  # what heads call the classes of their rows: [N], or [N, C] of 0 and 1


class NoClassesToBalance(InvalidArgument):
    """An order by classes, of rows that have none."""


def row_order(
    name: OrderName, arrays: Mapping[str, np.ndarray], *, num_rows: int, seed: int, power: float | None = None
) -> RowOrder:
    """`arrays`: of the TargetTable. `power`: see `class_weights`; None: 0.5. Raises NoClassesToBalance."""
    if name == "shuffled":
        return EpochOrder(num_rows, seed)
    classes = next((arrays[key] for key in _CLASSES if key in arrays), None)
    if classes is None:
        raise NoClassesToBalance(
            f"data.order={name} goes by the classes of the rows, and these have none: {', '.join(sorted(arrays))}",
            hint="--set data.order=shuffled",
        )
    if name == "weighted":
        return WeightedOrder(class_weights(classes, DEFAULT_POWER if power is None else power), seed)
    return BalancedOrder.of_labels(classes, seed, together=2 if name == "paired" else 1)


def class_weights(classes: np.ndarray, power: float) -> np.ndarray:
    """float64 [N]: each row's class' number of rows to the power of -`power`: 0 treats rows alike, 1 classes.

    `classes`: int [N], or [N, C] of 0 and 1; a row of several classes has the weight of its rarest, as in repeat factor
    sampling (Gupta, Dollár & Girshick, "LVIS", 2019, where the power is 0.5), and rows of none are a class.
    """
    if classes.ndim == 1:
        _, class_N, count_C = np.unique(classes, return_inverse=True, return_counts=True)
        return np.asarray(count_C[class_N].astype(np.float64) ** -power, np.float64)
    has_NC = classes > 0
    count_C = has_NC.sum(axis=0)
    rarest_N = np.where(has_NC, count_C, len(classes) + 1).min(axis=1)
    none_N = ~has_NC.any(axis=1)
    rarest_N[none_N] = none_N.sum()
    return np.asarray(rarest_N.astype(np.float64) ** -power, np.float64)
