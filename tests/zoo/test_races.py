"""Processes that publish to one name at the same time: every version is there once, whatever the store does."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.zoo.samples import new_catalog
from zoo.store import open_store
from zoo.verify import verify

PUBLISHER = """
import sys
from pathlib import Path
from tests.zoo.samples import new_catalog, version
from zoo.store import open_store
from zoo.store.faulty import FaultPlan, FaultyStore
from zoo.store.retrying import RetryingStore

url, folder, me, count, rate = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5])
store = open_store(url)
if rate:
    store = RetryingStore(FaultyStore(store, FaultPlan.mixed(rate, seed=me)))
catalog = new_catalog(store, folder)
for number in range(count):
    manifest, files = version(folder / str(me), metrics={"validation": {"number": me * 10_000 + number}})
    print(catalog.publish("m", manifest, files).version.number, flush=True)
"""


def race(url: str, folder: Path, *, processes: int, publishes: int, rate: float) -> None:
    begun = time.monotonic()
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, url, str(folder), str(me), str(publishes), str(rate)],
            stdout=subprocess.PIPE,
            text=True,
        )
        for me in range(processes)
    ]
    told = [process.communicate(timeout=280)[0].split() for process in running]
    seconds = time.monotonic() - begun
    assert [process.returncode for process in running] == [0] * processes
    total = processes * publishes
    print(f"{url}: {processes} x {publishes} with {rate:.0%} faults: {seconds:.1f} s with the starts")
    assert sorted(int(number) for numbers in told for number in numbers) == list(range(1, total + 1))
    catalog = new_catalog(open_store(url), folder / "reader")
    versions = catalog.versions("m")
    assert [found.number for found in versions] == list(range(1, total + 1))
    assert len({found.digest for found in versions}) == total
    assert catalog.logs.check("m") == []


@pytest.mark.parametrize("rate", [0.0, 0.05])
def test_a_few_processes(tmp_path: Path, rate: float) -> None:
    race((tmp_path / "store").as_uri(), tmp_path, processes=4, publishes=10, rate=rate)
    assert verify(new_catalog(open_store((tmp_path / "store").as_uri()), tmp_path)).problems == ()


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.0, 0.05])
def test_eight_processes_on_a_disk(tmp_path: Path, rate: float) -> None:
    race((tmp_path / "store").as_uri(), tmp_path, processes=8, publishes=250, rate=rate)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.0, 0.05])
def test_four_processes_on_a_bucket(tmp_path: Path, s3_url: str, rate: float) -> None:
    race(s3_url, tmp_path, processes=4, publishes=25, rate=rate)
