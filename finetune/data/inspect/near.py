"""What a backbone's features say of DATA: near duplicates, across a split or among all images; labels that are likely
wrong.

Takes an ExampleSource and a Backbone. Gives NearDuplicates and LabelSuspects. Next: `finetune.data.inspect.inspection`
holds them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from finetune.data.duplicates import THRESHOLD, NearDuplicates, PartFeatures, near_duplicates
from finetune.data.features import FeatureBackbone, FeatureCache
from finetune.data.inspect.inspection import Inspection
from finetune.data.label_suspects import LabelSuspects, label_suspects
from finetune.data.source import ExampleSource
from finetune.data.splits import PARTS, Split, split_examples


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


def suspects_in_source(
    source: ExampleSource,
    backbone: FeatureBackbone,
    cache: FeatureCache,
    readable: np.ndarray,
    *,
    seed: int = 1,
    max_pixels: int = 50_000_000,
    on_progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> LabelSuspects | None:
    """Of the `readable` images that have a label; None where nothing can be asked (`label_suspects`)."""
    features = cache.open_or_fill(
        backbone=backbone,
        source=source,
        indices=[index for index in readable.tolist() if source.examples[index].label is not None],
        max_pixels=max_pixels,
        on_progress=lambda done, total: on_progress("features", done, total),
    )
    asked = [index for index, fine in zip(features.indices, features.valid, strict=True) if fine]
    return label_suspects(
        np.asarray(features.features[features.rows_of(asked), 0], np.float32),
        [source.examples[index] for index in asked],
        seed=seed,
        on_progress=lambda done, total: on_progress("asking for labels", done, total),
    )


class FeatureLook:
    """An Inspection, completed by what the features of `backbone` say."""

    def __init__(
        self,
        source: ExampleSource,
        found: Inspection,
        backbone: FeatureBackbone,
        cache: FeatureCache,
        *,
        max_pixels: int,
        on_progress: Callable[[str, int, int], None],
    ) -> None:
        self._source, self._found = source, found
        self._backbone, self._cache = backbone, cache
        self._max_pixels, self._on_progress = max_pixels, on_progress

    def near(self, rule: str | None, seed: int, threshold: float | None) -> Inspection:
        """`rule`: of the split whose parts are compared; None: all images with each other."""
        source = self._source
        split = split_examples(source.examples, rule, seed=seed, read=source.read) if rule else None
        near = near_in_source(
            source,
            self._backbone,
            self._cache,
            self._found.images.readable,
            split=split,
            threshold=THRESHOLD if threshold is None else threshold,
            max_pixels=self._max_pixels,
            on_progress=self._on_progress,
        )
        return replace(self._found, near=near)

    def suspects(self, found: Inspection, seed: int) -> Inspection:
        """`found` with them. Data without labels have none."""
        suspects = suspects_in_source(
            self._source,
            self._backbone,
            self._cache,
            self._found.images.readable,
            seed=seed,
            max_pixels=self._max_pixels,
            on_progress=self._on_progress,
        )
        return replace(found, suspects=suspects)
