"""RetryingStore: what is called again, how often, and where a broken answer goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from zoo.errors import InvalidArgument, Unavailable
from zoo.store.faulty import METHODS, Fate, FaultPlan, FaultyStore
from zoo.store.memory import MemoryStore
from zoo.store.object_store import Leftover, NoAnswer, ObjectExists, ObjectMissing, ObjectStore, StoreBusy
from zoo.store.retrying import RetryingStore, RetryPolicy

QUICK = RetryPolicy(attempts=4, first_pause=0.0001, longest_pause=0.001)

Call = Callable[[ObjectStore, Path], object]
CALLS: dict[str, Call] = {
    "create_from_file": lambda store, folder: store.create_from_file("new", folder / "file"),
    "put": lambda store, _: store.put("new", b"123"),
    "read": lambda store, _: store.read("a/0"),
    "stream": lambda store, _: b"".join(store.stream("a/0")),
    "download": lambda store, folder: (store.download("a/0", folder / "copy"), (folder / "copy").read_bytes()),
    "stat": lambda store, _: store.stat("a/0").size,
    "list": lambda store, _: [info.key for info in store.list("a/")],
    "folders": lambda store, _: list(store.folders("")),
    "delete": lambda store, _: store.delete("a/0"),
    "leftovers": lambda store, _: list(store.leftovers("")),
    "remove_leftover": lambda store, _: store.remove_leftover(Leftover(key="a", id="1", size=1, modified=0)),
}


@pytest.fixture
def memory(tmp_path: Path) -> MemoryStore:
    store = MemoryStore()
    for number in range(5):
        store.create(f"a/{number}", bytes([number]) * 100)
    (tmp_path / "file").write_bytes(b"123")
    return store


def plan(*fates: Fate) -> FaultPlan:
    return FaultPlan(at=tuple(enumerate(fates, start=1)))


def test_every_method_is_tried_here_but_create() -> None:
    assert set(CALLS) == METHODS - {"create"}


@pytest.mark.parametrize(
    ("method", "fate"),
    [
        (method, fate)
        for method in CALLS
        for fate in (Fate.BUSY, Fate.SILENT, Fate.LOST, Fate.CUT)
        if (method, fate) != ("create_from_file", Fate.LOST)  # whose write it was, the caller tells: see below
    ],
)
def test_called_again_until_it_is_done(method: str, fate: Fate, memory: MemoryStore, tmp_path: Path) -> None:
    faulty = FaultyStore(memory, plan(fate, fate, fate))
    store = RetryingStore(faulty, QUICK)
    answer = CALLS[method](store, tmp_path)
    assert faulty.calls == {method: 4}
    assert store.retries == 3
    sound = MemoryStore()
    for info in memory.list("a/"):
        sound.create(info.key, memory.read(info.key))
    (tmp_path / "copy").unlink(missing_ok=True)
    assert answer == CALLS[method](sound, tmp_path)


@pytest.mark.parametrize("method", CALLS)
def test_the_last_fault_is_told_with_the_number_of_tries(method: str, memory: MemoryStore, tmp_path: Path) -> None:
    faulty = FaultyStore(memory, FaultPlan(busy=1.0))
    with pytest.raises(StoreBusy, match=r"tried 4 times in \d") as caught:
        CALLS[method](RetryingStore(faulty, QUICK), tmp_path)
    assert "tried 4 times" in caught.value.message
    assert faulty.calls == {method: 4}
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("fate", [Fate.BUSY, Fate.SILENT, Fate.LOST])
def test_create_is_made_once(fate: Fate, memory: MemoryStore) -> None:
    store = RetryingStore(FaultyStore(memory, plan(fate)), QUICK)
    with pytest.raises(StoreBusy if fate is Fate.BUSY else NoAnswer):
        store.create("new", b"1")
    assert [info.key for info in memory.list("new")] == (["new"] if fate is Fate.LOST else [])
    assert store.retries == 0


def test_a_lost_answer_shows(memory: MemoryStore, tmp_path: Path) -> None:
    store = RetryingStore(FaultyStore(memory, plan(Fate.LOST)), QUICK)
    with pytest.raises(ObjectExists):
        store.create_from_file("new", tmp_path / "file")
    assert memory.read("new") == b"123"


def test_answers_are_not_asked_for_again(memory: MemoryStore, tmp_path: Path) -> None:
    faulty = FaultyStore(memory, FaultPlan(at=((4, Fate.UNAVAILABLE),)))
    store = RetryingStore(faulty, QUICK)
    with pytest.raises(ObjectMissing):
        store.read("none")
    with pytest.raises(ObjectMissing):
        next(store.stream("none"))
    with pytest.raises(ObjectExists):
        store.create_from_file("a/0", tmp_path / "file")
    with pytest.raises(Unavailable, match="cannot be reached"):  # and not NoAnswer
        store.stat("a/0")
    assert sum(faulty.calls.values()) == 4


def test_a_broken_stream_goes_on_at_its_offset() -> None:
    class Counts(MemoryStore):
        given = 0

        def stream(self, key, *, start=0, length=None):  # type: ignore[no-untyped-def]
            for piece in super().stream(key, start=start, length=length):
                self.given += len(piece)
                yield piece

    memory, data = Counts(), bytes(range(256)) * 100_000
    memory.create("big", data)
    for start, length in ((0, None), (12_345, 20_000_000), (0, len(data))):
        faulty = FaultyStore(memory, FaultPlan(seed=5, cut=0.7))
        store, memory.given = RetryingStore(faulty, QUICK), 0
        expected = data[start:][:length]
        assert b"".join(store.stream("big", start=start, length=length)) == expected
        breaks = faulty.injected[Fate.CUT]
        assert breaks >= 1
        assert memory.given <= len(expected) + breaks * (1 << 20)  # at most a piece is asked for twice


def test_each_step_forward_brings_all_tries_back() -> None:
    """More faults than tries, but never so many at one place."""
    memory = MemoryStore()
    keys = [f"k/{number:04}" for number in range(400)]
    for key in keys:
        memory.create(key, b"")
    faulty = FaultyStore(memory, plan(*[Fate.CUT] * 30))
    patient = RetryPolicy(attempts=6, first_pause=0.00001, longest_pause=0.0001)
    assert [info.key for info in RetryingStore(faulty, patient).list("k/")] == keys
    assert faulty.injected == {Fate.CUT: 30}


def test_folders_and_leftovers_come_once_each() -> None:
    class Leaves(MemoryStore):
        def leftovers(self, prefix: str):  # type: ignore[no-untyped-def]
            return (Leftover(key="b", id=str(number * 7 % 50), size=None, modified=0) for number in range(50))

    memory = Leaves()
    for number in range(60):
        memory.create(f"f/{number:02}/x", b"")
    faulty = FaultyStore(memory, FaultPlan(seed=2, cut=0.9))
    store = RetryingStore(faulty, RetryPolicy(attempts=8, first_pause=0.00001))
    assert list(store.folders("f/")) == [f"{number:02}" for number in range(60)]
    assert [found.id for found in store.leftovers("")] == [found.id for found in memory.leftovers("")]
    assert faulty.injected[Fate.CUT] > 4


def test_pauses_grow_and_end_in_time(memory: MemoryStore) -> None:
    faulty = FaultyStore(memory, FaultPlan(silent=1.0))
    store = RetryingStore(faulty, RetryPolicy(attempts=10_000, first_pause=0.01, longest_pause=0.05, total_seconds=0.5))
    began = time.monotonic()
    with pytest.raises(NoAnswer):
        store.read("a/0")
    assert time.monotonic() - began < 5.0
    assert 5 < faulty.calls["read"] < 2_000  # with pauses of 25 ms on the average: about 20


@pytest.mark.parametrize("wrong", [{"attempts": 0}, {"first_pause": -1.0}, {"total_seconds": -0.1}])
def test_what_is_no_policy(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidArgument):
        RetryPolicy(**wrong)  # type: ignore[arg-type]


def test_one_attempt_is_one_call(memory: MemoryStore) -> None:
    faulty = FaultyStore(memory, FaultPlan(silent=1.0))
    with pytest.raises(NoAnswer):
        RetryingStore(faulty, RetryPolicy(attempts=1)).read("a/0")
    assert faulty.calls == {"read": 1}
