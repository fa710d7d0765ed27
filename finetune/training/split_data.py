"""SplitData: one split, ready for the head. No TensorFlow.

Takes examples and their features. Gives both with the target rows that belong to them.
Next: `finetune.training.trainer` (the training split), `finetune.training.evaluate` (the others).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from finetune.data.source import Example
from finetune.models.heads.head import TargetTable


@dataclass(frozen=True, kw_only=True)
class SplitData:
    """`features_NVD`: V views of an image a row, memory-mapped; it may have rows that no example uses.

    `row_of[i]` is the row of `examples[i]`; `table.image_index` holds rows too.
    """

    name: str
    examples: tuple[Example, ...]
    features_NVD: np.ndarray
    row_of: np.ndarray  # int64 [len(examples)]
    table: TargetTable

    @classmethod
    def join(
        cls,
        *,
        name: str,
        examples: tuple[Example, ...],
        features_NVD: np.ndarray,
        row_of: np.ndarray,
        table: TargetTable,
    ) -> SplitData:
        """`table` as a head made it, with positions in `examples`."""
        rows = TargetTable(image_index=row_of[table.image_index].astype(np.int32), arrays=table.arrays)
        return cls(name=name, examples=examples, features_NVD=features_NVD, row_of=row_of, table=rows)

    def first_view(self) -> np.ndarray:
        """float32 [len(examples), D]: of each image itself, no augmentation."""
        return np.asarray(self.features_NVD[self.row_of, 0, :])
