"""Gc: what goes, what stays, and that a publish beside it never loses a blob."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.zoo.interleaving import Turns
from tests.zoo.samples import FailingStore, contents, new_catalog, version
from zoo import gc as gc_module
from zoo import intents, live_digests, sweep_marker, transfer
from zoo.cache import blob_key
from zoo.catalog import Catalog, Published
from zoo.feature_sets import feature_sets, mark_used
from zoo.gc import GcReport, gc
from zoo.intents import INTENTS, HeldIntent, held_intent
from zoo.live_digests import LiveDigests
from zoo.log import Created, Deleted, Event, VersionPublished, encode_event
from zoo.manifests import manifest_key
from zoo.store.local import LocalStore
from zoo.store.memory import MemoryStore
from zoo.sweep_marker import LIFE, MARKERS, write_marker

NO_GRACE = timedelta(0)
ALL_OLD = datetime.now(UTC) + timedelta(days=2)


@pytest.fixture(params=["local", "memory"])
def catalog(request: pytest.FixtureRequest, tmp_path: Path) -> Catalog:
    store = LocalStore(tmp_path / "store") if request.param == "local" else MemoryStore()
    return new_catalog(store, tmp_path)


def counts(report: GcReport) -> dict[str, int]:
    return {kind: tally.count for kind, tally in report.removed.items()}


class TestWhatGoes:
    def test_only_what_nothing_names(self, catalog: Catalog, tmp_path: Path) -> None:
        catalog.publish("m", *version(tmp_path, head=1))
        catalog.set_card("m", b"# card")
        catalog.set_card("m", b"# another card")
        before = contents(catalog.store)
        catalog.store.create(blob_key("sha256:" + "a" * 64), b"12345")
        catalog.store.create(manifest_key("sha256:" + "b" * 64), b"{}")
        planned = gc(catalog, dry_run=True, now=ALL_OLD)
        assert counts(planned) == {"blobs": 1, "manifests": 1}
        assert planned.bytes == 7
        assert len(contents(catalog.store)) == len(before) + 2
        done = gc(catalog, now=ALL_OLD)
        assert done.removed == planned.removed
        assert done.kept["named"] == 6
        assert contents(catalog.store) == before
        assert counts(gc(catalog, now=ALL_OLD)) == {}

    def test_a_dry_run_writes_nothing(self, tmp_path: Path) -> None:
        store = FailingStore(MemoryStore(), lambda *_: None)
        new_catalog(store, tmp_path).publish("m", *version(tmp_path))
        store.calls.clear()
        gc(new_catalog(store, tmp_path), dry_run=True)
        assert {name for name, _ in store.calls} <= {"list", "read", "stat", "folders", "leftovers", "download"}

    def test_what_is_young_stays(self, catalog: Catalog) -> None:
        catalog.store.create(blob_key("sha256:" + "a" * 64), b"12345")
        assert counts(gc(catalog)) == {}
        assert gc(catalog).kept == {"young": 1}
        soon = datetime.now(UTC) + timedelta(hours=23)
        assert counts(gc(catalog, now=soon)) == {}
        assert counts(gc(catalog, now=soon + timedelta(hours=2))) == {"blobs": 1}

    def test_what_an_intent_names_stays(self, catalog: Catalog) -> None:
        digest = "sha256:" + "a" * 64
        catalog.store.create(blob_key(digest), b"12345")
        with held_intent(catalog.store, frozenset({digest})):
            report = gc(catalog, grace=NO_GRACE)
            assert (counts(report), report.kept) == ({}, {"intent": 1})
        assert list(catalog.store.list(INTENTS)) == []
        assert counts(gc(catalog, grace=NO_GRACE)) == {"blobs": 1}

    def test_an_intent_ends(self, catalog: Catalog) -> None:
        digest = "sha256:" + "a" * 64
        catalog.store.create(blob_key(digest), b"12345")
        HeldIntent(catalog.store, frozenset({digest}))  # of a process that was killed
        assert counts(gc(catalog, grace=NO_GRACE, now=datetime.now(UTC) + timedelta(hours=23))) == {}
        assert counts(gc(catalog, now=datetime.now(UTC) + timedelta(hours=25))) == {"blobs": 1, "intents": 1}
        assert list(catalog.store.list("intents/")) == []

    def test_models_deleted_long_ago(self, catalog: Catalog, tmp_path: Path) -> None:
        catalog.publish("kept", *version(tmp_path, head=1))
        manifest, files = version(tmp_path, head=2)
        catalog.publish("m", manifest, files)
        catalog.delete("m")
        now = datetime.now(UTC)
        assert counts(gc(catalog, now=now + timedelta(days=30, hours=23))) == {"hints": 5}
        assert counts(gc(catalog, now=now + timedelta(days=31, hours=1))) == {"blobs": 2, "manifests": 1}
        assert catalog.open_component(catalog.get("kept"), "head").exists()
        assert len(catalog.history("m")) == 3  # the log stays: its numbers stay used

    def test_a_wrong_clock_of_the_deleter_does_not_matter(self, catalog: Catalog, tmp_path: Path) -> None:
        catalog.publish("m", *version(tmp_path))
        event = Event.new(seq=3, change=Deleted()).model_copy(update={"time": datetime(2020, 1, 1, tzinfo=UTC)})
        catalog.store.create("models/m/log/00000000000000000003.json", encode_event(event))
        assert counts(gc(catalog, now=datetime.now(UTC) + timedelta(days=2))) == {}

    def test_what_interrupted_work_left(self, tmp_path: Path) -> None:
        store = LocalStore(tmp_path / "store")
        catalog = new_catalog(store, tmp_path)
        catalog.publish("m", *version(tmp_path))
        for place in ("blobs/sha256/aa", "models/m/log", "jobs/1", "features/x"):
            (tmp_path / "store" / place).mkdir(parents=True, exist_ok=True)
            (tmp_path / "store" / place / ".tmp-0123").write_bytes(b"half")
        store.create("probe/abc/1", b"x")
        store.create("jobs/1/spec.json", b"{}")
        marker = write_marker(store, ["sha256:" + "a" * 64])
        assert counts(gc(catalog)) == {}
        assert counts(gc(catalog, now=ALL_OLD)) == {"leftovers": 3, "markers": 1, "probes": 1}
        assert not list(store.list(MARKERS)), marker
        assert sorted(path.parent.name for path in (tmp_path / "store").rglob(".tmp-*")) == ["1"]
        assert store.read("jobs/1/spec.json") == b"{}"

    def test_old_snapshots_and_hints(self, catalog: Catalog) -> None:
        digest = "sha256:" + "a" * 64
        catalog.logs.commit("m", lambda state: Created())
        for number in range(1, 400):
            catalog.logs.commit("m", lambda state, n=number: VersionPublished(version=n, digest=digest))  # type: ignore[misc]
        catalog.store.put(manifest_key(digest), b"")  # refuses the sweep, not the rest
        report = gc(catalog, now=datetime.now(UTC) + timedelta(days=8))
        assert counts(report) == {"snapshots": 2, "hints": 400}
        snapshots = [info.key[-8:-5] for info in catalog.store.list("models/m/snapshot/")]
        assert snapshots == ["300", "400"]
        assert new_catalog(catalog.store, Path("unused")).logs.state("m").seq == 400


class TestFeatures:
    """Vectors that machines share: a set goes as a whole, 30 days after its last use."""

    def store(self, *, days: dict[str, float]) -> MemoryStore:
        store = MemoryStore()
        for name, age in days.items():
            for file in ("key.json", "a" * 64 + ".npy", "b" * 64 + ".npy"):
                key = f"features/{name}/{file}"
                store.create(key, b"12345")
                store._objects[key] = (b"12345", store._objects[key][1] - age * 24 * 3600)
        return store

    def test_what_nobody_uses_goes(self, tmp_path: Path) -> None:
        store = self.store(days={"old": 31, "new": 29, "used": 90})
        mark_used(store, "used")
        before = contents(store)
        planned = gc(new_catalog(store, tmp_path), dry_run=True)
        assert contents(store) == before
        assert counts(planned) == {"features": 3}
        [unused] = planned.feature_sets
        assert (unused.name, unused.objects, unused.bytes) == ("old", 3, 15)
        assert timedelta(days=30) < datetime.now(UTC) - unused.last_use < timedelta(days=32)
        done = gc(new_catalog(store, tmp_path))
        assert done.removed == planned.removed
        assert sorted(found.name for found in feature_sets(store)) == ["new", "used"]
        assert set(contents(store)) == {key for key in before if not key.startswith("features/old/")}
        assert counts(gc(new_catalog(store, tmp_path), features_kept=timedelta(days=28))) == {"features": 3}

    def test_a_use_since_it_was_listed_saves_it(self, tmp_path: Path) -> None:
        store = self.store(days={"old": 31})

        def use(number: int, name: str, key: str, before: bool) -> None:
            if not before and name == "list" and key == "features/old/":
                mark_used(store, "old")

        assert counts(gc(new_catalog(FailingStore(store, use), tmp_path))) == {}
        assert len(contents(store)) == 4

    def test_the_key_goes_last(self, tmp_path: Path) -> None:
        """One that is cut short leaves a set that says what it is of."""
        store = self.store(days={"old": 31})

        class Cut(Exception):
            pass

        def cut(number: int, name: str, key: str, before: bool) -> None:
            if before and name == "delete" and key.endswith(".json") and key.startswith("features/"):
                raise Cut

        with pytest.raises(Cut):
            gc(new_catalog(FailingStore(store, cut), tmp_path))
        assert list(contents(store)) == ["features/old/key.json"]


class TestRefusals:
    """What can't be read may name anything, so nothing goes."""

    @pytest.fixture
    def garbage(self, catalog: Catalog, tmp_path: Path) -> str:
        catalog.publish("m", *version(tmp_path, head=1))
        catalog.publish("other", *version(tmp_path, head=2))
        key = blob_key("sha256:" + "a" * 64)
        catalog.store.create(key, b"12345")
        return key

    def refused(self, catalog: Catalog, garbage: str, tmp_path: Path) -> str:
        catalog = new_catalog(catalog.store, tmp_path / "another")
        for dry_run in (True, False):
            report = gc(catalog, dry_run=dry_run, now=ALL_OLD)
            assert counts(report) == {}
            (problem,) = report.problems
        assert catalog.store.read(garbage) == b"12345"
        return problem

    def test_a_damaged_log(self, catalog: Catalog, garbage: str, tmp_path: Path) -> None:
        catalog.store.put("models/m/log/00000000000000000002.json", b"{")
        assert "model m: " in self.refused(catalog, garbage, tmp_path)

    def test_a_log_with_a_hole(self, catalog: Catalog, garbage: str, tmp_path: Path) -> None:
        catalog.store.delete("models/m/log/00000000000000000001.json")
        assert "'m' has a hole" in self.refused(catalog, garbage, tmp_path)

    def test_a_newer_log(self, catalog: Catalog, garbage: str, tmp_path: Path) -> None:
        newer = encode_event(Event.new(seq=3, change=Deleted())).replace(b"DELETED", b"RENAMED")
        catalog.store.create("models/m/log/00000000000000000003.json", newer)
        assert "newer version" in self.refused(catalog, garbage, tmp_path)

    def test_a_missing_manifest(self, catalog: Catalog, garbage: str, tmp_path: Path) -> None:
        catalog.store.delete(manifest_key(catalog.get("m").digest))
        assert "m@1: its manifest" in self.refused(catalog, garbage, tmp_path)

    def test_a_damaged_intent(self, catalog: Catalog, garbage: str, tmp_path: Path) -> None:
        catalog.store.create("intents/x.json", b"{")
        assert "intents/x.json cannot be read" in self.refused(catalog, garbage, tmp_path)

    def test_a_name_that_is_none_here(self, catalog: Catalog, garbage: str, tmp_path: Path) -> None:
        catalog.store.create("models/a%20b/log/00000000000000000001.json", b"{}")
        assert "models/a%20b/" in self.refused(catalog, garbage, tmp_path)


class TestWhileItRuns:
    def test_it_stops_at_half_of_its_markers_life(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Time passes with each delete: what there is no time for is condemned anew."""
        clock = [0.0]
        store = MemoryStore()
        at: list[tuple[float, str]] = []

        def tick(number: int, name: str, key: str, before: bool) -> None:
            if before and name == "create" and key.startswith(MARKERS):
                at.append((clock[0], key))
            if not before and name == "delete" and key.startswith("blobs/"):
                assert clock[0] - at[-1][0] <= LIFE / 2
                clock[0] += LIFE / 5

        monkeypatch.setattr(sweep_marker, "stopwatch", lambda: clock[0])
        monkeypatch.setattr(gc_module, "_THREADS", 1)
        for number in range(10):
            store.create(blob_key(f"sha256:{number:064x}"), b"x")
        report = gc(new_catalog(FailingStore(store, tick), tmp_path), now=ALL_OLD)
        assert counts(report) == {"blobs": 10}
        assert len(at) > 3
        assert list(store.list(MARKERS)) == []

    def test_what_was_sent_again_since_it_was_condemned_stays(self, tmp_path: Path) -> None:
        """By somebody who doesn't know of markers, or no longer of this one."""
        store, digest = MemoryStore(), "sha256:" + "a" * 64
        key = blob_key(digest)
        store.create(key, b"12345")
        store._objects[key] = (b"12345", store._objects[key][1] - 2 * 24 * 3600)

        def send(number: int, name: str, about: str, before: bool) -> None:
            if before and name == "stat" and about == key:
                store.put(key, b"12345")

        report = gc(new_catalog(FailingStore(store, send), tmp_path))
        assert (counts(report), report.kept) == ({}, {"late": 1})
        assert store.read(key) == b"12345"

    @pytest.mark.parametrize("named", [False, True])
    def test_a_delete_that_came_too_late_is_told_of(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: bool
    ) -> None:
        """The process is stopped between its last look and the delete, until nobody waits for it any more; then a
        publish skips the blob, since it is there."""
        manifest, files = version(tmp_path)
        digest, store, clock = manifest.components[0].digest, MemoryStore(), [0.0]
        store.create(blob_key(digest), files[digest].read_bytes())

        def stop(number: int, name: str, key: str, before: bool) -> None:
            if before and name == "delete" and key == blob_key(digest):
                clock[0] += LIFE + 1
                for marker in list(store.list(MARKERS)):
                    store._objects[marker.key] = (store._objects[marker.key][0], marker.modified - LIFE - 1)
                if named:
                    new_catalog(store, tmp_path / "publisher").publish("m", manifest, files)

        monkeypatch.setattr(sweep_marker, "stopwatch", lambda: clock[0])
        report = gc(new_catalog(FailingStore(store, stop), tmp_path), grace=NO_GRACE)
        assert report.removed["blobs"].count == 1
        assert len(report.problems) == named
        for problem in report.problems:
            assert blob_key(digest) in problem
            assert f"publish again what names {digest}" in problem

    def test_a_publish_waits_for_a_sweep_that_condemns_what_it_needs(self, tmp_path: Path) -> None:
        store = MemoryStore()
        manifest, files = version(tmp_path)
        other = write_marker(store, ["sha256:" + "f" * 64])
        marker = write_marker(store, [manifest.components[0].digest])
        done = threading.Event()

        def publish() -> None:
            new_catalog(store, tmp_path).publish("m", manifest, files)
            done.set()

        thread = threading.Thread(target=publish)
        thread.start()
        assert not done.wait(0.3)
        assert list(store.list("blobs/")) == []
        store.delete(marker.key)
        thread.join(10)
        assert done.is_set()
        assert [info.key for info in store.list(MARKERS)] == [other.key]

    def test_the_marker_of_a_killed_sweep_expires(self, tmp_path: Path) -> None:
        store = MemoryStore()
        manifest, files = version(tmp_path)
        marker = write_marker(store, [manifest.components[0].digest])
        store._objects[marker.key] = (store._objects[marker.key][0], datetime.now(UTC).timestamp() - LIFE - 1)
        assert new_catalog(store, tmp_path).publish("m", manifest, files).version.number == 1

    def test_a_publish_that_takes_long_renews_its_intent(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = [0.0]
        seen: list[int] = []

        def tick(number: int, name: str, key: str, before: bool) -> None:
            if before and name == "create" and key.startswith("manifests/"):
                clock[0] += 0 if seen else 13 * 3600
                seen.append(len(list(store.list(INTENTS))))

        store = MemoryStore()
        monkeypatch.setattr(intents, "stopwatch", lambda: clock[0])
        new_catalog(FailingStore(store, tick), tmp_path).publish("m", *version(tmp_path))
        assert seen == [1, 2]  # looked again under the second intent
        assert list(store.list(INTENTS)) == []


class NoIntent(HeldIntent):
    """A publish that doesn't say what it relies on."""

    def renew(self) -> None:
        self._started = 0.0

    def is_past_half(self) -> bool:
        return False


class NoWaiting(HeldIntent):
    """A publish that doesn't look for sweep markers."""

    def wait_for_sweeps(self) -> None:
        pass


class LogsBeforeIntents(LiveDigests):
    """A sweep that reads the logs first."""

    def read_intents(self, now: float) -> None:
        super().read_logs(now)
        super().read_intents(now)

    def read_logs(self, now: float) -> None:
        pass


class Once(LiveDigests):
    """A sweep that doesn't look again after it has condemned."""

    def __init__(self, catalog: Catalog) -> None:
        super().__init__(catalog)
        self._asked: set[str] = set()

    def read_intents(self, now: float) -> None:
        if "intents" not in self._asked:
            super().read_intents(now)
        self._asked.add("intents")

    def read_logs(self, now: float) -> None:
        if "logs" not in self._asked:
            super().read_logs(now)
        self._asked.add("logs")


Schedule = tuple[str, str, dict[str, list[int]]]
PUBLISH_CALLS = 24  # at least as many as there are
SWEEP_CALLS = 21  # up to the end of the sweep itself


class TestBesideAPublish:
    """A publish that skips blobs because they are there, and a sweep that is about to delete them, in every order of
    their calls with one change of turns each way; and with one change more where the sweep first stops between having
    listed and condemning."""

    @pytest.fixture(autouse=True)
    def _one_thread_each(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in (gc_module, live_digests, transfer):
            monkeypatch.setattr(module, "_THREADS", 1)

    def store(self, tmp_path: Path) -> MemoryStore:
        """Every blob of a version, and its manifest, left by a publish that was killed."""
        manifest, files = version(tmp_path)
        store = MemoryStore()
        for part in (*manifest.components, *manifest.assets):
            store.create(blob_key(part.digest), files[part.digest].read_bytes())
        store.create(manifest_key(manifest.digest()), manifest.canonical_bytes())
        return store

    def schedules(self, tmp_path: Path) -> Iterator[Schedule]:
        alone = FailingStore(self.store(tmp_path), lambda *_: None)
        gc(new_catalog(alone, tmp_path / "other"), grace=NO_GRACE)
        assert [n for n, (_, key) in enumerate(alone.calls) if key.startswith(MARKERS)][-3] < SWEEP_CALLS
        condemns = [n for n, (name, key) in enumerate(alone.calls) if name == "create" and key.startswith(MARKERS)][-1]
        for then in range(1, PUBLISH_CALLS):
            for again in range(condemns + 1, SWEEP_CALLS):
                yield "sweep", "publish", {"sweep": [condemns, again], "publish": [then]}
        for at in range(PUBLISH_CALLS):
            for then in range(1, SWEEP_CALLS):
                yield "publish", "sweep", {"publish": [at], "sweep": [then]}
        for at in range(SWEEP_CALLS):
            for then in range(1, PUBLISH_CALLS):
                yield "sweep", "publish", {"sweep": [at], "publish": [then]}

    def outcomes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Schedule, object, bool]]:
        """For each schedule: what became of the publish, and whether what it published is whole."""
        manifest, files = version(tmp_path)
        for schedule in self.schedules(tmp_path):
            store, (first, second, pauses) = self.store(tmp_path), schedule
            turns = Turns(first, second, pauses=pauses)
            pass_on = SimpleNamespace(sleep=lambda _, t=turns: t.pass_on("publish"))
            monkeypatch.setattr(intents, "time", pass_on)
            publisher = new_catalog(turns.store("publish", store), tmp_path)
            sweeper = new_catalog(turns.store("sweep", store), tmp_path / "other")
            results = turns.run(
                {
                    "publish": lambda c=publisher: c.publish("m", manifest, files),
                    "sweep": lambda c=sweeper: gc(c, grace=NO_GRACE),
                }
            )
            assert isinstance(results["sweep"], GcReport), (schedule, results)
            needed = {blob_key(part.digest) for part in (*manifest.components, *manifest.assets)}
            yield schedule, results["publish"], needed | {manifest_key(manifest.digest())} <= set(contents(store))

    def test_nothing_is_ever_lost(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        count = 0
        for schedule, published, whole in self.outcomes(tmp_path, monkeypatch):
            assert isinstance(published, Published), schedule
            assert whole, schedule
            count += 1
        assert count > 900

    @pytest.mark.parametrize("broken", [NoIntent, NoWaiting, LogsBeforeIntents, Once])
    def test_each_step_is_needed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: type[HeldIntent] | type[LiveDigests]
    ) -> None:
        """Without it some schedule ends with a version that names what is gone."""
        module, name = (intents, "HeldIntent") if issubclass(broken, HeldIntent) else (gc_module, "LiveDigests")
        monkeypatch.setattr(module, name, broken)
        assert any(
            isinstance(published, Published) and not whole
            for _, published, whole in self.outcomes(tmp_path, monkeypatch)
        )
