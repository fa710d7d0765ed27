"""Commits: races, lost answers and crashes leave the old state or the new one, never less and never a gap."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.zoo.samples import Crash, FailingStore, contents, faulty_store, new_catalog, no_pauses, version
from zoo import model_logs
from zoo.cache import blob_key
from zoo.errors import PermissionDenied, ResourceExhausted, Unavailable, ZooError
from zoo.log import CardUpdated, Created, DamagedLog, Event, ModelState, VersionPublished, decode_event, encode_event
from zoo.manifest import Lineage
from zoo.model_logs import BrokenStore, ModelLogs, UnknownOutcome
from zoo.store.local import LocalStore
from zoo.store.memory import MemoryStore
from zoo.store.object_store import NoAnswer, ObjectExists, ObjectInfo, ObjectStore, StoreBusy

DIGEST = "sha256:" + "a" * 64


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    no_pauses(monkeypatch)


def is_event(name: str, key: str) -> bool:
    return name == "create" and "/log/" in key


class TestLostAnswers:
    """A create whose outcome isn't known: it may have been done, not done, or somebody else's may have."""

    def publish(self, tmp_path: Path, fail: Callable[[int, str, str, bool], None]) -> tuple[ObjectStore, list[int]]:
        store = MemoryStore()
        catalog = new_catalog(FailingStore(store, fail), tmp_path)
        manifest, files = version(tmp_path)
        published = catalog.publish("m", manifest, files)
        assert not published.existing
        return store, [v.number for v in new_catalog(store, tmp_path).versions("m")]

    @pytest.mark.parametrize("before", [True, False], ids=["never arrived", "answer lost"])
    @pytest.mark.parametrize(
        "error", [Unavailable("timeout"), OSError("reset by peer")], ids=["unavailable", "oserror"]
    )
    def test_one_version_whatever_happened(self, tmp_path: Path, before: bool, error: Exception) -> None:
        failed: set[str] = set()

        def fail(number: int, name: str, key: str, is_before: bool) -> None:
            if is_event(name, key) and is_before is before and key not in failed:
                failed.add(key)
                raise error

        store, versions = self.publish(tmp_path, fail)
        assert len(failed) == 2
        assert versions == [1]
        assert len(contents(store, "models/")) == 2

    def test_a_store_that_sends_twice_meets_its_own_write(self, tmp_path: Path) -> None:
        """What an S3 client does: the first answer is lost, it sends again by itself and gets 412."""

        class SendsTwice(MemoryStore):
            def create(self, key: str, data: bytes) -> None:
                super().create(key, data)
                if "/log/" in key:
                    super().create(key, data)

        store = SendsTwice()
        published = new_catalog(store, tmp_path).publish("m", *version(tmp_path))
        assert (published.version.number, published.existing) == (1, False)
        assert len(contents(store, "models/")) == 2

    def test_reading_fails_too_for_a_while(self, tmp_path: Path) -> None:
        failures = iter(range(5))

        def fail(number: int, name: str, key: str, is_before: bool) -> None:
            if "/log/0" in key and name in ("create", "read") and not is_before and next(failures, None) is not None:
                raise Unavailable("no answer")

        _, versions = self.publish(tmp_path, fail)
        assert versions == [1]

    def test_a_store_that_stays_silent(self, tmp_path: Path) -> None:
        def fail(number: int, name: str, key: str, is_before: bool) -> None:
            if "/log/0" in key:
                raise Unavailable("no answer")

        with pytest.raises(UnknownOutcome, match=r"event 1 of model 'm' \(CREATED\)") as caught:
            self.publish(tmp_path, fail)
        assert caught.value.hint == "zoo history m"

    @pytest.mark.parametrize("error", [PermissionDenied("read-only"), ResourceExhausted("full")])
    def test_a_refusal_is_passed_on(self, tmp_path: Path, error: Exception) -> None:
        def fail(number: int, name: str, key: str, is_before: bool) -> None:
            if is_event(name, key) and is_before:
                raise error

        with pytest.raises(type(error)):
            self.publish(tmp_path, fail)

    def test_a_refusal_after_the_fact_is_none(self, tmp_path: Path) -> None:
        """E.g. the directory can't be fsynced because the disk filled up right after the link was made."""

        def fail(number: int, name: str, key: str, is_before: bool) -> None:
            if is_event(name, key) and not is_before:
                raise ResourceExhausted("full")

        _, versions = self.publish(tmp_path, fail)
        assert versions == [1]

    def test_a_late_write_of_somebody_else(self, tmp_path: Path) -> None:
        """Our create fails without effect, and when we look, a rival has the place: we come next."""
        store = MemoryStore()
        rival = version(tmp_path, head=9)
        done: list[str] = []

        def fail(number: int, name: str, key: str, is_before: bool) -> None:
            if is_event(name, key) and is_before and not done:
                done.append(key)
                new_catalog(store, tmp_path).publish("m", *rival)
                raise Unavailable("timeout")

        mine = version(tmp_path, head=1)
        published = new_catalog(FailingStore(store, fail), tmp_path).publish("m", *mine)
        assert published.version.number == 2
        digests = [v.digest for v in new_catalog(store, tmp_path).versions("m")]
        assert digests == [rival[0].digest(), mine[0].digest()]

    def test_told_to_try_again_the_same_event_goes_out_again(self, tmp_path: Path) -> None:
        """Nothing was written, so there is nothing to look for: one create more, no read of the key."""
        busy = iter(range(5))

        def fail(number: int, name: str, key: str, is_before: bool) -> None:
            if is_event(name, key) and is_before and next(busy, None) is not None:
                raise StoreBusy("slow down")

        store = FailingStore(MemoryStore(), fail)
        _, event = ModelLogs(store).commit("m", lambda state: Created())
        assert event is not None
        key = "models/m/log/00000000000000000001.json"
        assert store.calls.count(("create", key)) == 6
        assert ("read", key) not in store.calls
        assert ModelLogs(store).state("m").head == event.id

    def test_told_so_for_ever_it_says_that_nothing_was_written(self) -> None:
        def fail(number: int, name: str, key: str, is_before: bool) -> None:
            if is_event(name, key) and is_before:
                raise StoreBusy("slow down")

        with pytest.raises(StoreBusy, match="slow down; event 1 of model 'm' was not written"):
            ModelLogs(FailingStore(MemoryStore(), fail)).commit("m", lambda state: Created())

    @pytest.mark.parametrize("then", [StoreBusy("slow down"), PermissionDenied("no"), Unavailable("gone")])
    def test_one_silence_among_the_answers_leaves_it_unknown(self, then: ZooError) -> None:
        """The first try may still arrive, whatever is said to the next ones."""
        failures = itertools.chain([NoAnswer("timeout")], itertools.repeat(then))

        def fail(number: int, name: str, key: str, is_before: bool) -> None:
            if is_event(name, key) and is_before:
                raise next(failures)

        with pytest.raises(UnknownOutcome, match="event 1 of model 'm'"):
            ModelLogs(FailingStore(MemoryStore(), fail)).commit("m", lambda state: Created())

    def test_a_lost_race_is_one_read_and_the_next_number(self) -> None:
        store = MemoryStore()
        rival = ModelLogs(store)

        def fail(number: int, name: str, key: str, is_before: bool) -> None:
            if is_before and (name, key) == ("create", "models/m/log/00000000000000000001.json"):
                rival.commit("m", lambda state: Created() if not state.seq else None)

        mine = FailingStore(store, fail)
        seen: list[int] = []

        def change(state: ModelState) -> CardUpdated:
            seen.append(state.seq)
            return CardUpdated(digest=DIGEST)

        state, event = ModelLogs(mine).commit("m", change)
        assert (seen, state.seq, event and event.seq) == ([0, 1], 2, 2)
        assert state == ModelLogs(store).state("m")

    @pytest.mark.parametrize("seed", range(5))
    def test_threads_under_faults(self, tmp_path: Path, seed: int) -> None:
        store = MemoryStore()
        samples = [version(tmp_path, head=number) for number in range(30)]

        def publish(worker: int) -> list[int]:
            catalog = new_catalog(faulty_store(store, seed=100 * seed + worker), tmp_path / str(worker))
            return [catalog.publish("m", *samples[worker * 5 + i]).version.number for i in range(5)]

        with ThreadPoolExecutor(6) as pool:
            numbers = [number for mine in pool.map(publish, range(6)) for number in mine]
        assert sorted(numbers) == list(range(1, 31))
        assert {v.digest for v in new_catalog(store, tmp_path).versions("m")} == {m.digest() for m, _ in samples}


class TestStatesInMemory:
    def test_a_warm_state_costs_one_listing(self) -> None:
        store = FailingStore(MemoryStore(), lambda *_: None)
        logs, rival = ModelLogs(store), ModelLogs(store)
        logs.commit("a/b", lambda state: Created())
        logs.commit("a/b", lambda state: VersionPublished(version=1, digest=DIGEST))
        store.calls.clear()
        state = logs.state("a/b")
        assert store.calls == [("list", "models/a%2Fb/log/")]
        rival.commit("a/b", lambda state: CardUpdated(digest=DIGEST))
        store.calls.clear()
        assert (logs.state("a/b").seq, state.seq) == (3, 2)
        assert store.calls == [("list", "models/a%2Fb/log/"), ("read", "models/a%2Fb/log/00000000000000000003.json")]

    def test_on_a_disk_it_costs_two_looks_however_long_the_log(self, tmp_path: Path) -> None:
        store = FailingStore(LocalStore(tmp_path), lambda *_: None)
        logs = ModelLogs(store)
        for _ in range(30):
            logs.commit("m", lambda state: CardUpdated(digest=DIGEST) if state.seq else Created())
        store.calls.clear()
        assert logs.state("m").seq == 30
        assert store.calls == [("read", f"models/m/log/{seq:020}.json") for seq in (30, 31)]
        ModelLogs(store).commit("m", lambda state: CardUpdated(digest=DIGEST))
        assert logs.state("m") == ModelLogs(store).state("m")

    def test_they_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(model_logs, "_CACHED_EVENTS", 100)
        store = FailingStore(MemoryStore(), lambda *_: None)
        logs = ModelLogs(store)
        for number in range(30):
            logs.commit(f"m{number}", lambda state: Created())
        held = []
        for number in range(30):
            store.calls.clear()
            assert logs.state(f"m{number}").seq == 1
            held.append(len(store.calls) == 1)
        assert sum(held) <= 100 // 8
        store.calls.clear()
        assert logs.state("m29").seq == 1
        assert len(store.calls) == 1  # what was used last is still there

    def test_threads_share_them(self) -> None:
        logs = ModelLogs(MemoryStore())
        with ThreadPoolExecutor(8) as pool:
            list(
                pool.map(
                    lambda n: logs.commit(
                        f"m{n % 3}", lambda state: CardUpdated(digest=DIGEST) if state.seq else Created()
                    ),
                    range(150),
                )
            )
        assert [logs.state(f"m{n}").seq for n in range(3)] == [50, 50, 50]


class TestRaces:
    def test_a_rival_with_the_same_manifest(self, tmp_path: Path) -> None:
        store = MemoryStore()
        manifest, files = version(tmp_path)

        def fail(number: int, name: str, key: str, is_before: bool) -> None:
            if is_event(name, key) and is_before and not contents(store, "models/"):
                new_catalog(store, tmp_path).publish("m", manifest, files)

        published = new_catalog(FailingStore(store, fail), tmp_path).publish("m", manifest, files)
        assert published.existing
        assert published.version.number == 1
        assert len(new_catalog(store, tmp_path).versions("m")) == 1

    def test_threads(self, tmp_path: Path) -> None:
        catalog = new_catalog(MemoryStore(), tmp_path)
        samples = [version(tmp_path, head=number) for number in range(40)]
        barrier = threading.Barrier(8)

        def publish(worker: int) -> list[int]:
            barrier.wait(timeout=60)
            return [catalog.publish("m", *samples[worker * 5 + i]).version.number for i in range(5)]

        with ThreadPoolExecutor(8) as pool:
            numbers = [number for mine in pool.map(publish, range(8)) for number in mine]
        assert sorted(numbers) == list(range(1, 41))
        assert {v.digest for v in catalog.versions("m")} == {manifest.digest() for manifest, _ in samples}

    def test_processes(self, tmp_path: Path) -> None:
        """4 processes publish 10 versions each to one name: 1 to 40, without gap, loss or double."""
        url, start = (tmp_path / "store").as_uri(), str(time.time() + 1.5)
        workers = [
            subprocess.Popen(
                [sys.executable, "-c", PUBLISHER, url, str(tmp_path / me), me, start, "10"],
                stdout=subprocess.PIPE,
                text=True,
            )
            for me in "abcd"
        ]
        told: dict[int, str] = {}
        for worker in workers:
            out, _ = worker.communicate(timeout=120)
            assert worker.returncode == 0
            told |= {int(number): job for number, job in (line.split() for line in out.splitlines())}
        versions = new_catalog(LocalStore(tmp_path / "store"), tmp_path).versions("team/race")
        assert [v.number for v in versions] == list(range(1, 41))
        assert {v.number: v.manifest.lineage.job for v in versions} == told
        assert set(told.values()) == {f"{me}{number}" for me in "abcd" for number in range(10)}

    @pytest.mark.parametrize("known", [0, 2])
    def test_a_listing_beside_running_commits(self, known: int) -> None:
        """A disk's listing may show the later of two files that were made meanwhile, and not the earlier."""

        class PassesOver(MemoryStore):
            def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
                seen = super().list(prefix, start_after=start_after)
                return (info for info in seen if not info.key.endswith(("04.json", "05.json", "07.json")))

        full, store = MemoryStore(), PassesOver()
        store._objects = full._objects
        logs, reader = ModelLogs(full), ModelLogs(store)
        for number in range(8):
            logs.commit("m", lambda state: CardUpdated(digest=DIGEST) if state.seq else Created())
            if number + 1 == known:
                assert reader.state("m").seq == known
        assert reader.state("m") == logs.state("m")
        assert [event.seq for event in reader.events("m", 3)] == [4, 5, 6, 7, 8]
        store.delete("models/m/log/00000000000000000004.json")
        with pytest.raises(DamagedLog, match="hole: after event 3 comes 6"):
            ModelLogs(store).state("m")
        assert ["hole: after event 3 comes 6" in problem for problem in ModelLogs(store).check("m")] == [True]

    def test_a_store_that_does_not_list_what_it_holds(self, tmp_path: Path) -> None:
        class Forgets(MemoryStore):
            def list(self, prefix: str, *, start_after: str = ""):  # type: ignore[no-untyped-def]
                return iter([])

        store = Forgets()
        store.create("models/m/log/00000000000000000001.json", encode_event(Event.new(seq=1, change=Created())))
        with pytest.raises(BrokenStore, match="holds event 1"):
            ModelLogs(store).commit("m", lambda state: Created())


# Publishes `count` versions that differ by their lineage's job; the files are the same for all.
PUBLISHER = """
import sys, time
from pathlib import Path
from tests.zoo.samples import new_catalog, version
from zoo.manifest import Lineage
from zoo.store import open_store
url, folder, me, start, count = sys.argv[1:]
catalog = new_catalog(open_store(url), Path(folder))
manifest, files = version(Path(folder))
while time.time() < float(start):
    time.sleep(0.001)
for n in range(int(count)):
    sample = manifest.model_copy(update={"lineage": Lineage(job=f"{me}{n}")})
    published = catalog.publish("team/race", sample, files)
    print(published.version.number, sample.lineage.job, flush=True)
"""


class TestCrashes:
    def test_a_crash_at_any_call_leaves_old_or_new(self, tmp_path: Path) -> None:
        """The process ends before or after each call to the store, in turn, until a run gets through."""
        old, new = version(tmp_path, head=1), version(tmp_path, head=2)
        crashes = 0
        for before in (True, False):
            for at in range(1, 100):
                store = LocalStore(tmp_path / f"store-{before}-{at}")
                new_catalog(store, tmp_path).publish("m", *old)

                def fail(number: int, name: str, key: str, is_before: bool, at: int = at, when: bool = before) -> None:
                    if number == at and is_before is when:
                        raise Crash

                try:
                    new_catalog(FailingStore(store, fail), tmp_path).publish("m", *new)
                except Crash:
                    crashes += 1
                else:
                    break
                catalog = new_catalog(store, tmp_path)
                digests = [v.digest for v in catalog.versions("m")]
                assert digests in ([old[0].digest()], [old[0].digest(), new[0].digest()])
                # Whatever is named is whole, and doing it again completes it.
                for named in catalog.versions("m"):
                    assert catalog.open_component(named, "head").exists()
                assert catalog.publish("m", *new).version.number == 2
            else:
                pytest.fail("the run never got through")
        assert crashes > 15

    def test_the_order_of_writes(self, tmp_path: Path) -> None:
        store = FailingStore(MemoryStore(), lambda *_: None)
        manifest, files = version(tmp_path)
        new_catalog(store, tmp_path).publish("m", manifest, files)
        writes = [key for name, key in store.calls if name.startswith("create")]
        blobs = {blob_key(part.digest) for part in (*manifest.components, *manifest.assets)}
        assert writes[0] == "store.json"
        assert writes[1].startswith("intents/")
        assert set(writes[2:5]) == blobs
        assert writes[5].startswith("manifests/")
        assert [key.split("/")[0] for key in writes[6:]] == ["models", "feed", "models", "feed"]
        assert store.calls[-1] == ("delete", writes[1])

    def test_killed_while_publishing(self, tmp_path: Path) -> None:
        """kill -9 in the middle of many publishes: every version named is whole, and publishing goes on."""
        store = LocalStore(tmp_path / "store")
        told = 0
        for kill in range(3):
            command = [sys.executable, "-c", PUBLISHER, store.url, str(tmp_path / str(kill)), f"{kill}-", "0", "100000"]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(3 + kill)]
            time.sleep(0.003 * kill)
            process.send_signal(signal.SIGKILL)
            lines += process.stdout.readlines()
            process.stdout.close()
            process.wait(timeout=30)
            told += sum(line.endswith("\n") for line in lines)
            catalog = new_catalog(LocalStore(tmp_path / "store"), tmp_path)
            versions = catalog.versions("team/race")
            assert [v.number for v in versions] == list(range(1, len(versions) + 1))
            assert told <= len(versions) <= told + kill + 1  # at most one a kill was made and not yet told
        manifest, files = version(tmp_path / "after", lineage=Lineage(job="after"))
        assert catalog.publish("team/race", manifest, files).version.number == len(versions) + 1


class TestKeys:
    def test_an_event_under_another_number(self) -> None:
        store = MemoryStore()
        event = Event.new(seq=2, change=VersionPublished(version=1, digest=DIGEST))
        store.create("models/m/log/00000000000000000001.json", encode_event(event))
        with pytest.raises(Exception, match="holds event 2"):
            ModelLogs(store).state("m")

    def test_a_file_in_the_log_that_is_no_event(self) -> None:
        store = MemoryStore()
        store.create("models/m/log/1.json", b"{}")
        with pytest.raises(Exception, match="not that of an event"):
            ModelLogs(store).state("m")

    def test_names_are_stored_without_slashes(self) -> None:
        store = MemoryStore()
        logs = ModelLogs(store)
        for name in ("a", "a/b", "a.b/c", "ab"):
            logs.commit(name, lambda state: Created())
        assert logs.names() == ["a", "a.b/c", "a/b", "ab"]
        assert [state.seq for state in logs.states()] == [1, 1, 1, 1]
        stored = store.read("models/a%2Fb/log/00000000000000000001.json")
        assert decode_event(stored, "k").change == Created()
        with pytest.raises(ObjectExists):
            store.create("models/a%2Fb/log/00000000000000000001.json", b"")
