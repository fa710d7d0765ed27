"""What is likely wrong with the data of a run, said before step 1, each with its remedy.

Takes the split, its features and the backbone. Gives DataFindings: sentences, and what prepared.json keeps.
Next: `finetune.training.prepare`; the chief says them and puts them in the job's progress.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.data.duplicates import near_duplicates_of_split
from finetune.data.features import FeatureArray
from finetune.data.image_header import UnreadableImage
from finetune.data.label_suspects import label_suspects
from finetune.data.preprocess import load_pixels
from finetune.data.source import Example, ExampleSource
from finetune.data.splits import Split
from finetune.models.backbone import Backbone
from finetune.models.input_range import input_range

FEW = 5  # training images of a class, of which what is learnt and measured is chance
_SHARE = 0.02  # of images with a striking label from which on a run speaks of it: clean data have 1 %
_LONG = 20  # blocks of products: a second or so
_SEEN = 32  # images that show the range of the values
_NAMED = 8

OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class DataFindings:
    """`near_duplicates`, `label_suspects`: the numbers; None where they weren't looked for."""

    warnings: tuple[str, ...]
    near_duplicates: dict[str, Any] | None
    label_suspects: dict[str, Any] | None


def data_findings(
    *,
    features: Mapping[str, FeatureArray],
    split: Split,
    source: ExampleSource,
    backbone: Backbone,
    max_pixels: int,
    on_progress: OnProgress,
) -> DataFindings:
    """`features` by part, empty where the backbone is trained too: what needs them isn't looked for then. `split`
    without the bad records."""

    def tell(done: int, total: int) -> None:
        if total > _LONG:
            on_progress("near duplicates", done, total)

    train = [source.examples[index] for index in split.train]
    near = near_duplicates_of_split(features, split, source.examples, on_progress=tell)
    suspects = None
    if "train" in features and all(example.label is not None for example in train):
        array = features["train"]
        feature_ND = np.asarray(array.features[array.rows_of(list(split.train)), 0], np.float32)
        suspects = label_suspects(
            feature_ND, train, on_progress=lambda done, total: on_progress("label suspects", done, total)
        )
    warnings = (
        few_images(train),
        near.warning() if near is not None else None,
        suspects.warning() if suspects is not None and suspects.share >= _SHARE else None,
        _range_warning(backbone, source, split.train, max_pixels),
    )
    return DataFindings(
        warnings=tuple(text for text in warnings if text),
        near_duplicates=None if near is None else near.to_json(),
        label_suspects=None if suspects is None else suspects.to_json(),
    )


def few_images(examples: Sequence[Example]) -> str | None:
    """On classes with fewer than five training images; None where there are none."""
    counted: Counter[str] = Counter()
    for example in examples:
        counted.update(example.labels if example.label is None else (example.label,))
    few = sorted((count, name) for name, count in counted.items() if count < FEW)
    if not few:
        return None
    named = ", ".join(f"{name!r:.80} ({count})" for count, name in few[:_NAMED])
    many = len(few) > 1
    return (
        f"{len(few)} class{'es have' if many else ' has'} fewer than {FEW} training images: {named}"
        f"{', …' if len(few) > _NAMED else ''}; what is learnt and measured of {'them' if many else 'it'} is chance. "
        "Add images or merge classes; --set head.arguments.class_weights=balanced gives rare classes their weight"
    )


def _range_warning(backbone: Backbone, source: ExampleSource, indices: Sequence[int], max_pixels: int) -> str | None:
    pixels: list[np.ndarray] = []
    for place in np.unique(np.linspace(0, len(indices) - 1, min(_SEEN, len(indices))).astype(int)).tolist():
        try:
            data = source.read(indices[place])
            pixels.append(load_pixels(data, backbone.input_spec, max_pixels=max_pixels))
        except UnreadableImage:
            continue  # a bad record: whoever trains on it counts it
    found = input_range(backbone, np.stack(pixels)) if pixels else None
    return None if found is None else found.warning(backbone.input_spec)
