"""ExampleTable: a million Examples in compact arrays, since a million Python objects would fill a laptop's memory.

Takes Examples, one at a time. Gives a Sequence of them, in order of id. Next: every ExampleSource's `examples`.

Texts lie end to end in one UTF-8 buffer with their offsets; labels are numbers of a list of names. An Example is made
when it is asked for. A photo with a label and an id of 30 letters takes about 50 bytes.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

from finetune.data.source import Example


class ExampleTable(Sequence[Example]):
    """Immutable. Slices are lists of Examples."""

    def __init__(self, examples: Iterable[Example]) -> None:
        """Reads `examples` once. Raises ValueError on two of one id."""
        ids, captions, labels = _Texts(), _Texts(), array("i")
        caption_ends, label_ends, single = array("Q"), array("Q"), array("i")
        numbers: dict[str, int] = {}
        for example in examples:
            ids.add(example.id)
            for caption in example.captions:
                captions.add(caption)
            caption_ends.append(len(captions))
            labels.extend(numbers.setdefault(name, len(numbers)) for name in example.labels)
            label_ends.append(len(labels))
            single.append(-1 if example.label is None else numbers.setdefault(example.label, len(numbers)))
        self._names = tuple(numbers)
        self._ids, self._captions, self._labels = ids, captions, np.frombuffer(labels, np.int32)
        self._label = np.frombuffer(single, np.int32)
        # Most data have no captions, or no lists of labels: then there is nothing to keep for each example.
        self._caption_ends = np.frombuffer(caption_ends, np.uint64) if len(captions) else None
        self._label_ends = np.frombuffer(label_ends, np.uint64) if len(labels) else None
        self._order = _order(ids)

    @property
    def nbytes(self) -> int:
        arrays = (self._labels, self._label, self._caption_ends, self._label_ends, self._order)
        return self._ids.nbytes + self._captions.nbytes + sum(each.nbytes for each in arrays if each is not None)

    def __len__(self) -> int:
        return len(self._ids)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        row = place if self._order is None else int(self._order[place])
        label = int(self._label[row])
        return Example(
            id=self._ids[row],
            captions=tuple(self._captions[each] for each in _range(self._caption_ends, row)),
            label=None if label < 0 else self._names[label],
            labels=tuple(self._names[int(self._labels[each])] for each in _range(self._label_ends, row)),
        )

    def __iter__(self) -> Iterator[Example]:
        return (self[place] for place in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


class _Texts:
    """Strings end to end."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._ends = array("Q", [0])

    def add(self, text: str) -> None:
        # A lone surrogate stands for a byte of a file's name that isn't UTF-8; it must come back as it was.
        self._data += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._data))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, place: int) -> str:
        return self.raw(place).decode("utf-8", "surrogatepass")

    def raw(self, place: int) -> bytes:
        return bytes(self._data[self._ends[place] : self._ends[place + 1]])

    @property
    def nbytes(self) -> int:
        return len(self._data) + self._ends.itemsize * len(self._ends)


def _range(ends: np.ndarray | None, row: int) -> range:
    if ends is None:
        return range(0)
    return range(int(ends[row - 1]) if row else 0, int(ends[row]))


def _order(ids: _Texts) -> np.ndarray | None:
    """The rows in order of id, None where they come so. The order of UTF-8 is that of code points."""
    before, sorted_already = b"", True
    for place in range(len(ids)):
        here = ids.raw(place)
        if place and here <= before:
            sorted_already = False
            break
        before = here
    if sorted_already:
        return None
    order = np.array(sorted(range(len(ids)), key=ids.raw), np.uint32)
    for first, second in itertools.pairwise(order):
        if ids.raw(int(first)) == ids.raw(int(second)):
            raise ValueError(f"two examples have the id {ids[int(first)]!r}")
    return order
