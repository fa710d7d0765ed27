"""Head kind `multilabel`: any number of an image's classes, none included; without its weights.

Takes lists of labels of a split. Gives the class list and target rows, one an image. Next:
`finetune.models.heads.multilabel_layer`, which is imported only to build (this module needs no TensorFlow).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from finetune.data.source import Example
from finetune.models.heads.dense_arguments import (
    DenseArguments,
    InvalidLabels,
    NoClassNames,
    Positive,
    unknown_classes,
    weights_of_classes,
)
from finetune.models.heads.head import Assets, TargetTable

if TYPE_CHECKING:
    from finetune.models.heads.multilabel_layer import MultilabelLayer

_Threshold = Annotated[float, Field(ge=0, le=1)]


class MultilabelArguments(DenseArguments):
    """`positive_weights`: how much more an image counts that shows a class, by class name, or `balanced` for (images
    without it / images with it) of the training split, at most 100.

    `tune_thresholds`: `f1` finds each class's threshold on the validation split, `none` leaves them at 0.5.
    `thresholds`: one a class, in the classes' order; put in when a version is published, or given.
    """

    num_classes: Annotated[int, Field(ge=1)] | None = None
    positive_weights: Literal["balanced"] | dict[str, Positive] | None = None
    tune_thresholds: Literal["f1", "none"] = "f1"
    thresholds: tuple[_Threshold, ...] | None = None


class MultilabelKind:
    """See `HeadKind`."""

    kind = "multilabel"
    Arguments: type[BaseModel] = MultilabelArguments
    class_axes: Mapping[str, int] = MappingProxyType({"logits/kernel": 1, "logits/bias": 0})

    def learn_assets(self, examples: Sequence[Example], arguments: MultilabelArguments) -> Assets:
        """The classes: every label of the training split in lexicographic order (of code points). Raises InvalidLabels:
        images with single labels, or no label at all."""
        classes = tuple(sorted({name for labels in labels_of(examples) for name in labels}))
        if not classes:
            raise InvalidLabels(
                f"none of the {len(examples)} training examples has a label",
                hint='lists of labels come from jsonl: ("labels": […]), csv: (a labels column), coco: or scenes:',
            )
        if arguments.num_classes not in (None, len(classes)):
            raise InvalidLabels(
                f"num_classes is {arguments.num_classes}, but the training split has {len(classes)} classes",
                hint="leave num_classes out to get one output a class",
            )
        if arguments.thresholds is not None and len(arguments.thresholds) != len(classes):
            raise InvalidLabels(f"{len(arguments.thresholds)} thresholds for {len(classes)} classes")
        if isinstance(arguments.positive_weights, dict):
            weights_of_classes(arguments.positive_weights, classes, what="positive_weights")
        return Assets(files={}, classes=classes)

    def targets(self, examples: Sequence[Example], arguments: MultilabelArguments, assets: Assets) -> TargetTable:
        """One row an image: labels uint8 [C]. Raises InvalidLabels naming unknown labels and files."""
        if assets.classes is None:
            raise NoClassNames("targets of a multi-label head need its class names")
        truth_NC = truth_rows(examples, assets.classes)
        arrays = {"labels": truth_NC}
        if arguments.positive_weights is not None:
            weight_C = _positive_weights(arguments.positive_weights, truth_NC, assets.classes)
            arrays["positive_weight"] = np.broadcast_to(weight_C, truth_NC.shape)
        return TargetTable(image_index=np.arange(len(examples), dtype=np.int32), arrays=arrays)

    def build(self, *, arguments: MultilabelArguments, feature_dim: int, assets: Assets, seed: int) -> MultilabelLayer:
        from finetune.models.heads.multilabel_layer import MultilabelLayer

        if assets.classes is None:
            raise NoClassNames("a multi-label head needs its class names")
        if arguments.thresholds is not None and len(arguments.thresholds) != len(assets.classes):
            raise InvalidLabels(f"{len(arguments.thresholds)} thresholds for {len(assets.classes)} classes")
        return MultilabelLayer(arguments=arguments, classes=assets.classes, feature_dim=feature_dim, seed=seed)

    def resolved(self, arguments: MultilabelArguments, assets: Assets) -> dict[str, Any]:
        known = arguments.model_copy(
            update={"num_classes": len(assets.classes or ()), "dropout": arguments.dropout_shares}
        )
        return known.model_dump(mode="json", exclude_none=True, exclude=arguments.later)


MULTILABEL = MultilabelKind()


def labels_of(examples: Sequence[Example]) -> list[tuple[str, ...]]:
    """The labels of each example. Raises InvalidLabels where examples have a single label instead.

    One exception: a lone class, as of a single folder, is a yes-or-no question that a classifier would refuse.
    """
    single = [example for example in examples if example.label is not None and not example.labels]
    if not single:
        return [example.labels for example in examples]
    names = Counter(str(example.label) for example in single)
    if len(names) == 1 and len(single) == len(examples):
        return [(str(example.label),) for example in examples]
    raise InvalidLabels(
        f"{len(single)} of {len(examples)} examples have a single label, not a list of labels: for example "
        f"{single[0].id} has {single[0].label!r}",
        hint="images that show one class each: --head classifier",
    )


def truth_rows(examples: Sequence[Example], classes: tuple[str, ...]) -> np.ndarray:
    """uint8 `[N, C]`, 1 where an example has the class. Raises InvalidLabels naming unknown labels."""
    position = {name: place for place, name in enumerate(classes)}
    truth_NC = np.zeros((len(examples), len(classes)), np.uint8)
    for row, labels in enumerate(labels_of(examples)):
        strange = [name for name in labels if name not in position]
        if strange:
            raise unknown_classes(strange, examples[row].id, classes, "multi-label head")
        truth_NC[row, [position[name] for name in labels]] = 1
    return truth_NC


def _positive_weights(given: str | dict[str, float], truth_NC: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    if isinstance(given, dict):
        return weights_of_classes(given, classes, what="positive_weights")
    with_C = truth_NC.sum(axis=0, dtype=np.int64)
    return np.clip((len(truth_NC) - with_C) / np.maximum(with_C, 1), 0.01, 100.0).astype(np.float32)
