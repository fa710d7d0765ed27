"""Near duplicates of DATA by a backbone's features, for the parts of a split or among all images.

Takes an ExampleSource and a Backbone. Gives NearDuplicates. Next: `finetune.data.inspect.inspection` holds them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from finetune.data.duplicates import THRESHOLD, NearDuplicates, PartFeatures, near_duplicates
from finetune.data.features import FeatureBackbone, FeatureCache
from finetune.data.source import ExampleSource
from finetune.data.splits import PARTS, Split


def near_in_source(
    source: ExampleSource,
    backbone: FeatureBackbone,
    cache: FeatureCache,
    readable: np.ndarray,
    *,
    split: Split | None,
    threshold: float = THRESHOLD,
    max_pixels: int = 50_000_000,
    on_progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> NearDuplicates:
    """Computes what features the cache lacks. `readable`: indices of the images to take; without a `split` all of them
    are compared with each other."""
    wanted = set(readable.tolist())
    chosen = {part: [index for index in getattr(split, part) if index in wanted] for part in PARTS} if split else {}
    features = cache.open_or_fill(
        backbone=backbone,
        source=source,
        indices=sorted({index for part in chosen.values() for index in part}) if split else readable.tolist(),
        max_pixels=max_pixels,
        on_progress=lambda done, total: on_progress("features", done, total),
    )
    valid = {index for index, fine in zip(features.indices, features.valid, strict=True) if fine}
    parts = {part: [index for index in members if index in valid] for part, members in chosen.items()}
    parts = parts or {"all": sorted(valid)}
    return near_duplicates(
        {name: PartFeatures.of(features, members) for name, members in parts.items()},
        source.examples,
        threshold=threshold,
        on_progress=lambda done, total: on_progress("comparing", done, total),
    )
