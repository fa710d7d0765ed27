"""Head kind `classifier`: dense layers over the feature vector, softmax over exclusive classes; without its weights.

Takes labels of a split. Gives the class list and target rows, one an image. Next:
`finetune.models.heads.classifier_layer`, which is imported only to build (this module needs no TensorFlow).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from finetune.data.source import Example
from finetune.metrics.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE
from finetune.models.heads.dense_arguments import (
    DenseArguments,
    InvalidLabels,
    NoClassNames,
    Positive,
    label_rows,
    require_labels,
    weights_of_classes,
)
from finetune.models.heads.head import Assets, TargetTable

if TYPE_CHECKING:
    from finetune.models.heads.classifier_layer import ClassifierLayer


class ClassifierArguments(DenseArguments):
    """What decides a classifier.

    `num_classes` counts the logits; None means one for each class in the training split.
    `class_weights`: how much each class counts in training, by name (1 for those not named), or `balanced` for
    N / (C · N_c) of the training split. `focal_gamma`: γ of the focal loss (Lin et al. 2017, arXiv:1708.02002), 0 for
    plain cross-entropy. `label_smoothing`: Szegedy et al. 2016, arXiv:1512.00567.
    `calibrate`: after training, fit `temperature` on the validation split (Guo et al. 2017), and `abstain_below`, the
    confidence from which on at least `abstain_precision` of the validation split is right. What is given isn't fitted.
    """

    num_classes: Annotated[int, Field(ge=2)] | None = None
    activation: Literal["softmax"] = "softmax"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    class_weights: Literal["balanced"] | dict[str, Positive] | None = None
    focal_gamma: Annotated[float, Field(ge=0, le=10)] = 0.0
    calibrate: bool = True
    abstain_precision: Annotated[float, Field(gt=0, le=1)] = 0.95
    temperature: Annotated[float, Field(ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE)] | None = None
    abstain_below: Annotated[float, Field(ge=0, le=1)] | None = None


# Left out of a manifest where they are the defaults: so are manifests from before there were these, and equal heads
# stay equal.
_UNSAID = (
    "hidden_activation",
    "feature_dropout",
    "class_weights",
    "focal_gamma",
    "calibrate",
    "abstain_precision",
    "temperature",
    "abstain_below",
)


class ClassifierKind:
    """See `HeadKind`."""

    kind = "classifier"
    Arguments: type[BaseModel] = ClassifierArguments
    class_axes: Mapping[str, int] = MappingProxyType({"logits/kernel": 1, "logits/bias": 0})

    def learn_assets(self, examples: Sequence[Example], arguments: ClassifierArguments) -> Assets:
        """The classes: labels of the training split in lexicographic order (of code points). Raises InvalidLabels."""
        require_labels(examples)
        classes = tuple(sorted({str(example.label) for example in examples}))
        if len(classes) < 2:
            found = f"only {classes[0]!r}" if classes else "none, for there are no examples"
            raise InvalidLabels(f"a classifier needs two classes or more; the training split has {found}")
        if arguments.num_classes not in (None, len(classes)):
            raise InvalidLabels(
                f"num_classes is {arguments.num_classes}, but the training split has {len(classes)} classes: "
                f"{', '.join(classes[:10])}{', …' if len(classes) > 10 else ''}",
                hint="leave num_classes out to get one output a class",
            )
        if isinstance(arguments.class_weights, dict):
            weights_of_classes(arguments.class_weights, classes, what="class_weights")
        return Assets(files={}, classes=classes)

    def targets(self, examples: Sequence[Example], arguments: ClassifierArguments, assets: Assets) -> TargetTable:
        """One row an image: label int32, a position in the classes. Raises InvalidLabels naming labels and files."""
        if assets.classes is None:
            raise NoClassNames("targets of a classifier need its class names")
        rows = np.arange(len(examples), dtype=np.int32)
        label_N = label_rows(examples, assets.classes)
        arrays = {"label": label_N}
        if arguments.class_weights is not None:
            arrays["class_weight"] = _class_weights(arguments.class_weights, label_N, assets.classes)[label_N]
        return TargetTable(image_index=rows, arrays=arrays)

    def build(
        self,
        *,
        arguments: ClassifierArguments,
        feature_dim: int,
        assets: Assets,
        seed: int,
    ) -> ClassifierLayer:
        """A fresh layer. An imported classifier may have more outputs than class names: they come first."""
        from finetune.models.heads.classifier_layer import ClassifierLayer

        named = len(assets.classes) if assets.classes is not None else None
        outputs = arguments.num_classes or (None if named is None else named + assets.class_offset)
        if outputs is None:
            raise InvalidLabels("a classifier needs num_classes or class names; there are neither")
        offset = 0 if named is None else outputs - named
        if offset not in (0, 1):
            raise InvalidLabels(f"a classifier with {outputs} outputs cannot have {named} class names")
        return ClassifierLayer(
            arguments=arguments,
            num_classes=outputs,
            feature_dim=feature_dim,
            classes=assets.classes,
            class_offset=offset,
            seed=seed,
        )

    def resolved(self, arguments: ClassifierArguments, assets: Assets) -> dict[str, Any]:
        outputs = arguments.num_classes or len(assets.classes or ()) + assets.class_offset
        known = arguments.model_copy(update={"num_classes": outputs, "dropout": arguments.dropout_shares})
        plain = ClassifierArguments()
        unsaid = {name for name in _UNSAID if getattr(known, name) == getattr(plain, name)}
        return known.model_dump(mode="json", exclude=unsaid)


CLASSIFIER = ClassifierKind()


def _class_weights(given: str | dict[str, float], label_N: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """float32 `[C]`, of a class that doesn't occur as of one that occurs once."""
    if isinstance(given, dict):
        return weights_of_classes(given, classes, what="class_weights")
    count_C = np.maximum(np.bincount(label_N, minlength=len(classes)), 1)
    return (len(label_N) / (len(classes) * count_C)).astype(np.float32)
