"""Where each example's record lies, and what the examples are: made once by reading every shard, then kept.

Takes shards. Gives a RecordIndex. Next: `finetune.data.tfrecord`. Kept under a key of the shards' names, places, sizes
and times, so that a shard written anew is read anew.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from finetune.data.example_table import ExampleTable
from finetune.data.record_file import DamagedRecord, records
from finetune.data.record_parse import RecordFacts, record_facts
from finetune.data.source import BadRecord, Example
from finetune.data.trees.ranges import Ranges
from zoo.atomic_file import make_directories, replaced_file
from zoo.cache.blob_cache import default_cache_root

_VERSION = 2  # of what is kept


@dataclass(frozen=True, kw_only=True)
class RecordIndex:
    """Example i is record `length[i]` bytes from `offset[i]` on of shard `shard[i]`.

    `merged`: records that only add a caption to an image that another record has.
    """

    examples: ExampleTable
    shard: np.ndarray  # int32 [N]
    offset: np.ndarray  # int64 [N]
    length: np.ndarray  # int64 [N]
    bad: tuple[BadRecord, ...]
    merged: int


def index_of(
    names: Sequence[str], sets: Sequence[str], shards: Sequence[Ranges], labels: Mapping[int, str]
) -> RecordIndex:
    """The kept index, or a new one, which is then kept.

    Args:
        names: of the shards; sets: what their ids begin with, "" for nothing.
        labels: number → class name; where it is empty, the records' own texts, else the numbers.
    """
    identity = json.dumps([_VERSION, sorted(labels.items()), *([s.url, s.changed] for s in shards), list(sets)])
    path = default_cache_root() / "tfrecord" / f"{hashlib.sha256(identity.encode()).hexdigest()}.npz"
    if (kept := _load(path)) is not None:
        return kept
    threads = min(len(shards), os.cpu_count() or 1) or 1
    with ThreadPoolExecutor(threads, thread_name_prefix="tfrecord") as pool:
        read = list(pool.map(_read_shard, shards, names))
    index = _Merge(labels=labels).all(read, names, sets)
    _save(path, index)
    return index


@dataclass
class _Found:
    number: int
    offset: int
    length: int
    facts: RecordFacts


def _read_shard(shard: Ranges, name: str) -> tuple[list[_Found], list[BadRecord]]:
    found: list[_Found] = []
    bad: list[BadRecord] = []
    for number, record in enumerate(records(shard)):
        identity = f"{name}#{number}"
        if isinstance(record, DamagedRecord):
            bad.append(BadRecord(id=identity, reason=f"{record}{'; what follows is lost' if record.rest else ''}"))
            continue
        try:
            found.append(_Found(number, record.offset, len(record.data), record_facts(record.data)))
        except ValueError as error:
            bad.append(BadRecord(id=identity, reason=str(error)))
    return found, bad


@dataclass
class _Image:
    place: tuple[int, int, int]  # shard, offset, length
    label: str | None
    labels: tuple[str, ...]
    captions: list[str]


@dataclass
class _Merge:
    labels: Mapping[int, str]
    images: dict[str, _Image] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    bad: list[BadRecord] = field(default_factory=list)
    merged: int = 0

    def all(
        self, read: Sequence[tuple[list[_Found], list[BadRecord]]], names: Sequence[str], sets: Sequence[str]
    ) -> RecordIndex:
        for shard, (found, bad) in enumerate(read):
            self.bad += bad
            for each in found:
                try:
                    self._one(shard, names[shard], sets[shard], each)
                except ValueError as error:
                    self.bad.append(BadRecord(id=f"{names[shard]}#{each.number}", reason=str(error)))
        order = sorted(self.images)
        places = np.array([self.images[name].place for name in order], np.int64).reshape(-1, 3)
        return RecordIndex(
            examples=ExampleTable(self._examples(order)),
            shard=places[:, 0].astype(np.int32),
            offset=places[:, 1].copy(),
            length=places[:, 2].copy(),
            bad=tuple(self.bad),
            merged=self.merged,
        )

    def _one(self, shard: int, name: str, group: str, found: _Found) -> None:
        facts = found.facts
        names = self._names(facts)
        own = facts.name or f"{name}#{found.number:08d}"
        identity = f"{group}/{own}" if group else own
        label = names[0] if len(names) == 1 and not facts.several else None
        several = names if label is None else ()
        known = self.images.get(identity)
        if known is None:
            place = (shard, found.offset, found.length)
            self.images[identity] = _Image(place, label, several, list(facts.captions))
        elif not facts.captions or not known.captions:
            raise ValueError(f"a second record of image {identity!r}")
        else:
            known.captions += facts.captions
            self.merged += 1

    def _names(self, facts: RecordFacts) -> tuple[str, ...]:
        if not facts.labels:
            return facts.texts
        if self.labels:
            strange = [number for number in facts.labels if number not in self.labels]
            if strange:
                raise ValueError(f"label {strange[0]} is none of the {len(self.labels)} in labels.txt")
            return tuple(self.labels[number] for number in facts.labels)
        if len(facts.texts) != len(facts.labels):
            return tuple(str(number) for number in facts.labels)
        for number, text in zip(facts.labels, facts.texts, strict=True):
            if self.texts.setdefault(number, text) != text:
                raise ValueError(f"label {number} is {text!r} here, but {self.texts[number]!r} in another record")
        return facts.texts

    def _examples(self, order: Sequence[str]) -> Iterator[Example]:
        for name in order:
            image = self.images[name]
            yield Example(id=name, captions=tuple(image.captions), label=image.label, labels=image.labels)


def _save(path: Path, index: RecordIndex) -> None:
    rows = [[e.id, list(e.captions), e.label, list(e.labels)] for e in index.examples]
    rest = {"rows": rows, "bad": [[b.id, b.reason] for b in index.bad], "merged": index.merged}
    text = np.frombuffer(json.dumps(rest).encode(), np.uint8)
    make_directories(path.parent)
    with replaced_file(path) as file:
        np.savez(file, shard=index.shard, offset=index.offset, length=index.length, rest=text)


def _load(path: Path) -> RecordIndex | None:
    """None where there is none, or one that is damaged: it is only a cache."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as kept:
            rest = json.loads(kept["rest"].tobytes())
            return RecordIndex(
                examples=ExampleTable(
                    Example(id=row[0], captions=tuple(row[1]), label=row[2], labels=tuple(row[3]))
                    for row in rest["rows"]
                ),
                shard=kept["shard"],
                offset=kept["offset"],
                length=kept["length"],
                bad=tuple(BadRecord(id=identity, reason=reason) for identity, reason in rest["bad"]),
                merged=rest["merged"],
            )
    except (OSError, ValueError, KeyError, TypeError, IndexError, EOFError):
        return None
