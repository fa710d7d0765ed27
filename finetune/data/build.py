"""`finetune data build`: any source as TFRecord shards, written by parallel processes, resumed after any end.

Takes an ExampleSource's location. Gives a folder of shards, `labels.txt` and `index.json`. Next: `tfrecord:FOLDER`
reads the same examples and bytes back (`finetune.data.tfrecord`), as TensorFlow's TFRecordDataset does.

```
train-00000-of-00010      tf.Example records (finetune.data.record_write), `all-…` without a split
labels.txt                0:daisy, a line a class
index.json                each shard's examples, bytes, CRC-32C and fingerprint; what is not in it and why
```

A shard has its name only when it is whole, and counts as finished only when the index says so; the index is written
anew after each. So killed at any moment and started again, the same bytes come of it. Images are taken as they are.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from finetune.data.build_plan import RecordSettings, ShardTask, plan_shards
from finetune.data.build_worker import ShardEntry, ShardWorker
from finetune.data.source import BadRecord, ExampleSource
from finetune.data.sources import open_source
from finetune.spec import DataConfig
from finetune.training.bad_records import require_few
from zoo.atomic_file import TEMPORARY, make_directories, replaced_file, storage_error
from zoo.crc32c import crc32c
from zoo.errors import FailedPrecondition, InvalidArgument

INDEX, LABELS, _LOCK = "index.json", "labels.txt", ".lock"
_SHARD = re.compile(r"(?P<set>.+)-\d{5}-of-\d{5}")
_UNWRITABLE = re.compile(r"\A\s|\s\Z|[\n\r]")  # class names that a line of labels.txt can't hold
_BLOCK = 8 << 20


class FolderInUse(FailedPrecondition):
    """Another process builds in this folder."""


class OtherShards(FailedPrecondition):
    """The folder holds shards that are not of this build."""


class DataChanged(FailedPrecondition):
    """Two processes saw different examples."""


@dataclass(frozen=True, kw_only=True)
class Build:
    """What has been built. `made` and `kept` count shards; `num_examples` is by set, without the bad records."""

    folder: Path
    shards: tuple[ShardEntry, ...]
    num_examples: dict[str, int]
    classes: tuple[str, ...] | None
    bad_records: tuple[BadRecord, ...]
    made: int
    kept: int
    notes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards)

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "data": f"tfrecord:{self.folder}",
            "num_examples": self.num_examples,
            "shards": [{**asdict(shard), "bad": len(shard.bad)} for shard in self.shards],
            "bytes": self.bytes,
            "classes": None if self.classes is None else list(self.classes),
            "made": self.made,
            "kept": self.kept,
            "bad_records": [asdict(record) for record in self.bad_records],
            "notes": list(self.notes),
        }


def build_shards(
    location: str,
    folder: Path,
    *,
    shards: int | None = None,
    workers: int | None = None,
    rule: str | None = None,
    seed: int = 1,
    language: str | None = None,
    max_pixels: int = 50_000_000,
    max_bad_share: float = 0.01,
    again: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Build:
    """Writes the shards that aren't finished. The bytes depend on the data, `rule`, `seed` and `shards` alone.

    A finished shard is kept where the index's entry fits the plan and its checksum the file, unless an image was left
    out of it (it may have been mended), or `again`. That an image's bytes have changed under the same name isn't
    noticed: use `again`.

    Raises FolderInUse, OtherShards, DataChanged, TooManyBadRecords (finetune.training.bad_records; finished shards
    stay); InvalidArgument; Internal: a process died; what source, split rule and disk raise.
    """
    source = open_source(location, language=language)
    tasks, planned = plan_shards(source, rule=rule, shards=shards, seed=seed)
    classes, settings = source.classes, _settings(source, language, max_pixels)
    data = DataConfig(location=source.location, max_bad_share=max_bad_share)
    total = sum(planned.values()) + len(source.bad_records)
    notes: list[str] = []
    with _locked(folder):
        before = {} if again else _finished(folder)
        _clear(folder, {task.name for task in tasks}, again=again)
        done = {
            task.name: entry
            for task in tasks
            if (entry := before.get(task.name)) and _fits(folder, entry, settings.fingerprint(task, source.examples))
        }
        kept = len(done)
        _write_labels(folder, classes, notes)
        head = {"format": 1, "data": source.location, "split": rule, "seed": seed, "classes": classes}
        left = [task for task in tasks if task.name not in done]
        by_name = {task.name: task for task in left}

        def finished(entry: ShardEntry) -> None:
            if entry.fingerprint != settings.fingerprint(by_name[entry.name], source.examples):
                raise DataChanged(f"the list of {source.location} changed while it was written", hint="run it again")
            done[entry.name] = entry
            _write_index(folder, head, [done[task.name] for task in tasks if task.name in done], complete=False)
            require_few(_bad(source, done.values()), total=total, data=data, listed_in=str(folder / INDEX))

        require_few(source.bad_records, total=total, data=data)
        _run(left, folder, settings, _workers(workers, len(left)), finished, on_progress, sum(planned.values()))
        entries = [done[task.name] for task in tasks]
        _write_index(folder, head, entries, complete=True)
    return _build(folder, source, entries, kept, (*getattr(source, "notes", ()), *notes))


def _build(
    folder: Path, source: ExampleSource, entries: Sequence[ShardEntry], kept: int, notes: tuple[str, ...]
) -> Build:
    num_examples: dict[str, int] = {}
    for entry in entries:
        name = _SHARD.fullmatch(entry.name)["set"]  # type: ignore[index]
        num_examples[name] = num_examples.get(name, 0) + entry.examples
    return Build(
        folder=folder,
        shards=tuple(entries),
        num_examples=num_examples,
        classes=source.classes,
        bad_records=tuple(_bad(source, entries)),
        made=len(entries) - kept,
        kept=kept,
        notes=notes,
    )


def _settings(source: ExampleSource, language: str | None, max_pixels: int) -> RecordSettings:
    classes = source.classes
    several = any(example.labels for example in source.examples)
    return RecordSettings(
        location=source.location,
        language=language,
        numbers={name: number for number, name in enumerate(classes or ())},
        several=several or (classes is not None and any(example.label is None for example in source.examples)),
        max_pixels=max_pixels,
    )


def _workers(asked: int | None, shards: int) -> int:
    if asked is not None and asked < 1:
        raise InvalidArgument(f"--workers {asked}: expected 1 or more")
    return min(asked or os.cpu_count() or 1, shards)


def _run(
    tasks: Sequence[ShardTask],
    folder: Path,
    settings: RecordSettings,
    workers: int,
    finished: Callable[[ShardEntry], None],
    on_progress: Callable[[int, int], None],
    total: int,
) -> None:
    waiting = list(reversed(tasks))
    done = total - sum(len(task.indices) for task in tasks)
    on_progress(done, total)
    team = [ShardWorker(folder, settings) for _ in range(workers)]
    try:
        for worker in team:
            worker.give(waiting.pop())
        while busy := {worker.connection: worker for worker in team if worker.task is not None}:
            for ready in wait(list(busy)):
                worker = busy[ready]  # type: ignore[index]
                news = worker.news()
                if isinstance(news, ShardEntry):
                    finished(news)
                    if waiting:
                        worker.give(waiting.pop())
                else:
                    done += news.count
                    on_progress(done, total)
    finally:
        for worker in team:
            worker.stop()


def _bad(source: ExampleSource, entries: Any) -> list[BadRecord]:
    return [*source.bad_records, *(record for entry in entries for record in entry.bad)]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Raises FolderInUse; the lock goes with the process, however that ends."""
    path = folder / _LOCK
    try:
        make_directories(folder)
        file = path.open("wb")
    except OSError as error:
        raise storage_error(error, "write", path) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FolderInUse(f"another process builds in {folder}", hint="wait for it, or stop it") from None
        yield


def _clear(folder: Path, planned: set[str], *, again: bool) -> None:
    """Removes what an earlier process left unfinished. Raises OtherShards: read with ours, they would be examples."""
    for path in folder.glob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)
    others = sorted(path.name for path in folder.iterdir() if _SHARD.fullmatch(path.name) and path.name not in planned)
    if others and again:
        known = _finished(folder)
        for name in [name for name in others if name in known]:
            (folder / name).unlink()
            others.remove(name)
    if others:
        raise OtherShards(
            f"{folder} holds {len(others)} shards that are not of this build, such as {others[0]}: "
            "tfrecord: would read them too",
            hint="choose another folder; --again replaces shards that `finetune data build` made",
        )


def _finished(folder: Path) -> dict[str, ShardEntry]:
    """The index's shards by name; none where it can't be read, which costs no more than time."""
    try:
        value = json.loads((folder / INDEX).read_bytes())
        return {
            entry["name"]: ShardEntry(**{**entry, "bad": tuple(BadRecord(**record) for record in entry["bad"])})
            for entry in value["shards"]
        }
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


def _fits(folder: Path, entry: ShardEntry, fingerprint: str) -> bool:
    if entry.bad or entry.fingerprint != fingerprint:
        return False
    size, checksum = 0, 0
    try:
        with (folder / entry.name).open("rb") as file:
            while block := file.read(_BLOCK):
                size, checksum = size + len(block), crc32c(block, checksum)
    except FileNotFoundError:
        return False
    return size == entry.bytes and f"{checksum:08x}" == entry.crc32c


def _write_labels(folder: Path, classes: Sequence[str] | None, notes: list[str]) -> None:
    path = folder / LABELS
    strange = [name for name in classes or () if _UNWRITABLE.search(name)]
    if strange:
        notes.append(f"no {LABELS}: {strange[0]!r} can't stand on a line of it; the records hold the names")
    if strange or not classes:
        path.unlink(missing_ok=True)
        return
    with replaced_file(path) as file:
        file.write("".join(f"{number}:{name}\n" for number, name in enumerate(classes)).encode())


def _write_index(folder: Path, head: Mapping[str, Any], entries: Sequence[ShardEntry], *, complete: bool) -> None:
    value = {
        **head,
        "complete": complete,
        "num_examples": sum(entry.examples for entry in entries),
        "bytes": sum(entry.bytes for entry in entries),
        "shards": [asdict(entry) for entry in entries],
    }
    with replaced_file(folder / INDEX) as file:
        file.write(json.dumps(value, ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass"))
