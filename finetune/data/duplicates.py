"""Images that are nearly the same on two sides of a split: what makes a validation score too good.

Takes feature vectors of the parts. Gives NearDuplicates. Next: `finetune.training.prepare` warns, `finetune data
inspect --duplicates` lists.

Two images count as near duplicates where the cosine of their feature vectors, less the mean of all of them, reaches a
threshold. (With the mean left in, everything is alike to a network that was tuned to few classes.) Measured on 900
photos of Flickr8k and EfficientNet-Lite0, at 0.85: copies at JPEG quality 60 are found in 100 of 100 cases, crops of
95 % a side in 85, mirror images in 78, copies of half the size in 1; of 400,000 pairs of different photos none reaches
it, the nearest two (0.79, 0.77) are shots of one series. An Inception v3 that was tuned to 5 classes can't tell them
apart (half of all photos have another at 0.87): the warning says when so many are found.

Products are taken in blocks, so that memory stays the same for any number of images; above a number of products a
sample of the largest part stands for all of it, and the result says so.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from finetune.data.features import FeatureArray
from finetune.data.order import EpochOrder
from finetune.data.source import Example
from finetune.data.splits import PARTS, Split

THRESHOLD = 0.85
_MANY = 0.2  # of a part's images: more than that are seldom near duplicates
_FEW = 100  # images, of which a mean would say too little
_BLOCK = 2048  # rows on either side of a product
_WORST = 20  # pairs that are named
# Multiplications and additions of floats; two cores do about 1e11 a second. 8,000 against 1,000 of 2,048 take 1.6e10.
_MOST_PRODUCTS = 4e12


@dataclass(frozen=True, kw_only=True)
class PartFeatures:
    """One part of a split: `features` [N, V, D] of which view 0 counts; row `rows[i]` is example `indices[i]`."""

    features: np.ndarray
    rows: np.ndarray  # int64 [n]
    indices: np.ndarray  # int64 [n]

    @classmethod
    def of(cls, array: FeatureArray, indices: Sequence[int]) -> PartFeatures:
        """Of examples whose features `array` holds."""
        return cls(features=array.features, rows=array.rows_of(indices), indices=np.asarray(indices, np.int64))

    def vectors(self, start: int) -> np.ndarray:
        """float32 [≤ _BLOCK, D]."""
        return np.asarray(self.features[self.rows[start : start + _BLOCK], 0], np.float32)

    def directions(self, start: int, mean: np.ndarray) -> np.ndarray:
        """float32 [≤ _BLOCK, D]: vectors less the mean, of length 1 each; zeros stay zeros."""
        block = self.vectors(start) - mean
        lengths = np.linalg.norm(block, axis=1, keepdims=True)
        return np.asarray(block / np.where(lengths > 0, lengths, 1))

    def sample(self, count: int) -> PartFeatures:
        chosen = np.sort(EpochOrder(len(self.rows), 1).indices(0, 0, count))
        return PartFeatures(features=self.features, rows=self.rows[chosen], indices=self.indices[chosen])


@dataclass(frozen=True, kw_only=True)
class NearPair:
    first: str
    first_part: str
    second: str
    second_part: str
    similarity: float


@dataclass(frozen=True, kw_only=True)
class NearDuplicates:
    """`pairs` are counted, the `worst` (the most alike) named.

    `images`: of each part compared with an earlier one, how many have a near duplicate there; of a single part, how
    many have one in it. `compared` of `available` images of each part took part.
    """

    threshold: float
    pairs: int
    images: dict[str, int]
    worst: tuple[NearPair, ...]
    compared: dict[str, int]
    available: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"worst": [asdict(pair) for pair in self.worst]}

    def warning(self) -> str | None:
        """A line for the log; None where there is nothing to warn of."""
        if not self.pairs:
            return None
        where = " and ".join(
            f"{count} of {self.compared[part]} {part} images" for part, count in self.images.items() if count
        )
        named = "; ".join(
            f"{pair.first} ({pair.first_part}) and {pair.second} ({pair.second_part}), {pair.similarity:.3f}"
            for pair in self.worst[:3]
        )
        sampled = [f"{self.compared[p]} of {n} {p} images" for p, n in self.available.items() if self.compared[p] < n]
        beside = f" (compared were {', '.join(sampled)})" if sampled else ""
        other = "another" if len(self.compared) == 1 else "another of another part"
        measure = f"cosine of centred features ≥ {self.threshold:g}"
        if any(count > _MANY * self.compared[part] for part, count in self.images.items()):
            return (
                f"{where} are close to {other} ({measure}){beside}. Either the data are full of near duplicates, such "
                f"as frames of one video, and scores come out too good, or this backbone hardly tells these images "
                f"apart; look at some: {named}"
            )
        return (
            f"{where} are nearly the same as {other} ({measure}), so that scores may come out too good{beside}: "
            f"{named}. A split by group: keeps such images together"
        )


def near_duplicates_of_split(
    features: Mapping[str, FeatureArray],
    split: Split,
    examples: Sequence[Example],
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> NearDuplicates | None:
    """As `near_duplicates`, of the parts that have features; None where they are fewer than two. `split` without the
    images that could not be read."""
    parts = {
        part: PartFeatures.of(features[part], getattr(split, part))
        for part in PARTS
        if part in features and getattr(split, part)
    }
    return near_duplicates(parts, examples, on_progress=on_progress) if len(parts) > 1 else None


def near_duplicates(
    parts: Mapping[str, PartFeatures],
    examples: Sequence[Example],
    *,
    threshold: float = THRESHOLD,
    most_products: float = _MOST_PRODUCTS,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> NearDuplicates:
    """Compares every two parts; a single part is compared with itself. `threshold` is above 0, at most 1.

    `on_progress(blocks done, of how many)`.
    """
    compared = _affordable(parts, most_products)
    names, mean = list(compared), _mean(list(compared.values()))
    turns = list(itertools.combinations(names, 2)) if len(names) > 1 else [(name, name) for name in names]
    total = sum(_blocks(compared[a]) * _blocks(compared[b]) for a, b in turns)
    found = _Found()
    done = 0
    near = {name: np.zeros(len(compared[name].rows), bool) for name in names}
    for first, second in turns:
        for start, other, cosine in _products(compared[first], compared[second], mean, same=first == second):
            at = np.argwhere(cosine >= threshold)
            near[second][at[:, 1] + other] = True
            if first == second:
                near[first][at[:, 0] + start] = True
            found.add(cosine, at, (first, start), (second, other))
            done += 1
            on_progress(min(done, total), total)
    on_progress(total, total)

    def named(place: _Place) -> str:
        return examples[int(compared[place[0]].indices[place[1]])].id

    return NearDuplicates(
        threshold=threshold,
        pairs=found.pairs,
        images={name: int(near[name].sum()) for name in (names[1:] if len(names) > 1 else names)},
        worst=tuple(
            NearPair(
                first=named(first),
                first_part=first[0],
                second=named(second),
                second_part=second[0],
                similarity=min(1.0, similarity),
            )
            for similarity, first, second in found.worst()
        ),
        compared={name: len(part.rows) for name, part in compared.items()},
        available={name: len(parts[name].rows) for name in compared},
    )


_Place = tuple[str, int]  # a part and a place in it


class _Found:
    """Counts pairs and keeps those that are most alike; of equals, the first that came."""

    def __init__(self) -> None:
        self.pairs = 0
        self._heap: list[tuple[float, int, _Place, _Place]] = []
        self._number = itertools.count()

    def add(self, cosine: np.ndarray, at: np.ndarray, first: _Place, second: _Place) -> None:
        """`at`: rows and columns of the pairs in `cosine`, whose first row and column are `first` and `second`."""
        self.pairs += len(at)
        values = cosine[at[:, 0], at[:, 1]]
        for pair in np.argsort(-values, kind="stable")[:_WORST].tolist():
            row, column = (int(each) for each in at[pair])
            places = (first[0], first[1] + row), (second[0], second[1] + column)
            entry = (float(values[pair]), -next(self._number), *places)
            if len(self._heap) < _WORST:
                heapq.heappush(self._heap, entry)
            elif entry > self._heap[0]:
                heapq.heapreplace(self._heap, entry)

    def worst(self) -> list[tuple[float, _Place, _Place]]:
        return [(similarity, first, second) for similarity, _, first, second in sorted(self._heap, reverse=True)]


def _mean(parts: Sequence[PartFeatures]) -> np.ndarray:
    """float32 [D] of all images; zeros for so few that it would say nothing."""
    dim = parts[0].features.shape[-1] if parts else 0
    total, count = np.zeros(dim, np.float64), 0
    for part in parts:
        for start in range(0, len(part.rows), _BLOCK):
            block = part.vectors(start)
            total, count = total + block.sum(axis=0, dtype=np.float64), count + len(block)
    return (total / count if count >= _FEW else np.zeros(dim)).astype(np.float32)


def _blocks(part: PartFeatures) -> int:
    return -(-len(part.rows) // _BLOCK)


def _products(
    first: PartFeatures, second: PartFeatures, mean: np.ndarray, *, same: bool
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Blocks of cosines with the places of their first row and column; of a part with itself each pair once."""
    for start in range(0, len(first.rows), _BLOCK):
        left = first.directions(start, mean)
        for other in range(start if same else 0, len(second.rows), _BLOCK):
            cosine = left @ second.directions(other, mean).T
            if same and other == start:
                cosine[np.tril_indices(len(cosine))] = -1
            yield start, other, cosine


def _affordable(parts: Mapping[str, PartFeatures], most: float) -> dict[str, PartFeatures]:
    """The parts, the largest of them cut down to a sample until the products of all pairs number at most `most`."""
    sizes = {name: len(part.rows) for name, part in parts.items() if len(part.rows)}
    dim = max((part.features.shape[-1] for part in parts.values()), default=0)

    def products() -> float:
        if len(sizes) == 1:
            return dim * sum(size * size for size in sizes.values()) / 2
        return dim * sum(a * b for a, b in itertools.combinations(sizes.values(), 2))

    while sizes and products() > most:
        largest = max(sizes, key=sizes.__getitem__)
        sizes[largest] = max(1, sizes[largest] * 9 // 10)
        if max(sizes.values()) == 1:
            break
    return {
        name: parts[name] if size == len(parts[name].rows) else parts[name].sample(size) for name, size in sizes.items()
    }
