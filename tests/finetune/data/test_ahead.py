"""Work ahead of who takes it: in order, bounded, with errors in their places, and never in the way of an end."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from finetune.data.ahead import in_order, reading_threads

ROOT = Path(__file__).parents[3]


def test_results_come_in_order_and_only_so_far_ahead() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.001 * (item * 7 % 5))
        return item * item

    results = in_order(work, range(100), threads=4, ahead=10, name="test")
    assert begun == []
    for item, result in enumerate(results):
        assert result == item * item
        assert max(begun) <= item + 10
    assert sorted(begun) == list(range(100))
    assert list(in_order(work, [], threads=4, ahead=10, name="test")) == []


def test_an_error_comes_at_its_place_and_ends_the_threads() -> None:
    def work(item: int) -> int:
        if item == 3:
            raise ValueError("the third")
        return item

    before = threading.active_count()
    results = in_order(work, range(1000), threads=4, ahead=10, name="test")
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="the third"):
        next(results)
    assert threading.active_count() == before


def test_buckets_are_read_by_more_threads() -> None:
    assert reading_threads("folder:s3://bucket/photos") >= 16
    assert reading_threads("folder:/photos") <= reading_threads("folder:s3://bucket/photos")


SLOW = """
    import sys, threading, time
    from pathlib import Path
    from finetune.data.scan import scan
    from tests.finetune.data.test_features import SCENES, MeanBackbone, fill
    begun = threading.Event()
    class Slow:
        location, examples, bad_records, classes = "slow:", SCENES.examples, (), None
        def read(self, index):
            if index == 5:
                begun.set()
                time.sleep(10)
            return SCENES.read(index)
    def tell():
        begun.wait()
        print("decoding", flush=True)
    threading.Thread(target=tell).start()
    try:
        if sys.argv[2] == "scan":
            scan(Slow(), range(11), 10**6)
        else:
            fill(Path(sys.argv[1]), MeanBackbone(), Slow())
    except KeyboardInterrupt:
        print("ended")
"""


@pytest.mark.parametrize("stage", ["scan", "features"])
def test_an_image_that_takes_ten_seconds_keeps_no_stopped_process(tmp_path: Path, stage: str) -> None:
    command = [sys.executable, "-c", textwrap.dedent(SLOW), str(tmp_path), stage]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "decoding\n"
            began = time.monotonic()
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
            assert time.monotonic() - began < 5.0  # 2 s on a machine that does nothing else
            assert process.stdout.read() == "ended\n"
        finally:
            process.kill()
