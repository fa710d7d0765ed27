"""Snapshots stand for the events before them, and are passed over when they don't."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.zoo.samples import FailingStore, faulty_store
from tests.zoo.test_log import FULL, events
from zoo.errors import PermissionDenied
from zoo.log import (
    AliasSet,
    Archived,
    CardUpdated,
    Change,
    Created,
    Deleted,
    Event,
    ModelState,
    Unarchived,
    Undeleted,
    VersionPublished,
    encode_event,
    fold,
)
from zoo.log_keys import event_key, snapshot_key
from zoo.model_logs import ModelLogs
from zoo.snapshots import DamagedSnapshot, NewerSnapshot, decode_snapshot, encode_snapshot
from zoo.store.local import LocalStore
from zoo.store.memory import MemoryStore
from zoo.store.object_store import ObjectStore

DIGESTS = st.integers(0, 99).map(lambda n: f"sha256:{n:064x}")


@st.composite
def logs(draw: st.DrawFn) -> list[Event]:
    """Logs that can be, with names taken anew."""
    changes: list[tuple[Change, int]] = [(Created(), 0)]  # and days passed before each
    last, first, deleted = 0, 1, False
    for _ in range(draw(st.integers(0, 25))):
        days = draw(st.sampled_from([0, 1, 31]))
        if deleted:
            again = days == 31 and draw(st.booleans())
            first = last + 1 if again else first
            changes.append((Created() if again else Undeleted(), days))
            deleted = False
            continue
        some = st.integers(first, last) if last >= first else st.nothing()
        change = draw(
            st.one_of(
                st.builds(VersionPublished, version=st.just(last + 1), digest=DIGESTS),
                st.builds(CardUpdated, digest=DIGESTS),
                st.just(Deleted()),
                st.builds(AliasSet, alias=st.sampled_from(["prod", "best"]), version=some),
                st.builds(Archived, version=some),
                st.builds(Unarchived, version=some),
            )
        )
        last += isinstance(change, VersionPublished)
        deleted = isinstance(change, Deleted)
        changes.append((change, days))
    log, passed = [], 0
    for event, (_, days) in zip(events(*(change for change, _ in changes)), changes, strict=True):
        passed += days
        log.append(event.model_copy(update={"time": event.time + timedelta(days=passed)}))
    return log


@given(logs(), st.data())
def test_any_snapshot_and_the_rest_is_the_whole(log: list[Event], data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(log)))
    snapshot = encode_snapshot(fold(ModelState(name="a/b"), log[:cut]))
    state = fold(decode_snapshot(snapshot, "key"), log[cut:])
    assert state == fold(ModelState(name="a/b"), log)
    assert encode_snapshot(decode_snapshot(snapshot, "key")) == snapshot


def test_damage_shows() -> None:
    data = encode_snapshot(fold(ModelState(name="m"), events(*FULL)))
    for at in range(0, len(data), 7):  # a flipped bit anywhere
        spoilt = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises((DamagedSnapshot, NewerSnapshot), match=r"snapshot/1\.json"):
            decode_snapshot(spoilt, "snapshot/1.json")
    for spoilt in (b"", b"null", b"[]", b"{}", data[:-1], b"[" * 100_000):
        with pytest.raises(DamagedSnapshot):
            decode_snapshot(spoilt, "k")


def test_newer_ones() -> None:
    value = json.loads(encode_snapshot(fold(ModelState(name="m"), events(*FULL))))
    with pytest.raises(NewerSnapshot, match="newer version") as caught:
        decode_snapshot(json.dumps(value | {"schema_version": 2, "more": 1}).encode(), "k")
    assert caught.value.hint == "upgrade modelzoo"


class TestInAStore:
    def written(self, store: ObjectStore, count: int) -> ModelState:
        state = ModelState(name="m")
        logs = ModelLogs(store)
        for number in range(count):
            change = VersionPublished(version=number, digest=f"sha256:{number:064x}") if number else Created()
            state, _ = logs.commit("m", lambda _, change=change: change)  # type: ignore[misc]
        return state

    def test_one_every_hundred_events(self) -> None:
        store = MemoryStore()
        state = self.written(store, 250)
        assert [info.key for info in store.list("models/m/snapshot/")] == [snapshot_key("m", n) for n in (100, 200)]
        counting = FailingStore(store, lambda *_: None)
        assert ModelLogs(counting).state("m") == state
        reads = [key for name, key in counting.calls if name == "read"]
        assert len(reads) == 52  # the snapshot, the event that it ends with, 50 after it
        assert ModelLogs(store).check("m") == []

    def test_bad_ones_are_passed_over_and_named(self) -> None:
        store = MemoryStore()
        state = self.written(store, 350)
        good = store.read(snapshot_key("m", 300))
        store.put(snapshot_key("m", 300), good[:-9])
        newer = json.loads(store.read(snapshot_key("m", 200))) | {"schema_version": 9}
        store.put(snapshot_key("m", 200), json.dumps(newer).encode())
        counting = FailingStore(store, lambda *_: None)
        assert ModelLogs(counting).state("m") == state
        assert sum(name == "read" for name, _ in counting.calls) == 3 + 1 + 250
        problems = ModelLogs(store).check("m")
        assert len(problems) == 2
        assert snapshot_key("m", 200) in problems[0]
        assert snapshot_key("m", 300) in problems[1]
        store.delete(snapshot_key("m", 100))
        assert ModelLogs(store).state("m") == state

    def test_one_that_is_sound_in_itself_but_of_another_log(self) -> None:
        """A store that was wiped but for its snapshots, and filled again."""
        store, other = MemoryStore(), MemoryStore()
        state = self.written(store, 150)
        self.written(other, 150)
        store.put(snapshot_key("m", 100), other.read(snapshot_key("m", 100)))
        assert ModelLogs(store).state("m") == state
        assert ["differs" in problem for problem in ModelLogs(store).check("m")] == [True]

    def test_one_of_another_model_or_of_another_event(self) -> None:
        store = MemoryStore()
        state = self.written(store, 150)
        snapshot = store.read(snapshot_key("m", 100))
        store.create(snapshot_key("m", 120), snapshot)
        store.create(snapshot_key("m", 900), snapshot)
        store.create("models/m/snapshot/x.json", b"")
        assert ModelLogs(store).state("m") == state
        problems = ModelLogs(store).check("m")
        assert len(problems) == 3
        assert "models/m/snapshot/x.json: no key" in problems[0]
        store.create(snapshot_key("n", 100), snapshot)
        assert ModelLogs(store).state("n") == ModelState(name="n")
        store.create(event_key("n", 1), encode_event(Event.new(seq=1, change=Created())))
        assert ModelLogs(store).state("n").versions == ()

    def test_a_snapshot_that_cannot_be_written_fails_no_commit(self) -> None:
        def fail(number: int, name: str, key: str, before: bool) -> None:
            if before and name == "create" and "/snapshot/" in key:
                raise PermissionDenied("no")

        store = MemoryStore()
        logs = ModelLogs(FailingStore(store, fail))
        for number in range(101):
            change = VersionPublished(version=number, digest=f"sha256:{number:064x}") if number else Created()
            logs.commit("m", lambda _, change=change: change)  # type: ignore[misc]
        assert (logs.counts.snapshots_failed, logs.counts.hints_failed) == (1, 0)
        assert len(ModelLogs(store).state("m").versions) == 100

    @pytest.mark.parametrize("kind", ["local", "memory"])
    def test_reading_under_faults(self, kind: str, tmp_path: Path) -> None:
        store = LocalStore(tmp_path) if kind == "local" else MemoryStore()
        state = self.written(store, 230)
        for seed in range(20):
            logs = ModelLogs(faulty_store(store, seed=seed))
            assert logs.state("m") == logs.state("m") == state
            assert logs.names() == ["m"]
            assert logs.check("m") == []
