from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from finetune.data.image_header import UnreadableImage
from finetune.data.image_queue import ImageBatch, ImageQueue, InputFailed, Place, QueueSizes
from finetune.data.order import EpochOrder
from finetune.data.source import BadRecord, Example
from zoo.errors import Internal, PermissionDenied, ZooError

THREADS = [QueueSizes(readers=1, decoders=1), QueueSizes(readers=2, decoders=2), QueueSizes(readers=7, decoders=7)]


@dataclass
class Numbers:
    """An ExampleSource whose image i is the text of i; reading takes an uneven while."""

    count: int = 50
    location: str = "numbers:"
    bad_records: Sequence[BadRecord] = ()
    classes: tuple[str, ...] | None = None
    errors: dict[int, ZooError | Exception] = field(default_factory=dict)
    pause: float = 0.0005

    @property
    def examples(self) -> Sequence[Example]:
        return [Example(id=f"{number}.jpg") for number in range(self.count)]

    def read(self, index: int) -> bytes:
        time.sleep(self.pause * (index * 7 % 5))
        if index in self.errors:
            raise self.errors[index]
        return str(index).encode()


def decode(data: bytes, place: Place) -> np.ndarray:
    """Depends on the bytes and on the place."""
    return np.array([float(data), place.position], np.float32)


def queue(source: Numbers, **options: object) -> ImageQueue:
    given = {"order": EpochOrder(source.count, 3), "decode": decode, "shape": (2,), "batch_size": 8} | options
    return ImageQueue(source=source, **given)  # type: ignore[arg-type]


def rows(batches: Sequence[ImageBatch]) -> list[tuple[float, ...]]:
    return [tuple(row) for batch in batches for row in batch.image.tolist()]


def taken(source: Numbers, steps: int, **options: object) -> list[ImageBatch]:
    with queue(source, **options) as running:
        return [next(running) for _ in range(steps)]


def test_every_image_once_an_epoch_in_the_order_and_whatever_the_threads() -> None:
    order = EpochOrder(50, 3).at(0, 160)
    for sizes in THREADS:
        batches = taken(Numbers(), 20, sizes=sizes)
        assert [batch.step for batch in batches] == list(range(20))
        assert rows(batches) == [(float(index), float(place)) for place, index in enumerate(order)]
        assert np.concatenate([batch.index for batch in batches]).tolist() == order.tolist()
        assert all(batch.weight.tolist() == [1.0] * 8 for batch in batches)


def test_any_step_is_reached_at_once() -> None:
    whole = taken(Numbers(), 20)
    assert rows(taken(Numbers(), 3, start_step=17)) == rows(whole[17:])
    far = taken(Numbers(pause=0), 1, start_step=10_000_000)
    assert far[0].index.tolist() == EpochOrder(50, 3).at(80_000_000, 8).tolist()


def test_workers_share_the_order() -> None:
    alone = rows(taken(Numbers(), 12))
    shares = [taken(Numbers(), 4, worker=worker, num_workers=3) for worker in range(3)]
    together = [row for step in range(4) for worker in range(3) for row in rows([shares[worker][step]])]
    assert together == alone


def test_it_ends_where_it_should() -> None:
    with queue(Numbers(), start_step=2, stop_step=5) as running:
        assert [batch.step for batch in running] == [2, 3, 4]
        assert next(running, None) is None


def test_images_that_cannot_be_used_have_no_weight_and_are_named() -> None:
    source = Numbers(errors={7: UnreadableImage("cannot read image '7.jpg': gone", cause="unreadable")})
    batches = []
    with queue(source, max_bad_share=0.02) as running:
        batches = [next(running) for _ in range(13)]  # two epochs
        assert running.bad_records == [BadRecord(id="7.jpg", reason="cannot read image '7.jpg': gone")]
        stats = running.snapshot()
    assert stats.skipped == 1
    assert stats.sentence().endswith("; 1 images were skipped")
    flat = [(int(i), float(w)) for batch in batches for i, w in zip(batch.index, batch.weight, strict=True)]
    assert {weight for index, weight in flat if index == 7} == {0.0}
    assert {weight for index, weight in flat if index != 7} == {1.0}
    assert [index for index, _ in flat] == EpochOrder(50, 3).at(0, 104).tolist()


def test_too_many_bad_images_fail_the_job_by_name() -> None:
    source = Numbers(errors={n: UnreadableImage(f"{n} is no image", cause="damaged") for n in range(3)})
    with pytest.raises(InputFailed, match=r"2 of \d+ images can't be used, the last is '\d"):
        taken(source, 100)


@pytest.mark.parametrize("error", [PermissionDenied("the bucket may not be read"), RuntimeError("a bug of ours")])
def test_errors_of_the_threads_reach_the_consumer(error: ZooError | Exception) -> None:
    wanted: type[Exception] = PermissionDenied if isinstance(error, ZooError) else Internal
    with pytest.raises(wanted, match=r"bucket|a bug of ours"):
        taken(Numbers(errors={3: error}), 100)


def test_memory_is_bounded_by_how_far_ahead_it_may_be() -> None:
    read: list[int] = []

    class Counted(Numbers):
        def read(self, index: int) -> bytes:
            read.append(index)
            return super().read(index)

    with queue(Counted(pause=0), sizes=QueueSizes(readers=4, decoders=2, ahead=3)) as running:
        deadline = time.monotonic() + 5
        while len(read) < 24 and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.3)  # time enough for a reader that doesn't wait
        assert len(read) == 24
        next(running)
        deadline = time.monotonic() + 5
        while len(read) < 32 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert len(read) == 32


def test_a_stop_joins_every_thread() -> None:
    before = threading.active_count()
    running = queue(Numbers(), sizes=QueueSizes(readers=16, decoders=4))
    with running:
        next(running)
    assert threading.active_count() == before
    assert next(running, None) is None  # nobody waits for ever on a queue that is closed


def test_a_stop_from_elsewhere_wakes_the_consumer() -> None:
    running = queue(Numbers(pause=30.0))
    with running:
        closer = threading.Timer(0.2, running.close)
        closer.start()
        began = time.monotonic()
        assert next(running, None) is None
        closer.join()
        assert time.monotonic() - began < 3.0


def test_a_decode_that_takes_ten_seconds_keeps_no_stopped_process() -> None:
    code = """
import threading, time
from tests.finetune.data.test_image_queue import Numbers, queue
began = threading.Event()
def slow(data, place):
    began.set()
    time.sleep(10)
with queue(Numbers(), decode=slow) as running:
    try:
        began.wait()
        print("decoding", flush=True)
        next(running)
    except KeyboardInterrupt:
        pass
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "decoding\n"
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(60) == 0
            assert time.monotonic() - began < 5.0  # 2 s, where nobody else wants the cores
        finally:
            process.kill()


def test_what_it_shows() -> None:
    with queue(Numbers(pause=0.002)) as running:
        first = [next(running) for _ in range(5)]
        before = running.snapshot()
        for _ in range(5):
            next(running)
        stats = running.snapshot() - before
    assert len(first) == 5
    assert stats.batches == 5
    assert 0 < stats.waited <= stats.seconds
    assert stats.bytes > 0
    assert set(stats.scalars) == {
        "input/waited_share",
        "input/ready_fill",
        "input/read_per_second",
        "input/decoded_per_second",
        "input/megabytes_per_second",
        "input/skipped",
    }
    assert "reading was the slowest stage" in stats.sentence()
