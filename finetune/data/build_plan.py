"""Which example goes into which shard, and what a finished shard is known by.

Takes a source, a split rule and a number of shards. Gives ShardTasks. Next: `finetune.data.build_worker`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from finetune.data.order import EpochOrder
from finetune.data.source import Example, ExampleSource
from finetune.data.splits import PARTS, split_examples
from zoo.errors import InvalidArgument

WHOLE = "all"  # the set that holds everything; finetune.data.tfrecord puts it before no id
SHARD_SIZE = 1000  # examples, where nobody says how many shards there are to be
_MAX_SHARDS = 99_999  # five digits in a name
_VERSION = 1  # of the records


@dataclass(frozen=True, kw_only=True)
class ShardTask:
    """One shard: examples by index, in the order of its records. `strip`: what their names lose in front."""

    name: str
    indices: np.ndarray
    strip: str = ""


@dataclass(frozen=True, kw_only=True)
class RecordSettings:
    """What a record depends on besides its example."""

    location: str
    language: str | None
    numbers: Mapping[str, int]  # class name → number
    several: bool  # images have `labels`, not one `label` each
    max_pixels: int

    def fingerprint(self, task: ShardTask, examples: Sequence[Example]) -> str:
        """Another text for another plan of the shard; says nothing of the images' bytes."""
        digest = hashlib.sha256()
        head = [_VERSION, self.location, sorted(self.numbers.items()), self.several, self.max_pixels, task.strip]
        digest.update(json.dumps(head).encode())
        for index in task.indices.tolist():
            example = examples[index]
            line = [example.id, example.captions, example.label, example.labels]
            digest.update(json.dumps(line).encode())
        return digest.hexdigest()


def plan_shards(
    source: ExampleSource, *, rule: str | None, shards: int | None, seed: int
) -> tuple[list[ShardTask], dict[str, int]]:
    """The shards, set by set, and the number of examples in each set.

    Every set is shuffled by the seed: a reader of whole shards then meets the classes mixed. `shards` is the number of
    the largest set; smaller sets get shards of the same size.

    Raises InvalidArgument: more shards than examples, or none; what the split rule raises.
    """
    sets = _sets(source, rule, seed)
    largest = max(len(indices) for indices in sets.values())
    if shards is not None and not 1 <= shards <= min(largest, _MAX_SHARDS):
        raise InvalidArgument(f"--shards {shards}: from 1 to {min(largest, _MAX_SHARDS)}, for n = {largest} examples")
    most = min(_MAX_SHARDS, -(-largest // SHARD_SIZE)) if shards is None else shards
    tasks = []
    for name, indices in sets.items():
        count = max(1, round(most * len(indices) / largest))
        shuffled = indices[EpochOrder(len(indices), seed).indices(0)]
        bounds = [len(indices) * number // count for number in range(count + 1)]
        strip = f"{name}/" if all(source.examples[int(i)].id.startswith(f"{name}/") for i in indices) else ""
        tasks += [
            ShardTask(
                name=f"{name}-{number:05d}-of-{count:05d}",
                indices=shuffled[bounds[number] : bounds[number + 1]].astype(np.int64),
                strip=strip,
            )
            for number in range(count)
        ]
    return tasks, {name: len(indices) for name, indices in sets.items()}


def _sets(source: ExampleSource, rule: str | None, seed: int) -> dict[str, np.ndarray]:
    if not source.examples:
        raise InvalidArgument(
            f"{source.location} has no examples to write", hint=f"finetune data inspect {source.location}"
        )
    if rule is None:
        return {WHOLE: np.arange(len(source.examples))}
    split = split_examples(source.examples, rule, seed=seed, read=source.read)
    parts = {part: np.asarray(getattr(split, part)) for part in PARTS}
    return {part: indices for part, indices in parts.items() if len(indices)}
