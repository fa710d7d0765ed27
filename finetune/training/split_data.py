"""SplitData: one split, ready for the head. No TensorFlow.

Takes examples and their features. Gives both with the target rows that belong to them.
Next: `finetune.training.trainer` (the training split), `finetune.training.evaluate` (the others).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from finetune.data.source import Example
from finetune.models.heads.head import TargetTable
from zoo.errors import Internal


@dataclass(frozen=True, kw_only=True)
class SplitData:
    """`features_NVD`: V views of an image a row, memory-mapped; it may have rows that no example uses. None where the
    backbone is trained too, so that features change with every step.

    `row_of[i]` is the row of `examples[i]`; `table.image_index` holds rows too. Without features a row is a position in
    `examples`. `source_index[i]` is the place of `examples[i]` in their source.
    """

    name: str
    examples: tuple[Example, ...]
    features_NVD: np.ndarray | None
    row_of: np.ndarray  # int64 [len(examples)]
    table: TargetTable
    source_index: np.ndarray  # int64 [len(examples)]
    example_of: np.ndarray  # int32 [rows of the table]: positions in `examples`

    @classmethod
    def join(
        cls,
        *,
        name: str,
        examples: tuple[Example, ...],
        source_index: Sequence[int],
        features_NVD: np.ndarray | None = None,
        row_of: np.ndarray | None = None,
        table: TargetTable,
    ) -> SplitData:
        """`table` as a head made it, with positions in `examples`."""
        row_of = np.arange(len(examples)) if row_of is None else row_of
        return cls(
            name=name,
            examples=examples,
            features_NVD=features_NVD,
            row_of=row_of,
            table=TargetTable(image_index=row_of[table.image_index].astype(np.int32), arrays=table.arrays),
            source_index=np.asarray(source_index, np.int64),
            example_of=table.image_index,
        )

    def without_features(self) -> SplitData:
        """The same split for a backbone that is trained: a row is a position in `examples`."""
        table = TargetTable(image_index=self.example_of, arrays=self.table.arrays)
        return replace(self, features_NVD=None, row_of=np.arange(len(self.examples)), table=table)

    def with_features(self, features_ND: np.ndarray) -> SplitData:
        """The same split with a feature vector for each of its examples, in their order."""
        return replace(self.without_features(), features_NVD=features_ND[:, None, :])

    def subset(self, places: np.ndarray) -> SplitData:
        """The examples at these positions with their target rows; the features stay where they are."""
        row_of = self.row_of[places]
        kept = np.isin(self.table.image_index, row_of)
        return replace(
            self,
            examples=tuple(self.examples[place] for place in places),
            row_of=row_of,
            table=TargetTable(
                image_index=self.table.image_index[kept],
                arrays={name: array[kept] for name, array in self.table.arrays.items()},
            ),
            source_index=self.source_index[places],
        )

    def first_view(self) -> np.ndarray:
        """float32 [len(examples), D]: of each image itself, no augmentation."""
        if self.features_NVD is None:
            raise Internal(f"the {self.name} split has no features yet")
        return np.asarray(self.features_NVD[self.row_of, 0, :], np.float32)
