"""FaultyStore: each fault is what the seam's contract calls it, and a plan can be repeated."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest

from zoo.atomic_file import FileTaken
from zoo.errors import InvalidArgument, Unavailable
from zoo.store.faulty import METHODS, Crash, CrashAt, Fate, FaultPlan, FaultyStore
from zoo.store.local import LocalStore
from zoo.store.memory import MemoryStore
from zoo.store.object_store import NoAnswer, ObjectExists, ObjectMissing, StoreBusy

T = TypeVar("T")


def with_fates(*fates: Fate) -> tuple[MemoryStore, FaultyStore]:
    memory = MemoryStore()
    memory.create("old", b"0123456789")
    return memory, FaultyStore(memory, FaultPlan(at=tuple(enumerate(fates, start=1))))


@pytest.mark.parametrize(
    ("fate", "error", "written"),
    [
        (Fate.BUSY, StoreBusy, False),
        (Fate.SILENT, NoAnswer, False),
        (Fate.UNAVAILABLE, Unavailable, False),
        (Fate.CUT, NoAnswer, False),
        (Fate.LOST, NoAnswer, True),
        (Fate.DUPLICATED, ObjectExists, True),
        (Fate.DELAYED, None, True),
        (Fate.NONE, None, True),
    ],
)
def test_what_becomes_of_a_create(fate: Fate, error: type[Exception] | None, written: bool, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1")
    memory, store = with_fates(fate, fate)
    for call in (
        lambda: store.create("new", b"1"),
        lambda: store.create_from_file("new-file", tmp_path / "file"),
    ):
        if error is None:
            call()
        else:
            with pytest.raises(error) as caught:
                call()
            assert isinstance(caught.value, NoAnswer) == (error is NoAnswer)
    assert [info.key for info in memory.list("new")] == (["new", "new-file"] if written else [])
    assert store.injected == ({} if fate is Fate.NONE else {fate: 2})
    assert store.calls == {"create": 1, "create_from_file": 1}


def test_an_answer_that_is_lost_may_be_any() -> None:
    _, store = with_fates(*[Fate.LOST] * 4)
    for call in (
        lambda: store.create("old", b"1"),
        lambda: store.read("none"),
        lambda: store.stat("old"),
        lambda: list(store.list("")),
    ):
        with pytest.raises(NoAnswer):
            call()


def test_a_write_that_is_sent_twice() -> None:
    memory, store = with_fates(*[Fate.DUPLICATED] * 3)
    store.put("old", b"2")
    store.delete("old")
    with pytest.raises(ObjectMissing):
        store.read("old")
    assert list(memory.list("")) == []


def until_cut(items: Iterator[T]) -> list[T]:
    got = []
    while True:
        try:
            got.append(next(items))
        except NoAnswer:
            return got


def test_a_cut_answer_is_the_beginning_of_a_whole_one(tmp_path: Path) -> None:
    memory = MemoryStore()
    memory.create("big", bytes(range(256)) * 40_000)
    for number in range(30):
        memory.create(f"l/{number:02}", b"")
    store = FaultyStore(memory, FaultPlan(seed=3, cut=1.0))
    lengths = set()
    for _ in range(20):
        got = b"".join(until_cut(store.stream("big")))
        keys = [info.key for info in until_cut(store.list("l/"))]
        assert memory.read("big").startswith(got)
        assert keys == [f"l/{number:02}" for number in range(len(keys))]
        lengths |= {len(got), len(keys)}
    assert len(lengths) > 8
    for call in (lambda: store.read("big"), lambda: store.download("big", tmp_path / "copy")):
        with pytest.raises(NoAnswer):
            call()
    assert not (tmp_path / "copy").exists()


def test_a_download_never_takes_a_file_of_someone_else(tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    _, store = with_fates(Fate.LOST, Fate.CUT, Fate.DUPLICATED, Fate.SILENT)
    for error in (FileTaken, FileTaken, FileTaken, NoAnswer):
        with pytest.raises(error):
            store.download("old", tmp_path / "mine")
        assert (tmp_path / "mine").read_bytes() == b"mine"


def test_the_same_seed_is_the_same_day() -> None:
    def day(seed: int) -> list[str]:
        memory = MemoryStore()
        memory.create("a", b"1")
        store = FaultyStore(memory, FaultPlan.mixed(0.5, seed=seed))
        ends = []
        for _ in range(60):
            try:
                store.read("a")
                ends.append("read")
            except (NoAnswer, StoreBusy) as error:
                ends.append(error.message)
        return ends

    assert day(1) == day(1)
    assert day(1) != day(2)
    plan = FaultPlan.mixed(0.5, seed=1)  # and what one method meets doesn't hang on calls of others
    assert [plan.fate("read", n) for n in range(60)] != [plan.fate("stat", n) for n in range(60)]


def test_rates_are_shares_of_the_calls() -> None:
    plan = FaultPlan(seed=9, busy=0.1, lost=0.2, delayed=0.05)
    fates = [plan.fate("read", number) for number in range(20_000)]
    for fate, rate in ((Fate.BUSY, 0.1), (Fate.LOST, 0.2), (Fate.DELAYED, 0.05), (Fate.NONE, 0.65), (Fate.CUT, 0.0)):
        assert abs(fates.count(fate) / len(fates) - rate) < 0.015


def test_only_the_methods_of_the_plan() -> None:
    memory, plan = MemoryStore(), FaultPlan(silent=1.0, methods=frozenset({"stat"}))
    store = FaultyStore(memory, plan)
    store.create("a", b"1")
    assert store.read("a") == b"1"
    with pytest.raises(NoAnswer):
        store.stat("a")
    assert store.calls == {"stat": 1}


def test_counts_of_many_threads() -> None:
    memory = MemoryStore()
    memory.create("a", b"1")
    store = FaultyStore(memory, FaultPlan.mixed(0.3, seed=4))

    def read(_: int) -> bool:
        try:
            return store.read("a") == b"1"
        except (NoAnswer, StoreBusy):
            return False

    with ThreadPoolExecutor(8) as pool:
        good = sum(pool.map(read, range(2_000)))
    assert store.calls == {"read": 2_000}
    fates = [FaultPlan.mixed(0.3, seed=4).fate("read", number) for number in range(1, 2_001)]
    assert good == sum(fate in (Fate.NONE, Fate.DUPLICATED) for fate in fates)
    assert sum(store.injected.values()) == sum(fate is not Fate.NONE for fate in fates)


def test_delays_are_bounded() -> None:
    memory = MemoryStore()
    memory.create("a", b"1")
    store = FaultyStore(memory, FaultPlan(delayed=1.0, delay_seconds=0.02))
    began = time.monotonic()
    for _ in range(20):
        store.read("a")
    assert 0.05 < time.monotonic() - began < 5.0  # 20 times 10 ms on the average
    assert store.injected == {Fate.DELAYED: 20}


@pytest.mark.parametrize(
    "wrong", [{"busy": -0.1}, {"busy": 0.6, "lost": 0.6}, {"cut": 1.5}, {"methods": frozenset({"stat", "rename"})}]
)
def test_what_is_no_plan(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        FaultPlan(**wrong)  # type: ignore[arg-type]


class TestCrash:
    @pytest.mark.parametrize("when", ["before", "after"])
    def test_the_call_is_done_or_not(self, when: str) -> None:
        memory = MemoryStore()
        store = FaultyStore(memory, FaultPlan(crash=CrashAt(call=2, when=when)))  # type: ignore[arg-type]
        store.create("a", b"1")
        with pytest.raises(Crash):
            store.create("b", b"2")
        assert [info.key for info in memory.list("")] == (["a", "b"] if when == "after" else ["a"])
        with pytest.raises(Crash):  # who is gone makes no further calls, not to clean up either
            store.delete("a")
        assert memory.read("a") == b"1"

    def test_in_a_listing(self) -> None:
        memory = MemoryStore()
        memory.create("a", b"1")
        with pytest.raises(Crash):
            FaultyStore(memory, FaultPlan(crash=CrashAt(call=1))).list("")
        listing = FaultyStore(memory, FaultPlan(crash=CrashAt(call=1, when="after"))).list("")
        assert next(listing).key == "a"
        with pytest.raises(Crash):
            next(listing)

    def test_by_signal(self, tmp_path: Path) -> None:
        code = """
import sys
from zoo.store import open_store
from zoo.store.faulty import CrashAt, FaultPlan, FaultyStore
store = FaultyStore(open_store(sys.argv[1]), FaultPlan(crash=CrashAt(call=2, when="after", how="kill")))
for key in "abc":
    store.create(key, b"1")
"""
        done = subprocess.run([sys.executable, "-c", code, tmp_path.as_uri() + "/store"], check=False)
        assert done.returncode == -signal.SIGKILL
        assert [info.key for info in LocalStore(tmp_path / "store").list("")] == ["a", "b"]


def test_readers_come_through_the_store(tmp_path: Path) -> None:
    local = LocalStore(tmp_path / "store")
    local.create("a", b"1")
    assert FaultyStore(local, FaultPlan.none()).local_path("a") is None
    assert FaultyStore(local, FaultPlan.none(), local_paths=True).local_path("a") == tmp_path / "store/a"
    assert FaultyStore(local, FaultPlan.none()).url == local.url


def test_every_method_is_covered() -> None:
    public = {name for name in vars(FaultyStore) if not name.startswith("_")}
    assert public - {"url", "store", "calls", "injected", "local_path"} == METHODS
