"""Pictures of what a model says: sample images with predictions, the confusion matrix, precision-recall curves.

Takes the validation split at a Checkpoint. Gives TensorBoard's images `sample`, `attention` and `confusion`, curves
`precision_recall/CLASS`. Next: somebody's eyes.

The head decides how a prediction looks: by `shown` (finetune.models.heads.head), or by `sample_texts` where to say
something of every image would take long; and by `class_scores` whether there are classes to draw curves of.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from finetune.attention_strip import stacked, strip_of
from finetune.contact_sheet import SheetRow, picture_of
from finetune.data.source import Example, ExampleSource
from finetune.models.heads.head import HeadLayer, ShowsPredictions
from finetune.training.confusion_picture import confusion_picture
from finetune.training.split_data import SplitData
from finetune.training.summaries import Summaries
from zoo.errors import ZooError
from zoo.input_spec import InputSpec

SAMPLE = 8  # images
EXPLAINED = 4  # of them, whose words' attention is drawn
MAX_CURVES = 20  # classes; more can't be told apart on a page


@runtime_checkable
class ScoresClasses(Protocol):
    """A HeadLayer that says yes or no to classes, more or less surely."""

    def class_scores(
        self, features: np.ndarray, examples: Sequence[Example]
    ) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
        """Features [N, D], one row an example → names of C classes, truth bool [N, C], score [N, C]."""


@runtime_checkable
class SaysOfSample(Protocol):
    """A HeadLayer that says something of an image in many words, which takes time."""

    def sample_texts(self, features: np.ndarray) -> list[str]:
        """One a row of features [N, D]."""


@runtime_checkable
class ExplainsWords(Protocol):
    """A HeadLayer that can tell what it looked at; `places` is None where it looks at nothing in particular."""

    places: int | None

    def explain(self, features: np.ndarray) -> list[Any]:
        """An Explanation (finetune.models.heads.captioner_speech) a row of features."""


class Pictures:
    """Of one split, whose first images are the sample. Images are read once."""

    def __init__(
        self, head: HeadLayer, source: ExampleSource, summaries: Summaries, *, input_spec: InputSpec | None = None
    ) -> None:
        """`input_spec`: how the network sees images, for attention to be drawn on; None draws none."""
        self._head = head
        self._input_spec = input_spec
        self._source = source
        self._summaries = summaries
        self._images: list[bytes] = []

    def write(self, step: int, split: SplitData, metrics: Mapping[str, Any]) -> None:
        """`metrics`: of the same weights. What can't be drawn is said on stderr: the evaluation counts, not this."""
        try:
            self._sample(step, split)
        except ZooError as error:
            print(f"warning: no picture of the sample: {error.message}", file=sys.stderr, flush=True)
        confusion = metrics.get("confusion") or {}
        if confusion.get("matrix"):
            pixels = confusion_picture(confusion["matrix"], confusion["classes"])
            self._summaries.image(step, "confusion", pixels)
        if isinstance(self._head, ScoresClasses):
            classes, truth_NC, score_NC = self._head.class_scores(split.first_view(), split.examples)
            for place, name in list(enumerate(classes))[:MAX_CURVES]:
                if truth_NC[:, place].any():
                    tag = f"precision_recall/{name}"
                    self._summaries.precision_recall(step, tag, truth_NC[:, place], score_NC[:, place])

    def _sample(self, step: int, split: SplitData) -> None:
        count = min(SAMPLE, len(split.examples))
        said = _said(self._head, split.first_view()[:count], split.examples[:count])
        if not said:
            return
        if not self._images:
            self._images = [self._source.read(int(place)) for place in split.source_index[:count]]
        rows = [
            SheetRow(name=example.id, image=image, truth=[truth], caption=text)
            for example, image, (text, truth) in zip(split.examples, self._images, said, strict=False)
        ]
        self._summaries.image(step, "sample", picture_of(rows, title=f"{split.name}, step {step}"))
        spec = self._input_spec
        if spec is not None and isinstance(self._head, ExplainsWords) and self._head.places is not None:
            explained = self._head.explain(split.first_view()[: min(count, EXPLAINED)])
            strips = [strip_of(image, one, spec) for image, one in zip(self._images, explained, strict=False)]
            self._summaries.image(step, "attention", stacked(strips))


def _said(head: HeadLayer, features: np.ndarray, examples: Sequence[Example]) -> list[tuple[str, str]]:
    """(what the head says, the truth) of each example; nothing where the head has no words."""
    if isinstance(head, ShowsPredictions):
        return [(each.said, each.truth) for each in head.shown(features, examples)]
    if isinstance(head, SaysOfSample):
        texts = head.sample_texts(features)
        return [(text, next(iter(example.captions), "")) for text, example in zip(texts, examples, strict=True)]
    return []
