"""ImageQueue: names in order → reader threads → decoder threads → ready batches. The input of training on images.

Takes an ExampleSource, an order and a decoding function. Gives batches of NumPy arrays, the same for any number of
threads. Next: `finetune.training.trainer`.

    tickets 0, 1, 2, … ──▶ readers ──(bytes, bounded)──▶ decoders ──▶ batch ticket // B, row ticket % B ──▶ consumer

A ticket is a place in the input order, so that what stands where never depends on which thread was faster, and starting
at any step needs nothing but its number. Tickets are handed out only so far ahead of the consumer: that bounds the
memory. Threads are daemons: an image that takes ten seconds to decode must not keep a stopped process alive.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from finetune.data.image_header import UnreadableImage
from finetune.data.queue_stats import QueueStats, StageClock
from finetune.data.source import BadRecord, ExampleSource
from zoo.errors import FailedPrecondition, Internal, InvalidArgument, ZooError

_STOP_SECONDS = 2.0  # for all threads together
_POLL = 0.1  # how soon a waiting thread notices a stop


class InputFailed(FailedPrecondition):
    """Too many images can't be used, or the place that they lie in can't be read."""


class Order(Protocol):
    """`finetune.data.order` has them."""

    def at(self, first_position: int, count: int) -> np.ndarray:
        """int64 [count]: the examples at `first_position`, … of the endless input order."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """One row of a batch: what its pixels may depend on, besides the image."""

    position: int  # in the endless input order
    index: int  # of the source's examples


@dataclass(frozen=True, kw_only=True)
class ImageBatch:
    """`image`: [B, …] as decoded; rows of images that can't be used are zeros with weight 0."""

    step: int
    index: np.ndarray  # int64 [B]
    image: np.ndarray
    weight: np.ndarray  # float32 [B]


@dataclass(frozen=True, kw_only=True)
class QueueSizes:
    """None: chosen by the number of cores and where the images lie.

    `readers`: threads that wait for a disk or a bucket; `decoders`: threads that use the cores; `ahead`: batches that
    are ready or being made.
    """

    readers: int | None = None
    decoders: int | None = None
    ahead: int = 4

    def chosen(self, *, far: bool) -> tuple[int, int]:
        cores = os.cpu_count() or 1
        return self.readers or (16 if far else 2 * cores), self.decoders or cores


@dataclass
class _Building:
    image: np.ndarray
    weight: np.ndarray
    index: np.ndarray
    missing: int


@dataclass
class _State:
    """Everything that threads share, under one lock."""

    next_ticket: int
    last_ticket: int | None
    batches: dict[int, _Building] = field(default_factory=dict)
    error: ZooError | None = None
    bad: dict[int, BadRecord] = field(default_factory=dict)  # by example
    seen: set[int] = field(default_factory=set)


class ImageQueue:
    """A context manager and an iterator of ImageBatch; a single consumer."""

    def __init__(
        self,
        *,
        source: ExampleSource,
        order: Order,
        decode: Callable[[bytes, Place], np.ndarray],
        shape: tuple[int, ...],
        dtype: np.dtype[np.generic] | type = np.float32,
        batch_size: int,
        start_step: int = 0,
        stop_step: int | None = None,
        worker: int = 0,
        num_workers: int = 1,
        max_bad_share: float = 0.01,
        sizes: QueueSizes | None = None,
    ) -> None:
        """
        Args:
            order: of the whole job; worker w of n takes every n-th batch of the order, from the w-th on.
            decode: bytes and place → an array of `shape`; raises UnreadableImage. Must be safe to call from threads.
            stop_step: the first step that isn't made; None for never.
            max_bad_share: of the examples seen so far (at least 100 of them); above it the queue fails.
        """
        if batch_size < 1 or num_workers < 1 or not 0 <= worker < num_workers:
            raise InvalidArgument(f"batch size {batch_size}, worker {worker} of {num_workers}: none of that can be")
        self._source, self._order, self._decode = source, order, decode
        self._shape, self._dtype, self._batch = shape, dtype, batch_size
        self._worker, self._num_workers = worker, num_workers
        self._max_bad_share = max_bad_share
        self._sizes = sizes or QueueSizes()
        location = source.location.partition(":")[2]
        readers, decoders = self._sizes.chosen(far=location.startswith("s3://"))
        self._state = _State(
            next_ticket=start_step * batch_size,
            last_ticket=None if stop_step is None else stop_step * batch_size,
        )
        self._step = start_step
        self._changed = threading.Condition()
        self._stopping = threading.Event()
        self._bytes: queue.Queue[tuple[int, Place, bytes]] = queue.Queue(maxsize=2 * decoders)
        self.stats = StageClock()
        self._threads = [self._thread(self._read_all, "read", n) for n in range(readers)]
        self._threads += [self._thread(self._decode_all, "decode", n) for n in range(decoders)]

    def __enter__(self) -> ImageQueue:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stops and joins the threads; at most 2 s, also where one of them hangs in a decoder or a dead disk."""
        self._stopping.set()
        with self._changed:
            self._changed.notify_all()
        deadline = time.monotonic() + _STOP_SECONDS
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    @property
    def bad_records(self) -> list[BadRecord]:
        """What could not be used so far, by example."""
        with self._changed:
            return [self._state.bad[index] for index in sorted(self._state.bad)]

    def snapshot(self) -> QueueStats:
        """What has gone through since the queue began."""
        with self._changed:
            return self.stats.snapshot(skipped=len(self._state.bad))

    def __iter__(self) -> Iterator[ImageBatch]:
        return self

    def __next__(self) -> ImageBatch:
        """The next step's batch. Raises InputFailed naming the image; StopIteration at `stop_step` and once closed."""
        began = time.monotonic()
        first = self._step * self._batch
        with self._changed:
            if self._state.last_ticket is not None and first >= self._state.last_ticket:
                raise StopIteration
            self.stats.ready(sum(not each.missing for each in self._state.batches.values()), self._sizes.ahead)
            while True:
                if self._state.error is not None:
                    raise self._state.error
                if self._stopping.is_set():
                    raise StopIteration
                built = self._state.batches.get(self._step)
                if built is not None and not built.missing:
                    break
                self._changed.wait(_POLL)
            del self._state.batches[self._step]
            self._step += 1
            self._changed.notify_all()
        self.stats.waited(time.monotonic() - began)
        return ImageBatch(step=self._step - 1, index=built.index, image=built.image, weight=built.weight)

    # -- readers

    def _read_all(self) -> None:
        while (ticket := self._take()) is not None:
            place = self._place(ticket)
            began = time.monotonic()
            try:
                data = self._source.read(place.index)
            except UnreadableImage as error:
                self._bad(ticket, place, error)
                continue
            self.stats.read(time.monotonic() - began, len(data))
            self._hand_on((ticket, place, data))

    def _take(self) -> int | None:
        """The next ticket, once it isn't too far ahead."""
        with self._changed:
            while not self._stopping.is_set() and self._state.error is None:
                ticket = self._state.next_ticket
                if self._state.last_ticket is not None and ticket >= self._state.last_ticket:
                    return None
                if ticket // self._batch < self._step + self._sizes.ahead:
                    self._state.next_ticket += 1
                    return ticket
                self._changed.wait(_POLL)
        return None

    def _place(self, ticket: int) -> Place:
        """This worker's ticket as a position in the order of the whole job."""
        step, row = divmod(ticket, self._batch)
        position = (step * self._num_workers + self._worker) * self._batch + row
        return Place(position=position, index=int(self._order.at(position, 1)[0]))

    def _hand_on(self, item: tuple[int, Place, bytes]) -> None:
        while not self._stopping.is_set():
            try:
                self._bytes.put(item, timeout=_POLL)
                return
            except queue.Full:
                continue

    # -- decoders

    def _decode_all(self) -> None:
        while not self._stopping.is_set():
            try:
                ticket, place, data = self._bytes.get(timeout=_POLL)
            except queue.Empty:
                continue
            began = time.monotonic()
            try:
                image = self._decode(data, place)
            except UnreadableImage as error:
                self._bad(ticket, place, error)
                continue
            self.stats.decoded(time.monotonic() - began)
            self._put(ticket, place, image)

    def _put(self, ticket: int, place: Place, image: np.ndarray | None) -> None:
        step, row = divmod(ticket, self._batch)
        with self._changed:
            batch = self._state.batches.get(step)
            if batch is None:
                batch = self._state.batches[step] = _Building(
                    image=np.zeros((self._batch, *self._shape), self._dtype),
                    weight=np.zeros(self._batch, np.float32),
                    index=np.zeros(self._batch, np.int64),
                    missing=self._batch,
                )
        if image is not None:
            batch.image[row] = image  # outside the lock: rows are disjoint
        with self._changed:
            batch.index[row] = place.index
            batch.weight[row] = 0.0 if image is None else 1.0
            batch.missing -= 1
            self._state.seen.add(place.index)
            if not batch.missing:
                self._changed.notify_all()

    # -- what goes wrong

    def _bad(self, ticket: int, place: Place, error: UnreadableImage) -> None:
        name = self._source.examples[place.index].id
        with self._changed:
            self._state.bad[place.index] = BadRecord(id=name, reason=error.message)
            bad, seen = len(self._state.bad), len(self._state.seen) + 1
        if bad > self._max_bad_share * max(seen, 100):
            self._fail(
                InputFailed(
                    f"{bad} of {seen} images can't be used, the last is {name!r}: {error.message}",
                    hint="raise data.max_bad_share, or mend the images",
                )
            )
        self._put(ticket, place, None)

    def _fail(self, error: ZooError) -> None:
        with self._changed:
            self._state.error = self._state.error or error
            self._changed.notify_all()

    def _thread(self, work: Callable[[], None], stage: str, number: int) -> threading.Thread:
        def guarded() -> None:
            try:
                work()
            except ZooError as error:
                self._fail(error)
            except Exception as error:  # noqa: BLE001 – whatever it is, the training loop must hear of it
                self._fail(Internal(f"the input queue's {stage} thread failed: {error!r}"))

        return threading.Thread(target=guarded, name=f"input-{stage}-{number}", daemon=True)
