"""Which example is for training, which for validation, which for the test: decided once, from one list.

Takes Examples and a rule. Gives a Split of indices. Next: `finetune.models.heads` (targets), `finetune.data.features`.

- `ordered:800,100[,100]`: counts, by id.
- `hash:0.8,0.1[,0.1]`: shares; each example by its own id alone, so that it never changes sides when others come or go.
- `hash-content:0.8,0.1[,0.1]`: the same by the image's bytes; a renamed image stays where it was, and copies stay
  together.
- `group:0.8,0.1[,0.1]:REGEX`: the same by what REGEX finds in the id (its groups, else the whole match), so that all
  photos of one person or scene stay on one side: `group:0.8,0.1,0.1:^[^_]*`. Shares are of the groups.
- `stratified:0.8,0.2`: shares of every class, drawn with the seed; at least one of every class in every part.
- `source`: as the ids say by their first folder: train/, validation/, test/.
- `file:PATH`: ids listed in a JSON file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np

from finetune.data.source import Example
from finetune.data.split_rules import PARTS, RULES, InvalidSplit, Read, SplitRequest
from zoo.errors import FailedPrecondition

__all__ = ["DEFAULT_RULE", "PARTS", "Indices", "InvalidSplit", "Split", "SplitChanged", "split_examples"]

DEFAULT_RULE = "hash:0.8,0.1,0.1"


class SplitChanged(FailedPrecondition):
    """A saved split names examples that the source no longer has."""


class Indices(Sequence[int]):
    """Ascending indices, four bytes each (a tuple takes forty). Equal to any sequence of the same numbers."""

    def __init__(self, values: Sequence[int] | np.ndarray) -> None:
        self.array = np.array(values, np.uint32)  # a copy
        self.array.setflags(write=False)

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, place: int) -> int: ...

    @overload
    def __getitem__(self, place: slice) -> Indices: ...

    def __getitem__(self, place: int | slice) -> int | Indices:
        return Indices(self.array[place]) if isinstance(place, slice) else int(self.array[place])

    def __iter__(self) -> Iterator[int]:
        for start in range(0, len(self.array), 4096):
            yield from self.array[start : start + 4096].tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array, dtype or np.int64)

    def __contains__(self, value: object) -> bool:
        return isinstance(value, int) and value >= 0 and bool(np.any(self.array == value))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Indices):
            return np.array_equal(self.array, other.array)
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(self.array.tobytes())

    def __repr__(self) -> str:
        return f"Indices({self.array[:8].tolist()}{', …' if len(self) > 8 else ''}, {len(self)} in all)"


@dataclass(frozen=True, kw_only=True)
class Split:
    """Indices into the source's examples, each part ascending, no index in two parts; `unused` are in none.

    Any sequence of ints may be given; it is kept as Indices.
    """

    train: Sequence[int]
    validation: Sequence[int]
    test: Sequence[int] = ()
    unused: Sequence[int] = ()

    def __post_init__(self) -> None:
        for name in (*PARTS, "unused"):
            given = getattr(self, name)
            if not isinstance(given, Indices):
                object.__setattr__(self, name, Indices(given))

    def to_json(self, examples: Sequence[Example]) -> dict[str, list[str]]:
        """The parts as example ids: true on any machine and whatever else the source may gain."""
        return {part: [examples[index].id for index in getattr(self, part)] for part in PARTS}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], examples: Sequence[Example], *, origin: str = "the split") -> Split:
        """Finds the ids again. Raises SplitChanged for ids that are gone, InvalidSplit for a list that is none."""
        unknown = sorted(set(value) - set(PARTS))
        if unknown or "train" not in value:
            raise InvalidSplit(
                f"{origin}: expected an object with lists of ids {', '.join(PARTS)}, got {sorted(value)}"
            )
        listed: dict[str, int] = {}
        for number, part in enumerate(PARTS):
            ids = value.get(part, [])
            if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
                raise InvalidSplit(f"{origin}: {part!r} must be a list of ids (text)")
            for one in ids:
                if one in listed:
                    raise InvalidSplit(f"{origin}: {one!r} is listed twice, in {PARTS[listed[one]]} and in {part}")
                listed[one] = number
        total = len(listed)
        parts = np.fromiter((listed.pop(example.id, -1) for example in examples), np.int8, len(examples))
        if listed:
            raise SplitChanged(
                f"{origin} names {len(listed)} of {total} examples that the data do not have, "
                f"the first is {next(iter(listed))!r}; the data have {len(examples)} examples",
                hint="finetune data inspect DATA",
            )
        return cls.of(parts)

    @classmethod
    def of(cls, parts: np.ndarray) -> Split:
        """Of a number for each example: 0 train, 1 validation, 2 test, -1 none."""
        chosen = {part: Indices(np.flatnonzero(parts == number)) for number, part in enumerate(PARTS)}
        return cls(**chosen, unused=Indices(np.flatnonzero(parts < 0)))


def split_examples(examples: Sequence[Example], rule: str, *, seed: int, read: Read | None = None) -> Split:
    """Applies `rule` (see the module). `seed` matters to `stratified:` only.

    `read` gives the bytes of an example's image, which `hash-content:` needs; an image that it can't read goes by its
    id, so that it is met again, and reported, by whoever looks at every image of the split.

    Raises InvalidSplit: an unknown rule, bad numbers, more asked than there is, or a part that would be empty;
    NotFound: no such file; SplitChanged: the file names examples that are gone.
    """
    kind, _, rest = rule.partition(":")
    request = SplitRequest(examples=examples, rule=rule, rest=rest, seed=seed, read=read)
    if kind == "file":
        path = str(request.path)
        split = Split.from_json(request.listed(), examples, origin=path)
        for part in PARTS[:2]:
            if not getattr(split, part):
                raise InvalidSplit(f"{path}: {part!r} lists no ids; training and validation both need some")
        return split
    if kind not in RULES:
        raise InvalidSplit(
            f"split {rule!r}: no rule {kind!r}; rules are ordered:800,100  hash:0.8,0.1,0.1  "
            "hash-content:0.8,0.1,0.1  group:0.8,0.1,0.1:REGEX  stratified:0.8,0.2  source  file:PATH"
        )
    if not examples:
        raise InvalidSplit(f"split {rule!r}: there are no examples to split")
    return Split.of(RULES[kind](request))
