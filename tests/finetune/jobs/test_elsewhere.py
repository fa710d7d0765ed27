"""Jobs on a store that isn't on this disk: several machines, each with a queue and a data home of its own."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from finetune.jobs import store_lease, supervisor
from finetune.jobs.adopt import adopt_abandoned, read_job, stored_job_json, stored_log, tell_cancelled
from finetune.jobs.cluster import CHIEF
from finetune.jobs.folder import JobFolder
from finetune.jobs.job import Job, JobHeld, JobState, StaleFence
from finetune.jobs.mirroring import MirrorPace
from finetune.jobs.owner import Owner
from finetune.jobs.queue import JobQueue
from finetune.jobs.store_lease import StoreLease, holder, newest_claim, open_jobs, read_record
from finetune.jobs.submit import UnfinishedWithAnotherSpec, submit_or_resume
from finetune.jobs.supervisor import run_job
from finetune.jobs.tables import default_queue_url
from finetune.spec import JobSpec
from tests.finetune.jobs.conftest import make_spec
from tests.finetune.jobs.test_supervisor import HASTY, SLEEP, Roles
from zoo.catalog import Catalog, open_catalog
from zoo.errors import InvalidArgument, ZooError
from zoo.store.faulty import FaultPlan, FaultyStore
from zoo.store.memory import MemoryStore

PACE = MirrorPace(every=0.02, heartbeat=0.05, lease=60.0, grace=5.0, leaving=5.0)
QUICK = replace(HASTY, mirror=PACE)
ME = Owner.of_this_process()
ELSEWHERE = replace(ME, user="anna", host="elsewhere", place="another-boot", pid=7)
GONE = replace(ME, started=ME.started - 1)

FAIL = """put('error.json', {'code': 'INVALID_ARGUMENT', 'reason': 'Bad', 'message': 'bad'})
print('said by the chief', flush=True)
sys.exit(1)"""


class Machine:
    """A data home with its queue."""

    def __init__(self, home: Path, store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home = home
        self.store_url = store_url
        self._patch = monkeypatch
        self._queues: list[JobQueue] = []

    @property
    def queue(self) -> JobQueue:
        self._patch.setenv("MODELZOO_HOME", str(self.home))
        if not self._queues or not self.home.exists():
            self._queues.append(JobQueue(default_queue_url(self.store_url)))
        return self._queues[-1]

    @property
    def store(self) -> MemoryStore:
        return MemoryStore.named(self.store_url.removeprefix("memory://"))

    def submit(self, **options: object) -> Job:
        given = {"spec": make_spec(), "store": self.store} | options
        return submit_or_resume(self.queue, **given)  # type: ignore[arg-type]

    def run(self, job: Job, roles: Roles, **options: object) -> Job:
        given = {"patience": QUICK, "launch": roles} | options
        return run_job(self.queue, job.id, store_url=self.store_url, **given)  # type: ignore[arg-type]

    def folder(self, job: Job) -> JobFolder:
        return JobFolder(self.home / "jobs" / job.id)

    def close(self) -> None:
        for queue in self._queues:
            queue.close()


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Machine]]:
    made: list[Machine] = []

    def machine(name: str) -> Machine:
        made.append(Machine(tmp_path / name, f"memory://{tmp_path.name}-{id(made)}", monkeypatch))
        return made[-1]

    yield machine
    for each in made:
        each.close()


def mirrored(machine: Machine, job: Job) -> dict[str, bytes]:
    prefix = f"jobs/{job.id}/"
    return {info.key.removeprefix(prefix): machine.store.read(info.key) for info in machine.store.list(prefix)}


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_when_a_job_has_ended_the_store_has_all_of_it(machines: Callable[[str], Machine]) -> None:
    a = machines("a")
    job = a.submit()
    ended = a.run(job, Roles([FAIL]))
    assert ended.state is JobState.FAILED
    there = mirrored(a, job)
    local = a.folder(job).root
    for name in ("spec.json", "error.json", "logs/chief.log"):
        assert there[name] == (local / name).read_bytes()
    assert b"said by the chief" in b"".join(stored_log(a.store, job.id, "chief"))
    record = read_record(a.store, job.id)
    assert record is not None
    assert (record.state, record.claim, record.error) == (JobState.FAILED, 1, dict(ended.error or {}))
    assert list(open_jobs(a.store)) == []


def test_while_it_runs_the_store_follows(machines: Callable[[str], Machine]) -> None:
    a = machines("a")
    job, stop = a.submit(), threading.Event()
    seen: list[dict[str, object]] = []

    def watch() -> None:
        until(lambda: "progress.json" in mirrored(a, job) and read_job(a.store, job.id))
        until(lambda: (found := read_job(a.store, job.id)) and found.state is JobState.RUNNING)
        found = read_job(a.store, job.id)
        assert found is not None
        seen.append(stored_job_json(a.store, found))
        stop.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    ended = a.run(job, Roles([SLEEP]), stop=stop)
    watcher.join()
    assert ended.state is JobState.QUEUED
    assert seen[0]["state"] == "RUNNING"
    assert seen[0]["progress"] == {"phase": "training", "step": 1}
    assert seen[0]["owner"] == str(ME)
    assert seen[0].keys() == ended.to_json().keys()


def test_another_machine_goes_on_with_the_same_job_and_the_first_then_knows(
    machines: Callable[[str], Machine],
) -> None:
    a, b = machines("a"), machines("b")
    save = "put('prepared/kept.json', {'by': 'a'}); sys.exit(75)"
    job = a.run(a.submit(), Roles([save]))
    assert job.state is JobState.QUEUED

    taken = b.submit()
    assert taken.id == job.id
    check = "assert json.loads((root / 'prepared/kept.json').read_text()) == {'by': 'a'}; put('prepared/more.json', {})"
    ended = b.run(taken, Roles([f"{check}; {FAIL}"]))
    assert ended.state is JobState.FAILED
    assert ended.error is not None
    assert ended.error["reason"] == "Bad"
    assert any("fetched" in event.message for event in b.queue.events(job.id))

    # a still has its own, older folder; what b did must not be lost
    again = a.run(a.submit(), Roles(["assert (root / 'prepared/more.json').exists(); sys.exit(75)"]))
    assert (again.id, again.state) == (job.id, JobState.QUEUED)
    assert newest_claim(a.store, job.id) == 3


def test_a_lost_disk_is_fetched_again_from_the_store(machines: Callable[[str], Machine]) -> None:
    a = machines("a")
    job = a.run(a.submit(), Roles(["put('prepared/kept.json', {}); sys.exit(75)"]))
    a.close()
    shutil.rmtree(a.home)
    again = a.submit()
    assert again.id == job.id
    ended = a.run(again, Roles(["assert (root / 'prepared/kept.json').exists(); sys.exit(75)"]))
    assert ended.state is JobState.QUEUED


def test_a_run_that_is_alive_elsewhere_is_not_joined(machines: Callable[[str], Machine]) -> None:
    a, b = machines("a"), machines("b")
    job, stop, refused = a.submit(), threading.Event(), []

    def second() -> None:
        until(lambda: "spec.json" in mirrored(a, job))
        other = JobQueue(f"sqlite:///{b.home}.sqlite")
        try:
            submit_or_resume(other, make_spec(), store=a.store)
        except JobHeld as error:
            refused.append(error)
        other.close()
        stop.set()

    waiter = threading.Thread(target=second)
    waiter.start()
    a.run(job, Roles([SLEEP]), stop=stop)
    waiter.join()
    assert str(ME) in refused[0].message
    with pytest.raises(UnfinishedWithAnotherSpec, match=r"train.steps: 2000 → 7"):
        b.submit(spec=make_spec(steps=7))


def test_a_finished_job_of_another_machine_is_not_run_again(machines: Callable[[str], Machine]) -> None:
    a, b = machines("a"), machines("b")
    job = a.submit()
    a.run(job, Roles(["sys.exit(75)"]))
    lease = StoreLease(a.store, job)
    lease.acquire()
    lease.release(JobState.SUCCEEDED, result={"reference": "cap@1"})
    found = b.submit()
    assert (found.id, found.state, found.result) == (job.id, JobState.SUCCEEDED, {"reference": "cap@1"})
    assert b.submit(again=True).id != job.id


def test_a_claim_of_another_machine_ends_the_run_here(machines: Callable[[str], Machine]) -> None:
    a = machines("a")
    job, roles = a.submit(), Roles([SLEEP])

    def steal() -> None:
        until(lambda: "progress.json" in mirrored(a, job))
        data = json.dumps({"owner": ELSEWHERE.encode(), "id": "x"}).encode()
        a.store.create(store_lease.claim_key(job.id, 2), data)

    thief = threading.Thread(target=steal)
    thief.start()
    with pytest.raises(StaleFence, match="claim 2"):
        a.run(job, roles)
    thief.join()
    assert roles.all_ended()

    with pytest.raises(JobHeld, match="anna@elsewhere:7"):  # and it isn't taken back while that one is heard of
        a.run(a.queue.get(job.id), roles)
    assert len(roles.started[CHIEF]) == 1
    assert a.queue.get(job.id).state is JobState.BACKOFF


def test_of_many_claimants_one_wins(machines: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch) -> None:
    a = machines("a")
    job, won, held = a.submit(), [], []
    barrier = threading.Barrier(8)
    owners = [replace(ELSEWHERE, pid=pid) for pid in range(8)]

    def claim(owner: Owner) -> None:
        lease = StoreLease(a.store, job)
        lease._owner = owner
        barrier.wait()
        try:
            lease.acquire()
            won.append(owner)
        except JobHeld:
            held.append(owner)

    threads = [threading.Thread(target=claim, args=[owner]) for owner in owners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert holder(a.store, job.id) == won[0]


def test_a_lost_answer_to_a_claim_is_settled_by_reading_it(machines: Callable[[str], Machine]) -> None:
    a = machines("a")
    job = a.submit()
    for claim, plan in enumerate(
        (FaultPlan(lost=1, methods=frozenset({"create"})), FaultPlan(duplicated=1, methods=frozenset({"create"}))), 1
    ):
        lease = StoreLease(FaultyStore(a.store, plan), job)
        assert lease.acquire() == claim - 1
        assert lease.claim == claim


def test_an_owner_that_is_not_heard_of_is_taken_for_dead_and_a_dead_one_at_once(
    machines: Callable[[str], Machine],
) -> None:
    a = machines("a")
    job = a.submit()
    lease = StoreLease(a.store, job)
    lease._owner = ELSEWHERE
    lease.acquire()
    lease.beat(JobState.RUNNING)
    assert holder(a.store, job.id) == ELSEWHERE
    assert holder(a.store, job.id, lease_seconds=-1.0) is None
    lease._owner = GONE
    lease._create(store_lease.claim_key(job.id, 2))
    assert holder(a.store, job.id) is None
    assert not any("clock" in key for key in mirrored(a, job))


def test_a_server_takes_up_the_jobs_of_one_that_is_gone(machines: Callable[[str], Machine]) -> None:
    a, b = machines("a"), machines("b")
    mine = a.submit(spec=make_spec("user"))
    a.run(mine, Roles(["sys.exit(75)"]))
    scheduled = a.submit(spec=make_spec("server"), for_server=True)
    a.run(scheduled, Roles(["sys.exit(75)"]))
    assert adopt(a) == []
    assert adopt(b) == [f"job {scheduled.id} of a server that is gone goes on here"]
    assert adopt(b) == []
    adopted = b.queue.get(scheduled.id)
    assert (adopted.state, adopted.scheduled, adopted.created) == (JobState.QUEUED, True, scheduled.created)

    cancelled = b.queue.cancel(scheduled.id)
    tell_cancelled(b.store, cancelled)
    assert list(open_jobs(b.store)) == [mine.id]
    c = machines("c")
    assert adopt(c) == []
    assert c.submit(spec=make_spec("server", steps=3)).id != scheduled.id


def adopt(machine: Machine, refuse: str = "") -> list[str]:
    def require_fit(spec: JobSpec) -> None:
        if spec.name == refuse:
            raise InvalidArgument("not here")

    return adopt_abandoned(machine.queue, machine.store, require_fit=require_fit)


def test_a_server_takes_up_nothing_that_it_would_not_be_sent(machines: Callable[[str], Machine]) -> None:
    a, b = machines("a"), machines("b")
    jobs = [a.submit(spec=make_spec(name), for_server=True) for name in ("m0", "m1", "m2", "m3", "m4")]
    for job in jobs:
        a.run(job, Roles(["sys.exit(75)"]))
    a.store.put(f"jobs/{jobs[1].id}/owner.json", b"{}")
    a.store.put(f"jobs/{jobs[2].id}/spec.json", b"[]")
    a.store.put(f"jobs/{jobs[3].id}/owner.json", a.store.read(f"jobs/{jobs[4].id}/owner.json"))
    a.store.put("job-index/open/jobs.sqlite", b"{}")
    said = "\n".join(adopt(b, refuse="m0"))
    assert [job.id for job in b.queue.list()] == [jobs[4].id]
    for job, why in zip(jobs, ["not here", "cannot be read", "holds no spec", "of another job"], strict=False):
        assert re.search(f"{job.id} in .* is not taken up: .*{why}", said)

    c = machines("c")
    with pytest.raises(UnfinishedWithAnotherSpec, match=r"2000 → 3"):
        c.submit(spec=make_spec("m4", steps=3), for_server=True)
    assert c.queue.list() == []


def test_a_key_that_leads_out_of_the_folder_is_refused(machines: Callable[[str], Machine]) -> None:
    a, b = machines("a"), machines("b")
    job = a.run(a.submit(), Roles(["sys.exit(75)"]))
    a.store._objects[f"jobs/{job.id}/../../escaped"] = (b"x", 0.0)
    ended = b.run(b.submit(), Roles(["1/0"]))
    assert ended.state is JobState.FAILED
    assert (ended.error or {})["reason"] == "InvalidKey"
    assert not list(b.home.rglob("escaped"))


class OnOff(MemoryStore):
    """A store that can be out of reach."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.away = False

    def put(self, key: str, data: bytes) -> None:
        if self.away:
            raise ZooError(f"{key}: the line is cut")
        super().put(key, data)


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_store_that_is_away_stops_no_training(
    machines: Callable[[str], Machine], monkeypatch: pytest.MonkeyPatch, comes_back: bool
) -> None:
    a = machines("a")
    store = OnOff(a.store_url)
    monkeypatch.setattr(supervisor, "open_catalog", lambda url: Catalog(store, open_catalog(url).cache))
    job = a.submit()
    chief = f"""put('progress.json', {{'phase': 'training', 'step': 1}})
while not (root / 'go').exists(): time.sleep(0.02)
put('prepared/late.json', {{}})
{FAIL}"""

    def cut() -> None:
        until(lambda: any(store.list(f"jobs/{job.id}/progress.json")))
        store.away = True
        until(lambda: any("is not being mirrored" in event.message for event in a.queue.events(job.id)))
        store.away = not comes_back
        (a.folder(job).root / "go").touch()

    cutter = threading.Thread(target=cut)
    cutter.start()
    patience = replace(QUICK, mirror=replace(PACE, grace=0.5))
    ended = a.run(job, Roles([chief]), patience=patience)
    cutter.join()
    assert ended.state is JobState.FAILED
    assert (ended.error or {})["reason"] == "Bad"
    last = a.queue.events(job.id)[-1].message
    there = any(store.list(f"jobs/{job.id}/prepared/late.json"))
    assert there == comes_back
    assert ("not all of it is in" in last and "the line is cut" in last) != comes_back
