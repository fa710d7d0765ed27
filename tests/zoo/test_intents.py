"""Intents: there while a publish runs, gone when it is known to have ended, kept when it isn't."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.zoo.samples import Crash, FailingStore, new_catalog, no_pauses, version
from zoo import intents as intents_module
from zoo.errors import PermissionDenied, Unavailable
from zoo.intents import LIFE, HeldIntent, SweepUnderway, held_intent, intents
from zoo.model_logs import UnknownOutcome
from zoo.store.memory import MemoryStore
from zoo.sweep_marker import MARKERS, markers, write_marker
from zoo.transfer import MissingBlob, WrongBytes

A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64


def test_what_is_stored() -> None:
    store = MemoryStore()
    before = time.time()
    HeldIntent(store, frozenset({B, A}))
    (info,) = store.list("intents/")
    value = json.loads(store.read(info.key))
    assert (value["digests"], value["schema_version"], sorted(value)) == (
        [A, B],
        1,
        ["created", "digests", "expires", "schema_version"],
    )
    (found,) = intents(store)
    assert (found.key, found.digests) == (info.key, {A, B})
    assert before + LIFE <= found.expires <= time.time() + LIFE


def test_it_names_every_blob_and_the_manifest_while_a_publish_runs(tmp_path: Path) -> None:
    store = MemoryStore()
    named: set[frozenset[str] | None] = set()

    def look(number: int, name: str, key: str, before: bool) -> None:
        if name.startswith("create") and key.startswith(("blobs/", "manifests/", "models/")):
            (intent,) = intents(store)
            named.add(intent.digests)

    manifest, files = version(tmp_path)
    new_catalog(FailingStore(store, look), tmp_path).publish("m", manifest, files)
    assert named == {frozenset({manifest.digest(), *files})}
    assert list(intents(store)) == []


def test_a_card_has_one_too(tmp_path: Path) -> None:
    store = MemoryStore()
    new_catalog(store, tmp_path).publish("m", *version(tmp_path))
    seen: list[bool] = []

    def look(number: int, name: str, key: str, before: bool) -> None:
        if before and name == "create" and key.startswith(("blobs/", "models/")):
            seen.append(bool(list(intents(store))))

    assert new_catalog(FailingStore(store, look), tmp_path).set_card("m", b"text")
    assert seen == [True, True]
    assert list(intents(store)) == []


def test_a_refused_publish_leaves_none(tmp_path: Path) -> None:
    manifest, files = version(tmp_path)

    def refuse(number: int, name: str, key: str, before: bool) -> None:
        if before and key.startswith("manifests/"):
            raise PermissionDenied("no")

    store = MemoryStore()
    with pytest.raises(PermissionDenied):
        new_catalog(FailingStore(store, refuse), tmp_path).publish("m", manifest, files)
    assert list(intents(store)) == []
    with pytest.raises(MissingBlob):
        new_catalog(MemoryStore(), tmp_path).publish("m", manifest, {})
    files[manifest.components[0].digest].write_bytes(b"x")
    with pytest.raises(WrongBytes):
        new_catalog(store := MemoryStore(), tmp_path).publish("m", manifest, files)
    assert list(store.list("")) == []


@pytest.mark.parametrize("error", [Crash(), KeyboardInterrupt(), UnknownOutcome("?")])
def test_it_stays_when_nobody_knows_what_will_still_happen(error: BaseException) -> None:
    store = MemoryStore()
    with pytest.raises(type(error)), held_intent(store, frozenset({A})):
        raise error
    assert [intent.digests for intent in intents(store)] == [{A}]


def test_it_stays_after_a_commit_without_an_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_pauses(monkeypatch)

    def silent(number: int, name: str, key: str, before: bool) -> None:
        if before and name in ("create", "read") and key.endswith("/log/00000000000000000002.json"):
            raise Unavailable("no answer")

    store = MemoryStore()
    with pytest.raises(UnknownOutcome):
        new_catalog(FailingStore(store, silent), tmp_path).publish("m", *version(tmp_path))
    assert len(list(intents(store))) == 1


def test_one_that_cannot_be_removed_fails_nothing(tmp_path: Path) -> None:
    def refuse(number: int, name: str, key: str, before: bool) -> None:
        if before and name == "delete":
            raise PermissionDenied("no")

    store = MemoryStore()
    assert new_catalog(FailingStore(store, refuse), tmp_path).publish("m", *version(tmp_path)).version.number == 1
    assert len(list(intents(store))) == 1


def test_those_that_cannot_be_read() -> None:
    store = MemoryStore()
    for number, data in enumerate((b"", b"{}", b'{"schema_version":2,"digests":[],"created":1,"expires":2}')):
        store.create(f"intents/{number}.json", data)
    assert [intent.digests for intent in intents(store)] == [None] * 3


class TestMarkers:
    def test_they_come_back(self) -> None:
        store = MemoryStore()
        own = write_marker(store, [B, A])
        (found,) = markers(store)
        assert (found.key, found.digests) == (own.key, {A, B})
        assert found.condemns(frozenset({A}))
        assert not found.condemns(frozenset({"sha256:" + "c" * 64}))

    def test_one_that_cannot_be_read_may_condemn_anything(self) -> None:
        store = MemoryStore()
        store.create(f"{MARKERS}x.json", b"{")
        (found,) = markers(store)
        assert found.condemns(frozenset({A}))
        assert not found.is_expired(time.time())
        assert found.is_expired(time.time() + 901)

    def test_a_sweep_that_never_ends_is_not_waited_for_forever(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Markers one after another: each of them alive."""
        store, clock, began = MemoryStore(), [0.0], time.time()

        def sleep(seconds: float) -> None:
            clock[0] += 100
            marker = write_marker(store, [A])
            store._objects[marker.key] = (store._objects[marker.key][0], began + clock[0])

        monkeypatch.setattr(intents_module, "time", SimpleNamespace(sleep=sleep))
        monkeypatch.setattr(intents_module, "stopwatch", lambda: clock[0])
        intent = HeldIntent(store, frozenset({A}))
        write_marker(store, [A])
        with pytest.raises(SweepUnderway, match="gc/"):
            intent.wait_for_sweeps()
        assert 1000 < clock[0] < 3600
