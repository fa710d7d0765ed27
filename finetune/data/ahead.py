"""in_order: work done by threads ahead of who takes the results, in the order of the items.

Takes a function and items. Gives results. Next: `finetune.data.scan`, `finetune.data.feature_fill`.

The threads are daemons, unlike those of concurrent.futures: an image that takes ten seconds to decode, or a disk that
never answers, keeps no process alive that was asked to end.
"""

from __future__ import annotations

import collections
import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

_FAR = 16  # threads that wait for a bucket's answers
_STOP_SECONDS = 1.0  # for all threads together

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def reading_threads(location: str) -> int:
    """How many read and decode images of a source: one a core, more where each waits for a bucket most of the time."""
    cores = os.cpu_count() or 1
    return max(_FAR, cores) if location.partition(":")[2].startswith("s3://") else cores


def in_order(
    work: Callable[[_Item], _Result], items: Iterable[_Item], *, threads: int, ahead: int, name: str
) -> Iterator[_Result]:
    """`work(item)` of each item. At most `ahead` are done or being done before they are taken. An exception of `work`
    comes at its item's place. Closing the iterator drops what isn't begun, and waits a second for what is."""
    tasks: queue.SimpleQueue[tuple[Future[_Result], _Item] | None] = queue.SimpleQueue()

    def run() -> None:
        while (task := tasks.get()) is not None:
            future, item = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work(item))
            except BaseException as error:  # noqa: BLE001 - it is raised where the result is taken
                future.set_exception(error)

    workers = [threading.Thread(target=run, name=f"{name}-{n}", daemon=True) for n in range(threads)]
    waiting: collections.deque[Future[_Result]] = collections.deque()
    left = iter(items)

    def begin(count: int) -> None:
        for item in itertools.islice(left, count):
            future: Future[_Result] = Future()
            waiting.append(future)
            tasks.put((future, item))

    try:
        for worker in workers:
            worker.start()
        begin(ahead)
        while waiting:
            result = waiting.popleft().result()
            begin(1)
            yield result
    finally:
        for future in waiting:
            future.cancel()
        for _ in workers:
            tasks.put(None)
        deadline = time.monotonic() + _STOP_SECONDS
        for worker in workers:
            if worker.is_alive():
                worker.join(max(0.0, deadline - time.monotonic()))
