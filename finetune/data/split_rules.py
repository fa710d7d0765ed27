"""What each rule of `data.split` does. The rules are listed in `finetune.data.splits`.

Takes a SplitRequest. Gives int8 [number of examples]: 0 train, 1 validation, 2 test, -1 none. Next:
`finetune.data.splits`.

A million examples take seconds and some bytes each: an example is looked at once, and what is kept of it are numbers.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.data.image_header import UnreadableImage
from finetune.data.source import Example
from finetune.data.split_karpathy import is_karpathy, karpathy_parts
from finetune.data.split_strata import stratified_parts
from zoo.errors import InvalidArgument, NotFound

PARTS = ("train", "validation", "test")
Read = Callable[[int], bytes]
_AHEAD = 256  # images whose bytes are hashed at once


class InvalidSplit(InvalidArgument):
    """A rule that cannot be read or cannot be met with the examples that there are."""


@dataclass(frozen=True, kw_only=True)
class SplitRequest:
    """`rule` whole, for messages; `rest`: what follows its first colon."""

    examples: Sequence[Example]
    rule: str
    rest: str
    seed: int
    read: Read | None

    def error(self, says: str, *, hint: str | None = None) -> InvalidSplit:
        return InvalidSplit(f"split {self.rule!r}: {says}", hint=hint)

    def shares(self, text: str, count: int, what: str = "examples") -> list[float]:
        """Two or three shares of `count` things. Raises InvalidSplit naming n and the fraction."""
        try:
            shares = [float(word) for word in text.split(",")]
        except ValueError:
            shares = []
        fit = len(shares) in (2, 3) and all(math.isfinite(share) and share > 0 for share in shares)
        if not fit or sum(shares) > 1 + 1e-9:
            raise self.error("expected two or three shares > 0 with a sum of at most 1, e.g. 0.8,0.1,0.1")
        for part, share in zip(PARTS, shares, strict=False):
            if share * count < 1:
                raise self.error(
                    f"{part} would be empty: fraction {share:g} of n = {count} {what} is {share * count:g}, "
                    "less than 1",
                    hint=f"give more {what} or a larger fraction, or counts: ordered:TRAIN,VALIDATION",
                )
        return shares

    @property
    def path(self) -> Path:
        """Of `file:`."""
        return Path(self.rest).expanduser()

    def listed(self) -> dict[str, Any]:
        """The JSON object that `file:` names, Karpathy's in its form. Raises NotFound, InvalidSplit."""
        path = self.path
        try:
            value = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise NotFound(f"split {self.rule!r}: no file {path}") from None
        except (OSError, ValueError) as error:
            raise self.error(f"cannot read {path} as JSON: {error}") from None
        if is_karpathy(value):
            return karpathy_parts(value, (example.id for example in self.examples), origin=str(path))
        if not isinstance(value, dict):
            raise InvalidSplit(f"{path}: expected an object with lists of ids {', '.join(PARTS)}")
        return value


def _ordered(request: SplitRequest) -> np.ndarray:
    words = [word.strip() for word in request.rest.split(",")]
    if len(words) not in (2, 3) or not all(word.isascii() and word.isdigit() and int(word) > 0 for word in words):
        raise request.error("expected two or three whole numbers ≥ 1, e.g. ordered:800,100")
    counts = [int(word) for word in words]
    total = len(request.examples)
    if sum(counts) > total:
        raise InvalidSplit(
            f"split {request.rule!r} asks for {sum(counts)} examples, the data have n = {total}",
            hint="ask for fewer, or split by shares: hash:0.8,0.1,0.1",
        )
    ids = (example.id for example in request.examples)
    if all(first <= second for first, second in itertools.pairwise(ids)):  # what sources promise
        by_id = np.arange(total)
    else:
        by_id = np.array(sorted(range(total), key=lambda index: request.examples[index].id))
    parts = np.full(total, -1, np.int8)
    start = 0
    for number, count in enumerate(counts):
        parts[by_id[start : start + count]] = number
        start += count
    return parts


def _position(*words: object) -> float:
    """A number in [0, 1) that depends on the words alone."""
    return _fraction(hashlib.sha256("\0".join(str(word) for word in words).encode("utf-8", "surrogatepass")))


def _fraction(digest: Any) -> float:
    return int.from_bytes(digest.digest()[:6], "big") / 2**48


def _positions(numbers: Iterable[float]) -> np.ndarray:
    return np.frombuffer(array("d", numbers), np.float64)


def _by_position(positions: np.ndarray, shares: Sequence[float]) -> np.ndarray:
    bounds = list(itertools.accumulate(shares))
    parts = np.searchsorted(np.array(bounds), positions, side="right").astype(np.int8)
    parts[parts == len(shares)] = len(shares) - 1 if bounds[-1] > 1 - 1e-9 else -1
    return parts


def _require_some(request: SplitRequest, parts: np.ndarray, shares: Sequence[float], whose: str) -> np.ndarray:
    for number, share in enumerate(shares):
        if not np.any(parts == number):
            raise request.error(
                f"{PARTS[number]} is empty: by {whose} none of n = {len(request.examples)} examples falls into its "
                f"fraction {share:g}",
                hint="for so few examples give counts: ordered:TRAIN,VALIDATION",
            )
    return parts


def _by_hash(request: SplitRequest) -> np.ndarray:
    shares = request.shares(request.rest, len(request.examples))
    positions = _positions(_position("split 1", example.id) for example in request.examples)
    return _require_some(request, _by_position(positions, shares), shares, "their ids")


def _by_content(request: SplitRequest) -> np.ndarray:
    shares = request.shares(request.rest, len(request.examples))
    if request.read is None:
        raise request.error("needs the images' bytes, and here is only their list")
    positions = _positions(_contents(request.examples, request.read))
    return _require_some(request, _by_position(positions, shares), shares, "their contents")


def _contents(examples: Sequence[Example], read: Read) -> Iterator[float]:
    def position(index: int) -> float:
        try:
            digest = hashlib.sha256(b"split content 1\0")
            digest.update(read(index))
        except UnreadableImage:
            return _position("split 1", examples[index].id)
        return _fraction(digest)

    with ThreadPoolExecutor(4 * (os.cpu_count() or 1), thread_name_prefix="split") as pool:
        for start in range(0, len(examples), _AHEAD):
            yield from pool.map(position, range(start, min(start + _AHEAD, len(examples))))


def _by_group(request: SplitRequest) -> np.ndarray:
    text, colon, pattern = request.rest.partition(":")
    if not colon or not pattern:
        raise request.error("expected shares and a pattern, e.g. group:0.8,0.1,0.1:^[^_]*")
    try:
        find = re.compile(pattern).search
    except re.error as error:
        raise request.error(f"{pattern!r} is no regular expression: {error}") from None
    keys: dict[str, int] = {}
    numbers, unmatched, first = array("I"), 0, ""
    for example in request.examples:
        match = find(example.id)
        if match is None:
            unmatched, first = unmatched + 1, first or example.id
            continue
        key = "\0".join(part or "" for part in match.groups()) if match.re.groups else match[0]
        numbers.append(keys.setdefault(key, len(keys)))
    if unmatched:
        raise request.error(
            f"in {unmatched} of {len(request.examples)} ids there is no match, the first is {first!r}",
            hint="an id without a group would be on its own: let the pattern match it, e.g. with |^.*",
        )
    shares = request.shares(text, len(keys), "groups")
    by_key = _by_position(_positions(_position("split group 1", key) for key in keys), shares)
    parts = by_key[np.frombuffer(numbers, np.uint32)]
    return _require_some(request, parts, shares, f"their {len(keys)} groups")


def _stratified(request: SplitRequest) -> np.ndarray:
    shares = request.shares(request.rest, len(request.examples))
    several = any(example.labels for example in request.examples)
    classes: dict[str, int] = {}
    of_example, ends, positions = array("I"), array("Q"), array("d")
    for example in request.examples:
        names = example.labels if example.label is None else (example.label,)
        if not names and not several:
            raise InvalidSplit(
                f"split {request.rule!r} needs labels; {example.id!r} has none", hint="try hash:0.8,0.1,0.1"
            )
        of_example.extend(sorted({classes.setdefault(name, len(classes)) for name in names}))
        ends.append(len(of_example))
        positions.append(_position("stratified 1", request.seed, example.id))
    names = tuple(classes)
    parts, lacking = stratified_parts(
        classes=np.frombuffer(of_example, np.uint32),
        ends=np.frombuffer(ends, np.uint64).astype(np.int64),
        positions=np.frombuffer(positions, np.float64),
        num_classes=len(names),
        shares=shares,
    )
    if lacking:
        counts = np.bincount(np.frombuffer(of_example, np.uint32), minlength=len(names))
        number, part = min(lacking, key=lambda each: (names[each[0]], each[1]))
        others = len({each[0] for each in lacking}) - 1
        if counts[number] < len(shares):
            why = f"has {counts[number]} example(s), too few for one in each of {len(shares)} parts"
        else:  # only where examples have several classes
            why = f"has {counts[number]} examples, but none is left for {PARTS[part]}: their rarer classes come first"
        raise request.error(
            f"class {names[number]!r} {why}" + (f"; and {others} more classes" if others else ""),
            hint="give the class more examples or leave it out",
        )
    return parts


_FOLDERS = {"train": 0, "validation": 1, "val": 1, "test": 2}


def _as_source_says(request: SplitRequest) -> np.ndarray:
    if request.rest:
        raise request.error("the rule 'source' takes nothing after it")
    parts = np.empty(len(request.examples), np.int8)
    for index, example in enumerate(request.examples):
        folder, slash, _ = example.id.partition("/")
        folder = folder.rstrip("0123456789")  # COCO's train2017/
        if not slash or folder not in _FOLDERS:
            raise InvalidSplit(
                f"split 'source': the id {example.id!r} does not begin with train/, validation/ or test/",
                hint="this source does not split itself; try hash:0.8,0.1,0.1",
            )
        parts[index] = _FOLDERS[folder]
    for number, part in enumerate(PARTS[:2]):
        if not np.any(parts == number):
            raise InvalidSplit(f"split 'source': none of n = {len(parts)} ids begins with {part}/")
    return parts


RULES: dict[str, Callable[[SplitRequest], np.ndarray]] = {
    "ordered": _ordered,
    "hash": _by_hash,
    "hash-content": _by_content,
    "group": _by_group,
    "stratified": _stratified,
    "source": _as_source_says,
}
