"""A process that writes shards: one after another, each renamed into place when it is whole.

Takes ShardTasks through a pipe. Gives ShardEntries. Next: `finetune.data.build` puts them into the index.

Processes are started anew (spawn), never forked: a fork of a process with threads may hang. Each ends by itself when
the process that started it is gone, since then nobody reads its pipe.
"""

from __future__ import annotations

import collections
import itertools
import multiprocessing
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from finetune.data.build_plan import RecordSettings, ShardTask
from finetune.data.image_header import ImageFacts, UnreadableImage, check_image
from finetune.data.record_file import framed
from finetune.data.record_write import record_of
from finetune.data.source import BadRecord, ExampleSource
from finetune.data.sources import open_source
from zoo.atomic_file import replaced_file
from zoo.crc32c import crc32c
from zoo.errors import Internal, ZooError, from_dict

_READERS = 8  # threads a process: from a bucket every image is a request of its own
_TELL_EVERY = 0.2  # seconds


@dataclass(frozen=True, kw_only=True)
class ShardEntry:
    """A finished shard. `crc32c` is of the whole file; `bad`: what is not in it."""

    name: str
    examples: int
    bytes: int
    crc32c: str  # eight hexadecimal digits
    fingerprint: str
    bad: tuple[BadRecord, ...] = ()


@dataclass(frozen=True)
class Written:
    """So many more examples of the shard at hand are done."""

    count: int


class _NobodyThere(Exception):
    """The process that started this one is gone. No OSError, which would be taken for the disk's."""


class ShardWorker:
    """The other end of a process. `give` one task at a time; `connection` is ready when there is news."""

    def __init__(self, folder: Path, settings: RecordSettings) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.task: ShardTask | None = None
        self._process = context.Process(target=_serve, args=(theirs, folder, settings), name="shards", daemon=True)
        self._process.start()
        theirs.close()  # else its end would never be noticed

    def give(self, task: ShardTask) -> None:
        self.task = task
        try:
            self.connection.send(task)
        except (BrokenPipeError, ConnectionResetError):
            raise self._death() from None

    def news(self) -> Written | ShardEntry:
        """Waits for it. Raises what the process raised, Internal where it died."""
        try:
            message = self.connection.recv()
        except (EOFError, ConnectionResetError):
            raise self._death() from None
        if isinstance(message, dict):
            raise from_dict(message)
        if isinstance(message, ShardEntry):
            self.task = None
        assert isinstance(message, Written | ShardEntry)
        return message

    def _death(self) -> Internal:
        self._process.join()
        what = self.task.name if self.task else "shards"
        return Internal(
            f"the process for {what} ended with {self._process.exitcode} and no word; was it out of memory?",
            hint="run the same again: finished shards are kept; --workers 1 takes less memory",
        )

    def stop(self) -> None:
        """At once: a shard that isn't whole leaves nothing but a temporary file."""
        self.connection.close()
        self._process.terminate()
        self._process.join()


def _serve(connection: Connection, folder: Path, settings: RecordSettings) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; whoever started us decides
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))  # the temporary file goes too
    try:
        _send(connection, _answer(connection, folder, settings))
    except (_NobodyThere, EOFError, ConnectionResetError):
        return


def _answer(connection: Connection, folder: Path, settings: RecordSettings) -> dict[str, Any]:
    """Writes shard after shard until an error, which it gives as JSON values. Raises EOFError, _NobodyThere."""
    try:
        source = open_source(settings.location, language=settings.language)
        while True:
            task = connection.recv()
            _send(connection, _Writing(connection, source, settings).shard(task, folder))
    except (_NobodyThere, EOFError, ConnectionResetError):
        raise
    except ZooError as error:
        return error.to_dict()
    except Exception as error:  # noqa: BLE001 - the edge of the process: it must not end without a word
        return Internal(f"unexpected {type(error).__name__}: {error}").to_dict()


def _send(connection: Connection, message: object) -> None:
    try:
        connection.send(message)
    except (BrokenPipeError, ConnectionResetError):
        raise _NobodyThere from None


@dataclass
class _Writing:
    connection: Connection
    source: ExampleSource
    settings: RecordSettings
    untold: int = 0
    told: float = 0.0

    def shard(self, task: ShardTask, folder: Path) -> ShardEntry:
        bad: list[BadRecord] = []
        size, checksum, number = 0, 0, 0
        with replaced_file(folder / task.name) as file:
            for index, read in self._images(task):
                self._tell()
                example = self.source.examples[index]
                if isinstance(read, UnreadableImage):
                    bad.append(BadRecord(id=example.id, reason=read.message))
                    continue
                image, facts = read
                data = framed(
                    record_of(
                        example,
                        image,
                        facts,
                        name=example.id.removeprefix(task.strip),
                        numbers=self.settings.numbers,
                        several=self.settings.several,
                    )
                )
                file.write(data)
                size, checksum, number = size + len(data), crc32c(data, checksum), number + 1
        self._tell(now=True)
        return ShardEntry(
            name=task.name,
            examples=number,
            bytes=size,
            crc32c=f"{checksum:08x}",
            fingerprint=self.settings.fingerprint(task, self.source.examples),
            bad=tuple(bad),
        )

    def _images(self, task: ShardTask) -> Iterator[tuple[int, tuple[bytes, ImageFacts] | UnreadableImage]]:
        """In the task's order; a bounded number is read ahead."""
        waiting: collections.deque[tuple[int, Future[Any]]] = collections.deque()
        left = iter(task.indices.tolist())
        with ThreadPoolExecutor(_READERS, thread_name_prefix="read") as pool:
            waiting.extend((index, pool.submit(self._read, index)) for index in itertools.islice(left, 2 * _READERS))
            while waiting:
                index, read = waiting.popleft()
                yield index, read.result()
                waiting.extend((index, pool.submit(self._read, index)) for index in itertools.islice(left, 1))

    def _read(self, index: int) -> tuple[bytes, ImageFacts] | UnreadableImage:
        try:
            image = self.source.read(index)
            return image, check_image(image, self.settings.max_pixels)
        except UnreadableImage as error:
            return error

    def _tell(self, *, now: bool = False) -> None:
        if now or time.monotonic() - self.told > _TELL_EVERY:
            _send(self.connection, Written(self.untold))
            self.untold, self.told = 0, time.monotonic()
        self.untold += not now
