"""Arguments and labels that heads of dense layers have in common. No TensorFlow.

Takes Examples. Gives checked names of classes. Next: `classifier`, `multilabel`, `embedding` beside it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from finetune.data.source import Example
from zoo.errors import FailedPrecondition, InvalidArgument

Positive = Annotated[float, Field(gt=0)]


class InvalidLabels(InvalidArgument):
    """Labels that a head cannot be trained on or scored with."""


class NoClassNames(FailedPrecondition):
    """A head whose version doesn't say what its outputs mean."""


class DenseArguments(BaseModel):
    """`hidden`: units of the layers between feature and output, all with `hidden_activation`; `dropout`: the share
    dropped after each of them; `feature_dropout`: of the feature vector's values, before all layers (Srivastava et al.
    2014). Both act in training only."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    hidden: tuple[Annotated[int, Field(ge=1, le=65536)], ...] = ()
    hidden_activation: Literal["relu", "hard_swish"] = "relu"
    dropout: tuple[Annotated[float, Field(ge=0, lt=1)], ...] = ()
    feature_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _one_dropout_a_layer(self) -> DenseArguments:
        if self.dropout and len(self.dropout) != len(self.hidden):
            raise ValueError(f"{len(self.dropout)} dropout shares for {len(self.hidden)} hidden layers")
        return self

    @property
    def later(self) -> set[str]:
        """What came later and says nothing: left out of manifests, so that equal heads stay equal."""
        return {"feature_dropout"} if not self.feature_dropout else set()

    @property
    def dropout_shares(self) -> tuple[float, ...]:
        return self.dropout or (0.0,) * len(self.hidden)


def listed(names: Iterable[str], limit: int = 10) -> str:
    """`'a', 'b', …` for messages: quoted, so that blanks and line ends show."""
    known = list(names)
    return ", ".join(f"{name!r:.80}" for name in known[:limit]) + (", …" if len(known) > limit else "")


def require_labels(examples: Sequence[Example]) -> None:
    """Raises InvalidLabels naming examples without a label."""
    bare = [example.id for example in examples if example.label is None]
    if not bare:
        return
    some = ", ".join(bare[:5]) + (", …" if len(bare) > 5 else "")
    several = any(example.labels for example in examples)
    raise InvalidLabels(
        f"{len(bare)} of {len(examples)} examples have no label: {some}"
        + ("; they have lists of labels" if several else ""),
        hint="for images that show several classes or none: --head multilabel"
        if several
        else "a classifier learns from a folder per class: --data folder:DIR",
    )


def label_rows(examples: Sequence[Example], classes: tuple[str, ...], *, head: str = "classifier") -> np.ndarray:
    """int32 `[N]`: each label's position in `classes`, found by name. Raises InvalidLabels naming unknown labels."""
    require_labels(examples)
    position = {name: place for place, name in enumerate(classes)}
    strange = sorted({str(example.label) for example in examples} - set(position))
    if strange:
        raise unknown_classes(strange, next(e.id for e in examples if e.label == strange[0]), classes, head)
    return np.array([position[str(example.label)] for example in examples], dtype=np.int32).reshape(len(examples))


def unknown_classes(strange: Sequence[str], where: str, classes: Sequence[str], head: str) -> InvalidLabels:
    near = difflib.get_close_matches(strange[0], classes, n=1)
    return InvalidLabels(
        f"{len(strange)} labels are no class of this {head}: {listed(strange, 5)} (for example of {where}); "
        + (f"{near[0]!r:.80} is its nearest class; " if near else "")
        + f"its {len(classes)} classes are {listed(classes)}",
        hint="classes are compared by name: rename them in the data, or leave the images out",
    )


def weights_of_classes(given: Mapping[str, float], classes: Sequence[str], *, what: str) -> np.ndarray:
    """float32 `[C]`: the weights that were given by name, 1 for the others. Raises InvalidLabels: no such class."""
    strange = sorted(set(given) - set(classes))
    if strange:
        raise InvalidLabels(f"{what} names {listed(strange)}; the classes are {listed(classes)}")
    return np.array([given.get(name, 1.0) for name in classes], np.float32)
