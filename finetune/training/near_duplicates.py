"""A warning where images of validation or test are nearly those of training. No TensorFlow.

Takes the features that were just computed. Gives what prepared.json keeps, and a line in the job's log.
Next: `finetune.training.prepare`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from finetune.data.duplicates import near_duplicates_of_split
from finetune.data.features import FeatureArray
from finetune.data.source import ExampleSource
from finetune.data.splits import Split

_LONG = 20  # blocks of products: a second or so


def reported_near_duplicates(
    features: Mapping[str, FeatureArray],
    split: Split,
    source: ExampleSource,
    on_progress: Callable[[str, int, int], None],
) -> dict[str, Any] | None:
    """The numbers; None where there are no features of two parts, as when the backbone is trained too."""

    def tell(done: int, total: int) -> None:
        if total > _LONG:
            on_progress("near duplicates", done, total)

    found = near_duplicates_of_split(features, split, source.examples, on_progress=tell)
    if found is None:
        return None
    if warning := found.warning():
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    return found.to_json()
