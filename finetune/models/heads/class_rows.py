"""Starting from a head that learnt other classes: rows of classes that stay are kept by name, new ones are fresh.

Takes a version's tensors and both class lists. Gives tensors of the new shape. Next: `finetune.training.initialise`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np

from finetune.data.source import Example
from finetune.models.heads.head import Assets


@runtime_checkable
class HasClassRows(Protocol):
    """A HeadKind some of whose tensors have a row a class: tensor name → the axis on which they lie. Outputs before the
    first class (`Assets.class_offset`) come first on it."""

    class_axes: Mapping[str, int]

    def learn_assets(self, examples: Sequence[Example], arguments: Any) -> Assets: ...


def continued_assets(kind: Any, stored: Assets, examples: Sequence[Example], arguments: Any) -> Assets:
    """What a run that starts from a head with `stored` goes on with.

    With the same classes everything is the stored head's, their order included. With others the list is that of the new
    training split. A vocabulary is always the stored one.
    """
    if not isinstance(kind, HasClassRows) or stored.classes is None:
        return stored
    asked = arguments.model_copy(update={"num_classes": None}) if hasattr(arguments, "num_classes") else arguments
    learnt = kind.learn_assets(examples, asked)
    return stored if set(learnt.classes or ()) == set(stored.classes) else replace(stored, classes=learnt.classes)


def carried_rows(
    kind: Any, stored: Mapping[str, np.ndarray], fresh: Mapping[str, np.ndarray], *, before: Assets, now: Assets
) -> dict[str, np.ndarray]:
    """`stored` with every tensor that has class rows laid out for the classes of `now`.

    Args:
        fresh: the new head's initial tensors, whose rows new classes get.
        before, now: their `classes` and equal `class_offset`.
    """
    tensors = dict(stored)
    if not isinstance(kind, HasClassRows) or before.classes == now.classes:
        return tensors
    place = {name: before.class_offset + row for row, name in enumerate(before.classes or ())}
    pairs = [(row, row) for row in range(now.class_offset)]
    pairs += [(now.class_offset + row, place[n]) for row, n in enumerate(now.classes or ()) if n in place]
    to, of = (np.array(each, np.int64) for each in zip(*pairs, strict=True)) if pairs else (np.zeros(0, np.int64),) * 2
    for name, axis in kind.class_axes.items():
        if name not in stored or name not in fresh or not _alike(stored[name], fresh[name], axis):
            continue  # `restore` says what doesn't fit
        rows = np.moveaxis(fresh[name].copy(), axis, 0)
        rows[to] = np.moveaxis(stored[name], axis, 0)[of]
        tensors[name] = np.moveaxis(rows, 0, axis)
    return tensors


def class_changes(before: Assets, now: Assets) -> dict[str, tuple[str, ...]]:
    """`kept`, `added`, `removed`: class names, each in its own list's order. Empty where nothing changed."""
    old, new = before.classes or (), now.classes or ()
    if set(old) == set(new):
        return {}
    return {
        "kept": tuple(name for name in new if name in set(old)),
        "added": tuple(name for name in new if name not in set(old)),
        "removed": tuple(name for name in old if name not in set(new)),
    }


def _alike(one: np.ndarray, other: np.ndarray, axis: int) -> bool:
    return np.delete(np.array(one.shape), axis).tolist() == np.delete(np.array(other.shape), axis).tolist()
