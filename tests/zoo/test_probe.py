"""The probe of a bucket: sound stores pass, each broken promise is named, and what was found sound is remembered."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.zoo.broken_stores import ChecksThenWrites, ListLags, Overwrites, WalksFolders
from tests.zoo.samples import faulty_store
from zoo.pauses import Pauses
from zoo.store import open_store
from zoo.store import probe as probe_module
from zoo.store.local import LocalStore
from zoo.store.memory import MemoryStore
from zoo.store.object_store import NoAnswer, ObjectExists, StoreBusy
from zoo.store.probe import ReadOnlyStore, UnsoundStore, probe, require_sound
from zoo.store.s3.errors import NotAllowed


class IgnoresRanges(MemoryStore):
    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        return super().read(key)


class ReadsLag(MemoryStore):
    """Replaced objects show late."""

    def put(self, key: str, data: bytes) -> None:
        if not any(info.key == key for info in self.list(key)):
            super().put(key, data)


class KeepsDeleted(MemoryStore):
    def delete(self, key: str) -> None:
        self.stat(key)


class Unanswering(MemoryStore):
    """Sound, but some answers are lost and some calls refused for now."""

    calls = 0

    def create(self, key: str, data: bytes) -> None:
        if "/race-" in key:
            self.calls += 1
            if self.calls % 3 == 0:
                raise StoreBusy(key)
            if self.calls % 3 == 1:
                super().create(key, data)
                raise NoAnswer(key)
        super().create(key, data)


class ReadOnly(MemoryStore):
    def create(self, key: str, data: bytes) -> None:
        raise NotAllowed(f"cannot write {key}: access denied")

    put = create


BROKEN = {
    Overwrites: "a second create of an object was accepted",
    ChecksThenWrites: "not honoured in a race",
    ListLags: "not complete and in order",
    WalksFolders: "not complete and in order",
    IgnoresRanges: "gives other bytes",
    ReadsLag: "gives the older bytes",
    KeepsDeleted: "deleted object can still be read",
}


def cached(root: Path) -> list[Path]:
    return sorted(path for path in (root / "probes").glob("*") if not path.name.startswith(".tmp-"))


def test_a_bucket_is_sound_and_left_clean(s3_url: str, tmp_path: Path) -> None:
    store = open_store(s3_url)
    report = probe(store)
    assert report.faults == ()
    assert (report.races, report.left_behind) == (6, 0)
    assert report.seconds < 20
    assert list(store.list("")) == []
    require_sound(store, tmp_path, "id-1")
    (record,) = cached(tmp_path)
    assert json.loads(record.read_bytes())["endpoint"] == os.environ["AWS_ENDPOINT_URL_S3"]


@pytest.mark.parametrize("kind", [MemoryStore, Unanswering])
def test_sound_stores(kind: type[MemoryStore]) -> None:
    report = probe(kind())
    assert report.is_sound, report.faults


def test_a_local_disk_is_sound(tmp_path: Path) -> None:
    assert probe(LocalStore(tmp_path / "store")).is_sound


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_each_broken_promise_is_named(kind: type[MemoryStore], tmp_path: Path) -> None:
    store = kind()
    assert any(BROKEN[kind] in fault for fault in probe(store).faults)
    for _ in range(2):  # a failed probe isn't remembered, neither way
        with pytest.raises(UnsoundStore, match=BROKEN[kind]) as caught:
            require_sound(store, tmp_path, "id")
        assert "If-None-Match" in (caught.value.hint or "")
    assert cached(tmp_path) == []


class NeverDeletes(MemoryStore):
    def delete(self, key: str) -> None:
        raise NotAllowed(f"cannot delete {key}: access denied")


def test_a_bucket_that_only_takes_is_refused_and_cleaning_up_does_not_hide_why() -> None:
    with pytest.raises(NotAllowed, match="cannot delete"):
        probe(NeverDeletes())


def test_a_sound_store_is_remembered_for_a_while(tmp_path: Path) -> None:
    store = MemoryStore()
    require_sound(store, tmp_path, "id-1")
    (record,) = cached(tmp_path)

    def probed_again(store_id: str | None = "id-1") -> bool:
        before = record.read_bytes(), len(cached(tmp_path))
        require_sound(store, tmp_path, store_id)
        return (record.read_bytes(), len(cached(tmp_path))) != before

    assert not probed_again()
    assert probed_again("id-2")  # the bucket was emptied and made anew
    assert probed_again(None)
    for age in (8 * 24 * 3600, -3600):
        record.write_text(json.dumps(json.loads(record.read_bytes()) | {"time": time.time() - age}))
        assert probed_again()
        assert not probed_again()
    for damage in (b"", b"{", b"[]", b'{"time": "x"}', b'{"time": 1e99}', b"\xff"):
        record.write_bytes(damage)
        assert probed_again(), damage


def test_a_read_only_bucket_is_refused_for_writing(tmp_path: Path) -> None:
    with pytest.raises(ReadOnlyStore, match="may not write") as caught:
        require_sound(ReadOnly(), tmp_path, "id")
    assert caught.value.code == "PERMISSION_DENIED"
    assert cached(tmp_path) == []


class WinnerHearsThatItLost(MemoryStore):
    """A layer below sends a write again whose answer was lost, and meets its own."""

    def create(self, key: str, data: bytes) -> None:
        super().create(key, data)
        if "/race-" in key:
            raise ObjectExists(key)


class NothingArrives(MemoryStore):
    """The first requests of each race are lost on their way."""

    def __init__(self, until: int) -> None:
        super().__init__()
        self.until = until
        self.tried: Counter[str] = Counter()

    def create(self, key: str, data: bytes) -> None:
        if "/race-" in key:
            self.tried[key] += 1
            if self.tried[key] <= self.until:
                raise NoAnswer(key)
        super().create(key, data)


class PutsArriveTwice(MemoryStore):
    """One put whose answer was lost is sent again, and the first of the two arrives after the next put."""

    late: bytes | None = None
    done = False

    def put(self, key: str, data: bytes) -> None:
        super().put(key, data)
        if self.late is not None:
            super().put(key, self.late)
            self.late = None
        elif not self.done and data == b"1":
            self.late, self.done = data, True
            raise NoAnswer(key)


@pytest.mark.parametrize(
    "make", [WinnerHearsThatItLost, lambda: NothingArrives(4), PutsArriveTwice], ids=["told lost", "nothing", "twice"]
)
def test_lost_answers_say_nothing_about_a_store(make: Callable[[], MemoryStore]) -> None:
    report = probe(make())
    assert report.is_sound, report.faults


def test_a_store_that_never_answers_is_not_called_unsound() -> None:
    with pytest.raises(NoAnswer, match="races for one key"):
        probe(NothingArrives(10**6))


class LosesThePut(MemoryStore):
    def put(self, key: str, data: bytes) -> None:
        super().put(key, data)
        raise NoAnswer(key)


def test_a_lost_answer_of_a_put_is_settled_by_reading() -> None:
    assert probe(LosesThePut()).is_sound


def test_a_faulty_network_never_makes_a_sound_store_unsound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_module, "Pauses", lambda **_: Pauses(first=0.0001, longest=0.0001))
    answered = 0
    for seed in range(150):
        try:
            report = probe(faulty_store(MemoryStore(), seed=seed, rate=0.15))
        except (NoAnswer, StoreBusy):
            continue  # that is said, and nothing remembered
        answered += 1
        assert report.is_sound, (seed, report.faults)
    assert answered > 100
