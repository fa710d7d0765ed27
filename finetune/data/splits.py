"""Which example is for training, which for validation, which for the test: decided once, from one list.

Takes Examples and a rule. Gives a Split of indices. Next: `finetune.models.heads` (targets), `finetune.data.features`.

Rules: `ordered:800,100[,100]` counts, by id · `hash:0.8,0.1[,0.1]` shares, each example by its own id alone, so that it
never changes sides when others come or go · `stratified:0.8,0.2` shares of every class, drawn with the seed ·
`source` as the ids say by their first folder: train/, validation/, test/ · `file:PATH` ids listed in a JSON file.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data.source import Example
from zoo.errors import FailedPrecondition, InvalidArgument, NotFound

PARTS = ("train", "validation", "test")
DEFAULT_RULE = "hash:0.8,0.1,0.1"


class InvalidSplit(InvalidArgument):
    """A rule that cannot be read or cannot be met with the examples that there are."""


class SplitChanged(FailedPrecondition):
    """A saved split names examples that the source no longer has."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Indices into the source's examples, each part ascending, no index in two parts; `unused` are in none."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...] = ()
    unused: tuple[int, ...] = ()

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
        place = {example.id: index for index, example in enumerate(examples)}
        listed: dict[str, str] = {}
        for part in PARTS:
            ids = value.get(part, [])
            if not isinstance(ids, list) or not all(isinstance(one, str) for one in ids):
                raise InvalidSplit(f"{origin}: {part!r} must be a list of ids (text)")
            for one in ids:
                if one in listed:
                    raise InvalidSplit(f"{origin}: {one!r} is listed twice, in {listed[one]} and in {part}")
                listed[one] = part
        gone = [one for one in listed if one not in place]
        if gone:
            raise SplitChanged(
                f"{origin} names {len(gone)} of {len(listed)} examples that the data do not have, "
                f"the first is {gone[0]!r}; the data have {len(examples)} examples",
                hint="finetune data inspect DATA",
            )
        return _split({place[one]: part for one, part in listed.items()}, len(examples))


def split_examples(examples: Sequence[Example], rule: str, *, seed: int) -> Split:
    """Applies `rule` (see the module). `seed` matters to `stratified:` only.

    Raises InvalidSplit: an unknown rule, bad numbers, more asked than there is, or a part that would be empty;
    NotFound: no such file; SplitChanged: the file names examples that are gone.
    """
    kind, _, rest = rule.partition(":")
    if kind not in _RULES:
        raise InvalidSplit(
            f"split {rule!r}: no rule {kind!r}; rules are ordered:800,100  hash:0.8,0.1,0.1  stratified:0.8,0.2  "
            "source  file:PATH"
        )
    if not examples:
        raise InvalidSplit(f"split {rule!r}: there are no examples to split")
    return _RULES[kind](examples, rule, rest, seed)


def _split(parts: Mapping[int, str], num_examples: int) -> Split:
    chosen: dict[str, list[int]] = {part: [] for part in PARTS}
    unused: list[int] = []
    for index in range(num_examples):
        (chosen[parts[index]] if index in parts else unused).append(index)
    return Split(**{part: tuple(indices) for part, indices in chosen.items()}, unused=tuple(unused))


def _ordered(examples: Sequence[Example], rule: str, rest: str, seed: int) -> Split:
    words = [word.strip() for word in rest.split(",")]
    if len(words) not in (2, 3) or not all(word.isascii() and word.isdigit() and int(word) > 0 for word in words):
        raise InvalidSplit(f"split {rule!r}: expected two or three whole numbers ≥ 1, e.g. ordered:800,100")
    counts = [int(word) for word in words]
    if sum(counts) > len(examples):
        raise InvalidSplit(
            f"split {rule!r} asks for {sum(counts)} examples, the data have n = {len(examples)}",
            hint="ask for fewer, or split by shares: hash:0.8,0.1,0.1",
        )
    by_id = sorted(range(len(examples)), key=lambda index: examples[index].id)
    parts: dict[int, str] = {}
    for part, count in zip(PARTS, counts, strict=False):
        parts |= dict.fromkeys(by_id[len(parts) : len(parts) + count], part)
    return _split(parts, len(examples))


def _shares(rule: str, rest: str, num_examples: int) -> list[float]:
    try:
        shares = [float(word) for word in rest.split(",")]
    except ValueError:
        shares = []
    fit = len(shares) in (2, 3) and all(math.isfinite(share) and share > 0 for share in shares)
    if not fit or sum(shares) > 1 + 1e-9:
        raise InvalidSplit(
            f"split {rule!r}: expected two or three shares > 0 with a sum of at most 1, e.g. 0.8,0.1,0.1"
        )
    for part, share in zip(PARTS, shares, strict=False):
        if share * num_examples < 1:
            raise InvalidSplit(
                f"split {rule!r}: {part} would be empty: fraction {share:g} of n = {num_examples} examples is "
                f"{share * num_examples:g}, less than 1",
                hint="give more examples or a larger fraction, or counts: ordered:TRAIN,VALIDATION",
            )
    return shares


def _position(*words: object) -> float:
    """A number in [0, 1) that depends on the words alone."""
    digest = hashlib.sha256("\0".join(str(word) for word in words).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _by_hash(examples: Sequence[Example], rule: str, rest: str, seed: int) -> Split:
    shares = _shares(rule, rest, len(examples))
    parts: dict[int, str] = {}
    for index, example in enumerate(examples):
        position, bound = _position("split 1", example.id), 0.0
        for part, share in zip(PARTS, shares, strict=False):
            bound += share
            if position < bound or (part == PARTS[len(shares) - 1] and bound > 1 - 1e-9):
                parts[index] = part
                break
    split = _split(parts, len(examples))
    for part, share in zip(PARTS, shares, strict=False):
        if not getattr(split, part):
            raise InvalidSplit(
                f"split {rule!r}: {part} is empty: by their ids none of n = {len(examples)} examples falls into its "
                f"fraction {share:g}",
                hint="for so few examples give counts: ordered:TRAIN,VALIDATION",
            )
    return split


def _stratified(examples: Sequence[Example], rule: str, rest: str, seed: int) -> Split:
    shares = _shares(rule, rest, len(examples))
    by_class: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        if example.label is None:
            raise InvalidSplit(f"split {rule!r} needs labels; {example.id!r} has none", hint=f"try {DEFAULT_RULE}")
        by_class.setdefault(example.label, []).append(index)
    parts: dict[int, str] = {}
    for label, indices in sorted(by_class.items()):
        if len(indices) < len(shares):
            raise InvalidSplit(
                f"split {rule!r}: class {label!r} has {len(indices)} example(s), too few for one in each of "
                f"{len(shares)} parts",
                hint="give the class more examples or leave it out",
            )
        drawn = sorted(indices, key=lambda index: _position("stratified 1", seed, examples[index].id))
        at = 0
        for part, count in zip(PARTS, _counts(len(drawn), shares), strict=False):
            parts |= dict.fromkeys(drawn[at : at + count], part)
            at += count
    return _split(parts, len(examples))


def _counts(total: int, shares: Sequence[float]) -> list[int]:
    """Whole numbers ≥ 1 near total × share (largest remainders), with the sum the shares ask for."""
    wanted = max(len(shares), round(total * min(1.0, sum(shares))))
    counts = [max(1, int(total * share)) for share in shares]
    while sum(counts) < wanted:
        most = max(range(len(shares)), key=lambda part: total * shares[part] - counts[part])
        counts[most] += 1
    while sum(counts) > wanted:
        counts[counts.index(max(counts))] -= 1
    return counts


_FOLDERS = {"train": "train", "validation": "validation", "val": "validation", "test": "test"}


def _as_source_says(examples: Sequence[Example], rule: str, rest: str, seed: int) -> Split:
    if rest:
        raise InvalidSplit(f"split {rule!r}: the rule 'source' takes nothing after it")
    parts: dict[int, str] = {}
    for index, example in enumerate(examples):
        folder, slash, _ = example.id.partition("/")
        if not slash or folder not in _FOLDERS:
            raise InvalidSplit(
                f"split 'source': the id {example.id!r} does not begin with train/, validation/ or test/",
                hint=f"this source does not split itself; try {DEFAULT_RULE}",
            )
        parts[index] = _FOLDERS[folder]
    split = _split(parts, len(examples))
    for part in PARTS[:2]:
        if not getattr(split, part):
            raise InvalidSplit(f"split 'source': none of n = {len(examples)} ids begins with {part}/")
    return split


def _from_file(examples: Sequence[Example], rule: str, rest: str, seed: int) -> Split:
    path = Path(rest).expanduser()
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise NotFound(f"split {rule!r}: no file {path}") from None
    except (OSError, ValueError) as error:
        raise InvalidSplit(f"split {rule!r}: cannot read {path} as JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidSplit(f"{path}: expected an object with lists of ids {', '.join(PARTS)}")
    split = Split.from_json(value, examples, origin=str(path))
    for part in PARTS[:2]:
        if not getattr(split, part):
            raise InvalidSplit(f"{path}: {part!r} lists no ids; training and validation both need some")
    return split


_RULES: dict[str, Callable[[Sequence[Example], str, str, int], Split]] = {
    "ordered": _ordered,
    "hash": _by_hash,
    "stratified": _stratified,
    "source": _as_source_says,
    "file": _from_file,
}
