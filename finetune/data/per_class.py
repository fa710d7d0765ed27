"""A few examples a class: the seeded part of a training split that few-shot learning sees. No TensorFlow.

Takes examples and how many of each class. Gives which of them. Next: `finetune.training.prepare`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

from finetune.data.source import Example
from zoo.errors import InvalidArgument


class NoClasses(InvalidArgument):
    """Examples without classes, of which some a class are asked for."""


def per_class(examples: Sequence[Example], indices: Sequence[int], count: int, *, seed: int) -> list[int]:
    """Those of `indices` that are chosen, in their order.

    Who comes first is decided by a hash of (seed, id), so that the choice depends neither on the order of the examples
    nor on who else is there, and that of 1 a class is a part of that of 5. An image of several classes is taken as long
    as one of them has fewer than `count`; those of rare classes may then have more.

    Raises NoClasses naming an example.
    """
    bare = next((examples[index].id for index in indices if not _classes(examples[index])), None)
    if bare is not None:
        raise NoClasses(f"data.per_class: example {bare!r} has no class", hint="--set data.per_class=null")
    ranked = sorted(indices, key=lambda index: hashlib.sha256(f"{seed}/{examples[index].id}".encode()).digest())
    taken: Counter[str] = Counter()
    chosen: set[int] = set()
    for index in ranked:
        classes = _classes(examples[index])
        if any(taken[name] < count for name in classes):
            chosen.add(index)
            taken.update(classes)
    return [index for index in indices if index in chosen]


def _classes(example: Example) -> tuple[str, ...]:
    return example.labels or (() if example.label is None else (str(example.label),))
