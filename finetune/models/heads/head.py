"""The Head seam: what a task adds to a backbone. One file a head, one line in `HEADS` (finetune.models.heads).

Takes a backbone's outputs and an example's truth. Gives losses and metrics. Next: `finetune.training.trainer`.

A head has two halves. `HeadKind` is plain Python without TensorFlow state: it reads arguments, learns its assets from
the training split and turns examples into target rows. `build` makes the other half, a Keras layer whose variables are
the head component. TensorFlow is imported only by modules that build.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from pydantic import BaseModel

from finetune.data.source import Example

if TYPE_CHECKING:
    from finetune.spec import JobSpec


@dataclass(frozen=True, kw_only=True)
class TargetTable:
    """Target rows of a split. Row r belongs to image `image_index[r]` (a position in the split's list of examples).

    A classifier has one row an image, a captioner one a caption. Every array has N rows; the head pads.
    """

    image_index: np.ndarray  # int32 [N]
    arrays: Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Assets:
    """What a head learns from the training split before step 1, and carries for ever."""

    files: Mapping[str, bytes]  # e.g. {"vocabulary.json": ...}; stored as the version's assets
    classes: tuple[str, ...] | None = None
    class_offset: int = 0  # outputs before the first class, e.g. 1 where a background class comes first
    vocabulary_size: int | None = None
    tokenizer: str | None = None
    initial: Mapping[str, bytes] = field(default_factory=dict)  # what fresh weights come from; kept, not published


@dataclass(frozen=True, kw_only=True)
class LossTerms:
    """Sums, so that any grouping of examples into batches and replicas gives the same means: loss = sum / weight."""

    loss_sum: Any  # tf scalar float32
    weight_sum: Any  # tf scalar float32
    metrics: Mapping[str, tuple[Any, Any]]  # name → (sum, weight)

    def __add__(self, other: LossTerms) -> LossTerms:
        return LossTerms(
            loss_sum=self.loss_sum + other.loss_sum,
            weight_sum=self.weight_sum + other.weight_sum,
            metrics={
                name: (total + other.metrics[name][0], weight + other.metrics[name][1])
                for name, (total, weight) in self.metrics.items()
            },
        )


class HeadLayer(Protocol):
    """A `keras.Layer`. Its variables' paths below the layer are the tensor names of the head component."""

    variables: Sequence[Any]
    trainable_variables: Sequence[Any]

    def loss(self, features: Mapping[str, Any], targets: Mapping[str, Any], *, training: bool) -> LossTerms:
        """`features`: {"feature_vector": [B, D]}, of a head that reads the map too its rows [B, X]
        (finetune.models.feature_row), or that and "feature_map" [B, H, W, C]; `targets`: a batch of the table's arrays
        and `weight` [B] (0 for the padding rows of a last batch)."""

    def evaluate(self, features: np.ndarray, examples: Sequence[Example]) -> dict[str, Any]:
        """Metrics of predictions for a whole split, beyond the loss: features [N, D], one row an example.

        Two keys are no metrics: `warnings`, sentences, and of a head that captions `captions`, one text an example.
        """


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What a head says of one image, for people: `goodness` orders images from worst to best predicted."""

    said: str
    truth: str
    goodness: float


@runtime_checkable
class FollowsSteps(Protocol):
    """A HeadLayer whose loss depends on how far training is."""

    def follow_steps(self, global_step: Any) -> None:
        """`global_step`: a tf.Variable, read in each training loss from now on."""


@runtime_checkable
class LearnsFromExamples(Protocol):
    """A HeadLayer whose training loss compares with more of the training split than a batch holds."""

    def learn_from(self, examples: Sequence[Example]) -> None:
        """The training split's examples; a target array may point into them."""


@runtime_checkable
class FittedHead(Protocol):
    """A HeadLayer with numbers that are fitted to its predictions once its weights are what they are: a temperature,
    thresholds. It is asked where the validation predictions are, after each Checkpoint; the best Checkpoint's numbers
    are published among the head's arguments."""

    def fit_after(self, features: np.ndarray, examples: Sequence[Example]) -> dict[str, Any]:
        """Features [N, D] of the validation split, one row an example. Returns arguments (JSON values) that the kind's
        `Arguments` take, and uses them itself from now on. Depends on nothing that was fitted before."""


@runtime_checkable
class ShowsPredictions(Protocol):
    """A HeadLayer whose worst and best predictions are worth a contact sheet."""

    def shown(self, features: np.ndarray, examples: Sequence[Example]) -> list[Shown]:
        """One an example."""


@runtime_checkable
class WarnsOfPlan(Protocol):
    """A HeadKind that knows plans which waste a run."""

    def plan_warnings(self, examples: Sequence[Example], arguments: Any, spec: JobSpec) -> list[str]:
        """Sentences on the training split and the spec, said before step 1."""


class HeadKind(Protocol):
    """The entry of a head in `HEADS`."""

    kind: str
    Arguments: type[BaseModel]  # with `extra="forbid"`; defaults are the recipe of the kind

    def learn_assets(self, examples: Sequence[Example], arguments: Any) -> Assets:
        """From the training split only."""

    def targets(self, examples: Sequence[Example], arguments: Any, assets: Assets) -> TargetTable: ...

    def build(self, *, arguments: Any, feature_dim: int, assets: Assets, seed: int) -> HeadLayer: ...

    def resolved(self, arguments: Any, assets: Assets) -> dict[str, Any]:
        """The arguments to store in the manifest: `build` of them needs no training data."""
