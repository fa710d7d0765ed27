"""Head kind `classifier`: dense layers over the feature vector, softmax over exclusive classes; without its weights.

Takes labels of a split. Gives the class list and target rows, one an image. Next:
`finetune.models.heads.classifier_layer`, which is imported only to build (this module needs no TensorFlow).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from finetune.data.source import Example
from finetune.models.heads.head import Assets, TargetTable
from zoo.errors import FailedPrecondition, InvalidArgument

if TYPE_CHECKING:
    from finetune.models.heads.classifier_layer import ClassifierLayer


class InvalidLabels(InvalidArgument):
    """Labels that a classifier cannot be trained on or scored with."""


class NoClassNames(FailedPrecondition):
    """A classifier whose version doesn't say what its outputs mean."""


class ClassifierArguments(BaseModel):
    """`hidden`: units of the layers between feature and logits, all with `hidden_activation`; `dropout`: the share
    dropped after each of them.

    `num_classes` counts the logits; None means one for each class in the training split.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_classes: Annotated[int, Field(ge=2)] | None = None
    hidden: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = ()
    hidden_activation: Literal["relu", "hard_swish"] = "relu"
    dropout: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = ()
    activation: Literal["softmax"] = "softmax"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _one_dropout_a_layer(self) -> ClassifierArguments:
        if self.dropout and len(self.dropout) != len(self.hidden):
            raise ValueError(f"{len(self.dropout)} dropout shares for {len(self.hidden)} hidden layers")
        return self


class ClassifierKind:
    """See `HeadKind`."""

    kind = "classifier"
    Arguments: type[BaseModel] = ClassifierArguments

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
        return Assets(files={}, classes=classes)

    def targets(self, examples: Sequence[Example], arguments: ClassifierArguments, assets: Assets) -> TargetTable:
        """One row an image: label int32, a position in the classes. Raises InvalidLabels naming labels and files."""
        if assets.classes is None:
            raise NoClassNames("targets of a classifier need its class names")
        rows = np.arange(len(examples), dtype=np.int32)
        return TargetTable(image_index=rows, arrays={"label": label_rows(examples, assets.classes)})

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
        outputs = arguments.num_classes or named
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
        outputs = arguments.num_classes or len(assets.classes or ())
        shares = arguments.dropout or (0.0,) * len(arguments.hidden)
        known = arguments.model_copy(update={"num_classes": outputs, "dropout": shares})
        # Left out where it is relu: so are manifests from before there was another, and equal heads stay equal.
        unsaid = {"hidden_activation"} if arguments.hidden_activation == "relu" else set()
        return known.model_dump(mode="json", exclude=unsaid)


CLASSIFIER = ClassifierKind()


def require_labels(examples: Sequence[Example]) -> None:
    """Raises InvalidLabels naming examples without a label."""
    bare = [example.id for example in examples if example.label is None]
    if bare:
        some = ", ".join(bare[:5]) + (", …" if len(bare) > 5 else "")
        raise InvalidLabels(
            f"{len(bare)} of {len(examples)} examples have no label: {some}",
            hint="a classifier learns from a folder per class: --data folder:DIR",
        )


def label_rows(examples: Sequence[Example], classes: tuple[str, ...]) -> np.ndarray:
    """int32 `[N]`: each label's position in `classes`, found by name. Raises InvalidLabels naming unknown labels."""
    require_labels(examples)
    position = {name: place for place, name in enumerate(classes)}
    strange = sorted({str(example.label) for example in examples} - set(position))
    if strange:
        where = next(example.id for example in examples if example.label == strange[0])
        raise InvalidLabels(
            f"{len(strange)} labels are no class of this classifier: {', '.join(map(repr, strange[:5]))} "
            f"(for example of {where}); its {len(classes)} classes are {', '.join(map(repr, classes[:10]))}"
            f"{', …' if len(classes) > 10 else ''}"
        )
    return np.array([position[str(example.label)] for example in examples], dtype=np.int32).reshape(len(examples))
