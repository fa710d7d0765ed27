"""Hints of what was committed, and the id of a store."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.zoo.samples import FailingStore, faulty_store, new_catalog, no_pauses, version
from zoo.errors import PermissionDenied
from zoo.feed import hints, hour_of
from zoo.log import Created
from zoo.model_logs import ModelLogs
from zoo.store.memory import MemoryStore
from zoo.store_id import DamagedStoreId, made_store_id, store_id

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


def test_a_hint_for_every_commit(tmp_path: Path) -> None:
    store = MemoryStore()
    catalog = new_catalog(store, tmp_path)
    catalog.publish("team/m", *version(tmp_path))
    catalog.set_alias("team/m", "prod", "team/m@1")
    found = sorted(hints(store, LONG_AGO), key=lambda hint: hint.seq)
    assert [(hint.name, hint.seq) for hint in found] == [("team/m", 1), ("team/m", 2), ("team/m", 3)]
    assert [hint.event_id for hint in found] == [event.id for event in catalog.history("team/m")]
    assert {info.key for info in store.list("feed/")} == {f"feed/{hint.hour}/{hint.event_id}.json" for hint in found}
    assert [hint.seq for hint in hints(store, LONG_AGO, seen={found[0].event_id, found[2].event_id})] == [2]


def test_hours() -> None:
    store = MemoryStore()
    assert hour_of(datetime.fromisoformat("2026-03-04T01:30:00+02:00")) == "2026030323"
    for hour in ("2026010100", "2026010101", "2026010123", "2026010200"):
        store.create(f"feed/{hour}/{int(hour):032x}.json", b'{"name":"m","schema_version":1,"seq":1}')
    since = datetime(2026, 1, 1, 1, 59, tzinfo=UTC)
    assert [hint.hour for hint in hints(store, since)] == ["2026010101", "2026010123", "2026010200"]
    assert list(hints(store, since + timedelta(days=2))) == []


def test_what_is_no_hint_is_passed_over() -> None:
    store = MemoryStore()
    for number, data in enumerate((b"", b"{}", b'{"name":"../x","seq":1}', b'{"name":"m","seq":0}')):
        store.create(f"feed/2026010100/{number:032x}.json", data)
    store.create("feed/2026010100/other.json", b'{"name":"m","seq":1}')
    store.create(f"feed/2026010100/{9:032x}.json", b'{"name":"m","seq":3,"more":"of a later version"}')
    assert [hint.seq for hint in hints(store, LONG_AGO)] == [3]


def test_a_hint_that_cannot_be_written_fails_no_commit() -> None:
    def fail(number: int, name: str, key: str, before: bool) -> None:
        if before and key.startswith("feed/"):
            raise PermissionDenied("no")

    logs = ModelLogs(FailingStore(MemoryStore(), fail))
    state, event = logs.commit("m", lambda state: Created())
    assert event
    assert (state.seq, logs.counts.hints_failed) == (1, 1)


class TestStoreId:
    def test_made_once(self) -> None:
        store = MemoryStore()
        assert store_id(store) is None
        made = made_store_id(store)
        assert re.fullmatch("[0-9a-f]{32}", made)
        assert made_store_id(store) == store_id(store) == made
        assert store.read("store.json") == f'{{"id":"{made}","schema":1}}'.encode()

    def test_of_racing_makers_all_get_the_same(self) -> None:
        store = MemoryStore()
        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(lambda _: made_store_id(store), range(64)))) == 1

    def test_under_faults(self, monkeypatch: pytest.MonkeyPatch) -> None:
        no_pauses(monkeypatch)
        for seed in range(50):
            store = MemoryStore()
            made = made_store_id(faulty_store(store, seed=seed, rate=0.3))
            assert store_id(store) == made

    def test_the_first_publish_makes_it(self, tmp_path: Path) -> None:
        store = MemoryStore()
        catalog = new_catalog(store, tmp_path)
        assert catalog.list() == []
        assert store_id(store) is None
        catalog.publish("m", *version(tmp_path))
        assert store_id(store)

    @pytest.mark.parametrize("data", [b"", b"{}", b'{"id":"x","schema":1}', b'{"schema":2}'])
    def test_a_damaged_one(self, data: bytes) -> None:
        store = MemoryStore()
        store.create("store.json", data)
        with pytest.raises(DamagedStoreId, match=r"store\.json in memory://") as caught:
            store_id(store)
        assert "remove store.json" in (caught.value.hint or "")
