"""The supervisor against roles that crash, hang, fail and end, each a real process that runs a few lines of Python."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from finetune.jobs.cluster import CHIEF, EVALUATOR
from finetune.jobs.exit_codes import EXIT_PEER_LOST
from finetune.jobs.folder import JobFolder
from finetune.jobs.job import Job, JobEnded, JobHeld, JobState, StaleFence
from finetune.jobs.launcher import RoleProcess
from finetune.jobs.owner import Owner
from finetune.jobs.queue import JobQueue
from finetune.jobs.supervisor import Patience, run_job
from finetune.jobs.worker import RoleLock, RoleTaken
from finetune.spec import JobSpec
from tests.finetune.jobs.conftest import make_spec

HASTY = Patience(backoff_seconds=(0.05, 0.05), stop_grace=2.0, poll=0.02, heartbeat=0.1, evaluator_restarts=2)
PREAMBLE = """
import json, os, pathlib, signal, sys, time
root = pathlib.Path(sys.argv[1])
def put(name, value):
    path = root / name
    path.parent.mkdir(exist_ok=True)
    path.with_suffix(".new").write_text(json.dumps(value))
    path.with_suffix(".new").rename(path)
def on_term(code):
    signal.signal(signal.SIGTERM, lambda *_: (put("stopped.json", {}), os._exit(code)))
"""
SLEEP = "on_term(75); put('progress.json', {'phase': 'training', 'step': 1}); time.sleep(60)"


class Roles:
    """A launcher whose roles run the lines given for them, the last ones again and again."""

    def __init__(self, chief: list[str], evaluator: list[str] | None = None) -> None:
        self._lines = {CHIEF: chief, EVALUATOR: evaluator or [SLEEP]}
        self.started: dict[str, list[RoleProcess]] = {CHIEF: [], EVALUATOR: []}

    def __call__(self, role: str, folder: JobFolder, *, inline: bool) -> RoleProcess:
        del inline
        lines = self._lines[role]
        code = PREAMBLE + lines[min(len(self.started[role]), len(lines) - 1)]
        folder.logs.mkdir(exist_ok=True)
        with folder.log_path(role).open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", code, str(folder.root)], stdout=log, stderr=log, start_new_session=True
            )
        self.started[role].append(RoleProcess(role=role, process=process))
        return self.started[role][-1]

    def all_ended(self) -> bool:
        return all(process.poll() is not None for some in self.started.values() for process in some)


class Bench:
    def __init__(self, root: Path) -> None:
        self.store_url = f"file://{root}/store"
        self.queue = JobQueue(f"sqlite:///{root}/jobs.sqlite")
        self.job = self.queue.create(make_spec())
        self.folder = JobFolder(root / "store" / "jobs" / self.job.id)

    def run(self, roles: Roles, stop: threading.Event | None = None, patience: Patience = HASTY) -> Job:
        return run_job(self.queue, self.job.id, store_url=self.store_url, stop=stop, patience=patience, launch=roles)

    def states(self) -> list[str]:
        return [event.state for event in self.queue.events(self.job.id) if event.kind == "state"]

    def when(self, condition: Callable[[], object], act: Callable[[], object]) -> threading.Thread:
        """Does `act` once `condition` holds, from another thread."""

        def wait() -> None:
            deadline = time.monotonic() + 20
            while not condition():
                if time.monotonic() > deadline:
                    return
                time.sleep(0.02)
            act()

        thread = threading.Thread(target=wait)
        thread.start()
        return thread

    def trains(self) -> bool:
        return (self.folder.root / "progress.json").exists()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_chief_that_keeps_crashing_is_started_again_with_pauses_and_then_given_up(bench: Bench) -> None:
    roles = Roles(["print('out of luck'); sys.stdout.flush(); os.kill(os.getpid(), 9)"])
    job = bench.run(roles)
    assert job.state is JobState.FAILED
    assert len(roles.started[CHIEF]) == 3
    assert bench.states() == [
        "QUEUED",
        *["STARTING", "RUNNING", "BACKOFF", "QUEUED"] * 2,
        "STARTING",
        "RUNNING",
        "FAILED",
    ]
    assert job.error is not None
    assert job.error["reason"] == "RoleCrashed"
    assert "killed by signal 9" in job.error["message"]
    assert "out of luck" in job.error["message"]


def test_a_failure_that_the_chief_explains_is_final(bench: Bench) -> None:
    error = {
        "code": "INVALID_ARGUMENT",
        "reason": "TooManyBadRecords",
        "message": "9 of 10",
        "hint": None,
        "details": {},
    }
    roles = Roles([f"put('error.json', json.loads({json.dumps(error)!r})); sys.exit(1)"])
    job = bench.run(roles)
    assert (job.state, job.error) == (JobState.FAILED, error)
    assert len(roles.started[CHIEF]) == 1


def test_an_old_error_is_not_taken_for_a_new_one(bench: Bench) -> None:
    put = "put('error.json', {'code': 'INTERNAL', 'reason': 'Old', 'message': 'old'});"
    bench.run(Roles([f"{put} sys.exit(1)"]))
    bench.queue.requeue(bench.queue.get(bench.job.id), again=False, scheduled=False)
    job = bench.run(Roles(["sys.exit(1)"]))
    assert job.error is not None
    assert job.error["reason"] == "RoleCrashed"


def test_an_interrupted_chief_leaves_the_job_queued(bench: Bench) -> None:
    job = bench.run(Roles(["sys.exit(75)"]))
    assert (job.state, job.owner, job.lease_until) == (JobState.QUEUED, None, None)


def test_what_the_chief_has_to_tell_becomes_events_each_once(bench: Bench) -> None:
    told = "{'phase': 'training', 'step': 7, 'pid': os.getpid(), 'news': ['back to step 5', 'back to step 6']}"
    bench.run(Roles([f"put('progress.json', {told}); sys.exit(75)"]))
    messages = [str(event.body.get("message")) for event in bench.queue.events(bench.job.id) if event.kind == "role"]
    assert [text for text in messages if text.startswith("back to")] == ["back to step 5", "back to step 6"]
    progress = bench.queue.get(bench.job.id).progress
    assert progress is not None
    assert "news" not in progress
    # The file of a chief that has gone tells a later one's supervisor nothing.
    bench.run(Roles(["sys.exit(75)"]))
    messages = [str(event.body.get("message")) for event in bench.queue.events(bench.job.id)]
    assert len([text for text in messages if text.startswith("back to")]) == 2


def test_stopping_lets_the_roles_save_and_queues_the_job_again(bench: Bench) -> None:
    stop = threading.Event()
    roles = Roles([SLEEP])
    waiter = bench.when(bench.trains, stop.set)
    job = bench.run(roles, stop)
    waiter.join()
    assert job.state is JobState.QUEUED
    assert (bench.folder.root / "stopped.json").exists()
    assert roles.all_ended()
    assert job.progress == {"phase": "training", "step": 1}


def test_ctrl_c_does_the_same_and_goes_on_to_the_caller(bench: Bench) -> None:
    roles = Roles([SLEEP])
    waiter = bench.when(bench.trains, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        bench.run(roles)
    waiter.join()
    assert bench.queue.get(bench.job.id).state is JobState.QUEUED
    assert (bench.folder.root / "stopped.json").exists()
    assert roles.all_ended()


def test_a_role_that_will_not_end_is_killed(bench: Bench) -> None:
    stop = threading.Event()
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); put('progress.json', {'step': 1}); time.sleep(60)"
    roles = Roles([deaf])
    waiter = bench.when(bench.trains, stop.set)
    job = bench.run(roles, stop, replace(HASTY, stop_grace=0.2))
    waiter.join()
    assert job.state is JobState.QUEUED
    assert roles.started[CHIEF][0].poll() == -signal.SIGKILL


def test_cancelling_ends_the_roles(bench: Bench) -> None:
    roles = Roles([SLEEP])
    waiter = bench.when(bench.trains, lambda: bench.queue.cancel(bench.job.id))
    job = bench.run(roles)
    waiter.join()
    assert job.state is JobState.CANCELLED
    assert bench.states()[-2:] == ["CANCELLING", "CANCELLED"]
    assert roles.all_ended()


def test_a_supervisor_that_lost_its_lease_ends_its_roles_and_writes_nothing(bench: Bench) -> None:
    elsewhere = replace(Owner.of_this_process(), host="elsewhere", place="elsewhere")

    def steal() -> None:
        late = JobQueue(bench.queue.url, now=lambda: time.time() + 60)
        late.claim(bench.job.id, elsewhere)

    roles = Roles(["put('progress.json', {'step': 1})\nwhile True: time.sleep(1)"])
    waiter = bench.when(bench.trains, steal)
    begun = time.monotonic()
    with pytest.raises(StaleFence):
        bench.run(roles)
    waiter.join()
    assert time.monotonic() - begun < 10
    assert roles.all_ended()
    job = bench.queue.get(bench.job.id)
    assert (job.state, job.owner, job.fence) == (JobState.STARTING, elsewhere, 2)


def test_the_evaluator_starts_when_there_is_something_to_evaluate_and_again_when_it_crashes(bench: Bench) -> None:
    chief = """
on_term(75)
time.sleep(0.3)
assert not (root / "evaluators").exists(), "started too early"
put("prepared/prepared.json", {})
while not (root / "evaluators").exists() or len((root / "evaluators").read_text()) < 3: time.sleep(0.02)
sys.exit(75)
"""
    mark = "(root / 'evaluators').open('a').write('x');"
    roles = Roles([chief], [f"{mark} os.kill(os.getpid(), 11)", f"{mark} sys.exit(7)", f"{mark} {SLEEP}"])
    job = bench.run(roles)
    assert job.state is JobState.QUEUED
    assert len(roles.started[CHIEF]) == 1
    assert len(roles.started[EVALUATOR]) == 3
    assert roles.all_ended()


def test_an_evaluator_that_keeps_crashing_fails_the_job(bench: Bench) -> None:
    roles = Roles([f"put('prepared/prepared.json', {{}}); {SLEEP}"], ["sys.exit(7)"])
    job = bench.run(roles)
    assert job.state is JobState.FAILED
    assert len(roles.started[EVALUATOR]) == 3
    assert job.error is not None
    assert "the evaluator ended with 7" in job.error["message"]
    assert roles.all_ended()


def test_only_one_supervisor_runs_a_job(bench: Bench) -> None:
    stop = threading.Event()
    refused: list[Exception] = []

    def second() -> None:
        try:
            run_job(JobQueue(bench.queue.url), bench.job.id, store_url=bench.store_url, launch=Roles(["1/0"]))
        except JobHeld as error:
            refused.append(error)
        stop.set()

    waiter = bench.when(bench.trains, second)
    bench.run(Roles([SLEEP]), stop)
    waiter.join()
    assert len(refused) == 1
    bench.queue.cancel(bench.job.id)
    with pytest.raises(JobEnded):
        bench.run(Roles([SLEEP]))


def test_roles_die_with_a_supervisor_that_is_killed(bench: Bench) -> None:
    """The real worker: it asks the kernel for a signal when its parent dies, before it imports anything heavy."""
    JobFolder.create(bench.folder.root, job=bench.job.id, spec=bench.job.spec, store_url=bench.store_url)
    (bench.folder.root / "locks").mkdir()
    code = (
        "import sys, time; from pathlib import Path; from finetune.jobs.folder import JobFolder;"
        "from finetune.jobs.launcher import launch;"
        "p = launch('chief', JobFolder(Path(sys.argv[1])), inline=False);"
        "print(p.process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, str(bench.folder.root)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = psutil.Process(int(parent.stdout.readline()))
    lock = bench.folder.root / "locks" / "chief.lock"
    deadline = time.monotonic() + 20
    while not (lock.exists() and lock.read_text() == str(worker.pid)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    worker.wait(timeout=20)


def test_a_new_role_waits_for_the_former_one_and_then_kills_it(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "chief.lock"
    code = (
        "import signal, sys, time; from pathlib import Path; from finetune.jobs.worker import RoleLock;"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); lock = RoleLock(Path(sys.argv[1]), grace=1); lock.__enter__();"
        "print('held', flush=True); time.sleep(float(sys.argv[2]))"
    )

    def holder(seconds: float) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(path), str(seconds)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.stdout.close()
        return process

    polite = holder(0.5)
    with RoleLock(path, grace=10):
        assert polite.wait() == 0
    stuck = holder(60)
    with RoleLock(path, grace=0.3):
        assert stuck.wait() == -signal.SIGKILL


def test_a_role_that_a_person_has_started_is_stood_by_for_and_never_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "locks" / "evaluator.lock"
    code = (
        "import sys, time; from pathlib import Path; from finetune.jobs.worker import RoleLock\n"
        "with RoleLock(Path(sys.argv[1]), grace=0, by_hand=True):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    by_hand = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert by_hand.stdin is not None
    assert by_hand.stdout is not None
    assert by_hand.stdout.readline() == "held\n"
    with pytest.raises(RoleTaken, match=f"process {by_hand.pid}: this role runs already"):
        RoleLock(path, grace=0, by_hand=True).__enter__()
    timer = threading.Timer(0.5, by_hand.stdin.close)
    timer.start()
    with RoleLock(path, grace=0.1):  # a supervisor's: its patience with leftovers has long ended by then
        assert by_hand.wait() == 0
    timer.join()
    by_hand.stdout.close()
    assert capsys.readouterr().err.count(f"standing by: process {by_hand.pid}, started by hand") == 1


# -- groups of processes


class Group(Roles):
    """As Roles, for every role of a cluster; the lines are those of each start of a role."""

    def __init__(self, **lines: list[str]) -> None:
        super().__init__([])
        self._lines = {role.replace("_", "-"): each for role, each in lines.items()} | {EVALUATOR: [SLEEP]}
        self.started = {role: [] for role in self._lines}


def in_group(root: Path, **strategy: object) -> Bench:
    bench = Bench(root)
    spec = JobSpec.parse(make_spec("group").to_json() | {"strategy": strategy})
    bench.job = bench.queue.create(spec)
    bench.folder = JobFolder(root / "store" / "jobs" / bench.job.id)
    return bench


def wait_for(name: str) -> str:
    return f"\nwhile not (root / {name!r}).exists(): time.sleep(0.02)\n"


def test_a_dead_all_reduce_worker_starts_the_group_again(tmp_path: Path) -> None:
    """The others say that they lost it; the job says who it was, and all of them start again, at new addresses."""
    bench = in_group(tmp_path, kind="all-reduce", workers=3)
    keep = (
        "(root / f'cluster-{len(list(root.glob(\"cluster-*\")))}').write_bytes((root / '.cluster.json').read_bytes());"
    )
    lost = wait_for("dead.json") + f"sys.exit({EXIT_PEER_LOST})"
    group = Group(
        chief=[keep + lost, keep + "on_term(75); sys.exit(75)"],
        worker_0=["put('dead.json', {}); os.kill(os.getpid(), 9)", SLEEP],
        worker_1=[lost, SLEEP],
    )
    job = bench.run(group)
    assert job.state is JobState.QUEUED
    assert bench.states()[:5] == ["QUEUED", "STARTING", "RUNNING", "BACKOFF", "QUEUED"]
    assert {role: len(started) for role, started in group.started.items() if role != EVALUATOR} == {
        "chief": 2,
        "worker-0": 2,
        "worker-1": 2,
    }
    messages = [event.message or "" for event in bench.queue.events(bench.job.id)]
    assert any("the worker-0 was killed by signal 9" in message for message in messages)
    clusters = [json.loads((bench.folder.root / f"cluster-{start}").read_text()) for start in (0, 1)]
    assert len(clusters[0]["workers"]) == 2
    assert clusters[0] != clusters[1]
    assert group.all_ended()


def test_crashes_with_a_checkpoint_between_them_are_no_row_of_crashes(tmp_path: Path) -> None:
    bench = in_group(tmp_path, kind="all-reduce", workers=2)
    die = """
step = len(list(root.glob('checkpoints/*')))
(root / 'checkpoints' / str(step)).mkdir(parents=True)
os.kill(os.getpid(), 9)
"""
    group = Group(chief=[SLEEP], worker_0=[*[die] * 6, "os.kill(os.getpid(), 9)"])
    job = bench.run(group)
    assert job.state is JobState.FAILED
    assert len(group.started["worker-0"]) == 6 + 2, "six that came further, then as many as patience allows"


def test_a_dead_worker_of_a_parameter_server_job_is_started_again_alone(tmp_path: Path) -> None:
    bench = in_group(tmp_path, kind="parameter-server", workers=2, ps=1)
    mark = "(root / 'starts').open('a').write('x');"
    chief = """
on_term(75)
while not (root / 'starts').exists() or len((root / 'starts').read_text()) < 2: time.sleep(0.02)
sys.exit(75)
"""
    group = Group(
        chief=[chief], worker_0=[mark + "os.kill(os.getpid(), 9)", mark + SLEEP], worker_1=[SLEEP], ps_0=[SLEEP]
    )
    job = bench.run(group)
    assert job.state is JobState.QUEUED
    assert {role: len(some) for role, some in group.started.items() if role != EVALUATOR} == {
        "chief": 1,
        "worker-0": 2,
        "worker-1": 1,
        "ps-0": 1,
    }
    assert "BACKOFF" not in bench.states()
    assert group.all_ended()


def test_a_dead_parameter_server_starts_the_group_again(tmp_path: Path) -> None:
    bench = in_group(tmp_path, kind="parameter-server", workers=1, ps=1)
    group = Group(chief=[SLEEP, "sys.exit(75)"], worker_0=[SLEEP], ps_0=["os.kill(os.getpid(), 9)", SLEEP])
    job = bench.run(group)
    assert job.state is JobState.QUEUED
    assert bench.states().count("BACKOFF") == 1
    assert {role: len(some) for role, some in group.started.items() if role != EVALUATOR} == {
        "chief": 2,
        "worker-0": 2,
        "ps-0": 2,
    }


def test_a_port_lost_to_another_process_is_another_start_where_we_chose_it(tmp_path: Path) -> None:
    bench = in_group(tmp_path, kind="all-reduce", workers=2)
    taken = {"code": "UNAVAILABLE", "reason": "PortTaken", "message": "the worker-0 … port 1", "details": {}}
    fail = f"put('error.json', json.loads({json.dumps(taken)!r})); sys.exit(1)"
    job = bench.run(Group(chief=[SLEEP, "sys.exit(75)"], worker_0=[fail, SLEEP]))
    assert job.state is JobState.QUEUED
    assert bench.states().count("BACKOFF") == 1


def test_the_chief_saves_before_those_beside_it_are_ended(tmp_path: Path) -> None:
    """It may need them for the step that it is in."""
    bench = in_group(tmp_path, kind="all-reduce", workers=2)
    chief = """
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), put('chief.json', time.monotonic()), os._exit(75)))
while not (root / 'ready.json').exists(): time.sleep(0.02)
put('progress.json', {'phase': 'training', 'step': 1}); time.sleep(60)
"""
    worker = """
signal.signal(signal.SIGTERM, lambda *_: (put('worker.json', time.monotonic()), os._exit(75)))
put('ready.json', {}); time.sleep(60)
"""
    stop = threading.Event()
    waiter = bench.when(bench.trains, stop.set)
    job = bench.run(Group(chief=[chief], worker_0=[worker]), stop)
    waiter.join()
    assert job.state is JobState.QUEUED
    ended = {role: json.loads((bench.folder.root / f"{role}.json").read_text()) for role in ("chief", "worker")}
    assert ended["chief"] < ended["worker"]
