"""Distributed runs as typed, and kill -9 to each of their processes: each run ends published, with the loss that it
would have had. Real processes throughout, each with a TensorFlow of its own, so all of it is slow."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from finetune.jobs.cluster import free_ports
from finetune.jobs.folder import JobFolder, read_json
from finetune.jobs.queue import JobQueue
from finetune.jobs.roles import role_states
from tests.tiny import tiny_backbone_version
from zoo.catalog import open_catalog

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

BIN = Path(sys.executable).parent
RUN = [
    "run", "--backbone", "tiny", "--head", "captioner", "--data", "scenes:count=40,size=32",
    "--set", "data.split=source", "--set", "head.arguments.units=16", "--set", "head.arguments.embedding=16",
    "--set", "train.batch_size=8", "--set", "train.steps=160", "--set", "train.evaluate_every=20",
    "--set", "train.optimizer.learning_rate=0.01",
]  # fmt: skip
STRATEGIES = {
    "all-reduce": ["--strategy", "all-reduce", "--workers", "2"],
    "parameter-server": ["--strategy", "parameter-server", "--workers", "2", "--ps", "1"],
}
# Of the validation loss. A step that is done again draws other dropouts on all-reduce's second worker; a parameter
# server's updates come in another order each time.
TOLERANCE = {"all-reduce": 0.05, "parameter-server": 0.3}
DEADLINE = 600.0  # seconds, of a machine that does much else


@dataclass
class Home:
    """A user's own store, cache and settings, and the commands that run there."""

    root: Path
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def store_url(self) -> str:
        return (self.root / "store").as_uri()

    def environment(self, **more: str) -> dict[str, str]:
        own = {
            "MODELZOO_STORE": self.store_url,
            "MODELZOO_CACHE": str(self.root / "cache"),
            "MODELZOO_HOME": str(self.root / "home"),
        }
        return {name: value for name, value in os.environ.items() if not name.startswith("MODELZOO_")} | own | more

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """stdout and stderr go to files beside the store, by the process' number."""
        number = len(self.started)
        with (self.root / f"{number}.out").open("w") as out, (self.root / f"{number}.err").open("w") as err:
            process = subprocess.Popen(
                [str(BIN / "finetune"), *arguments, "--format", "json"],
                stdout=out, stderr=err, text=True, env=self.environment(**environment),
            )  # fmt: skip
        self.started.append(process)
        return process

    def said(self, process: subprocess.Popen[str]) -> str:
        return (self.root / f"{self.started.index(process)}.err").read_text()

    def result(self, process: subprocess.Popen[str], *, code: int = 0) -> Any:
        assert process.wait(timeout=DEADLINE) == code, self.said(process)[-4000:]
        out = (self.root / f"{self.started.index(process)}.out").read_text()
        return json.loads(out.splitlines()[-1]) if code == 0 else None

    def run(self, name: str, *more: str) -> subprocess.Popen[str]:
        return self.start(*RUN, "--name", name, *more)

    @contextmanager
    def queue(self) -> Iterator[JobQueue]:
        with closing(JobQueue.of_store(self.store_url)) as queue:
            yield queue

    def folder(self, name: str) -> JobFolder | None:
        with self.queue() as queue:
            job = queue.latest(name)
        return None if job is None else JobFolder(self.root / "store" / "jobs" / job.id)

    def roles(self, name: str) -> dict[str, tuple[str, int | None, int]]:
        """role → (state, pid, starts)."""
        with self.queue() as queue:
            job = queue.latest(name)
            states = role_states(queue.role_events(job.id)) if job is not None else []
        return {one.role: (one.state, one.pid, one.starts) for one in states}

    def until_trained(self, name: str, process: subprocess.Popen[str], step: int = 20) -> None:
        """Until the Checkpoint of a step is there: from then on there is something to lose."""

        def there() -> bool:
            folder = self.folder(name)
            return folder is not None and (folder.checkpoints / str(step)).exists()

        until(there, process)

    def end(self) -> None:
        """Whatever a failed test left running."""
        for process in self.started:
            if process.poll() is None:
                children = psutil.Process(process.pid).children(recursive=True)
                for one in (process, *children):
                    one.kill()
                process.wait()


def until(condition: Callable[[], object], *processes: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        assert all(process.poll() is None for process in processes), "a process ended too early"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    home = Home(tmp_path_factory.mktemp("user"))
    tiny_backbone_version(open_catalog(home.store_url))
    try:
        yield home
    finally:
        home.end()


@pytest.fixture(scope="module")
def unbroken(home: Home) -> Callable[[str], float]:
    """The validation loss of a run of the strategy that nothing happens to; each is run once."""
    losses: dict[str, float] = {}

    def loss(strategy: str) -> float:
        if strategy not in losses:
            name = f"unbroken-{strategy}"
            losses[strategy] = validation_loss(home.result(home.run(name, *STRATEGIES[strategy])))
        return losses[strategy]

    return loss


def validation_loss(result: dict[str, Any]) -> float:
    loss = result["metrics"]["validation"]["loss"]
    assert math.isfinite(loss)
    return float(loss)


@pytest.mark.parametrize(
    ("strategy", "victim", "group_again"),
    [
        ("all-reduce", "worker-0", True),
        ("all-reduce", "evaluator", False),
        ("all-reduce", "chief", True),
        ("parameter-server", "worker-1", False),
        ("parameter-server", "ps-0", True),
        ("parameter-server", "chief", True),
    ],
)
def test_a_run_whose_process_is_killed_is_published_all_the_same(
    home: Home, unbroken: Callable[[str], float], strategy: str, victim: str, group_again: bool
) -> None:
    expected = unbroken(strategy)
    name = f"{strategy}-{victim}"
    process = home.run(name, *STRATEGIES[strategy])
    home.until_trained(name, process)
    state, pid, starts = home.roles(name)[victim]
    assert (state, starts) == ("running", 1)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    result = home.result(process)
    assert (result["reference"], result["steps"]) == (f"{name}@1", 160)
    assert validation_loss(result) == pytest.approx(expected, rel=TOLERANCE[strategy])
    after = home.roles(name)
    assert after[victim][2] >= 2  # started again
    assert (after["chief"][2] > 1) == group_again
    assert after["chief"][0] == "done"
    version = open_catalog(home.store_url).get(name)
    assert version.number == 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_whole_group_that_is_killed_goes_on_with_the_same_command(
    home: Home, unbroken: Callable[[str], float], strategy: str
) -> None:
    expected = unbroken(strategy)
    name = f"{strategy}-group"
    first = home.run(name, *STRATEGIES[strategy])
    home.until_trained(name, first)
    pids = [pid for _, pid, _ in home.roles(name).values() if pid is not None]
    for pid in (first.pid, *pids):  # the supervisor first: nobody starts anything again
        os.kill(pid, signal.SIGKILL)
    first.wait()
    second = home.run(name, *STRATEGIES[strategy])
    result = home.result(second)
    assert "resumed at step" in home.said(second)
    assert (result["reference"], result["steps"]) == (f"{name}@1", 160)
    assert validation_loss(result) == pytest.approx(expected, rel=TOLERANCE[strategy])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_sigterm_saves_and_ends_resumable(home: Home, strategy: str) -> None:
    name = f"{strategy}-term"
    process = home.run(name, *STRATEGIES[strategy])
    home.until_trained(name, process)
    folder = home.folder(name)
    assert folder is not None
    begin = time.time()
    process.send_signal(signal.SIGTERM)
    home.result(process, code=75)
    newest = max(
        (path for path in folder.checkpoints.iterdir() if path.name.isdigit()), key=lambda path: int(path.name)
    )
    assert newest.stat().st_mtime - begin < 10, "the Checkpoint came late"
    assert {state for state, _, _ in home.roles(name).values()} <= {"interrupted", "stopped", "done"}
    again = home.run(name, *STRATEGIES[strategy])
    assert home.result(again)["steps"] == 160
    assert f"resumed at step {newest.name} " in home.said(again)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_processes_placed_by_hand_one_of_them_killed(
    home: Home, unbroken: Callable[[str], float], strategy: str
) -> None:
    """Each started as on a machine of its own, in an order that nobody planned; all end by themselves."""
    expected = unbroken(strategy)
    name = f"{strategy}-hand"
    ports = [f"localhost:{port}" for port in free_ports(4)]
    if strategy == "all-reduce":
        hosts = ["--worker-hosts", ",".join(ports[:2])]
        tasks = [("worker", 1)]
    else:
        hosts = ["--worker-hosts", ",".join(ports[:2]), "--ps-hosts", ports[2], "--chief-host", ports[3]]
        tasks = [("worker", 0), ("worker", 1), ("ps", 0)]
    roles = [
        home.start("worker", name, *hosts, "--job-name", job, "--task-index", str(index)) for job, index in tasks
    ]  # the first ones before there is a job
    chief = home.run(name, *hosts)
    home.until_trained(name, chief)
    victim = "worker-0"
    pid = home.roles(name)[victim][1]
    assert pid is not None
    assert psutil.Process(pid).ppid() == roles[0].pid
    os.kill(pid, signal.SIGKILL)
    result = home.result(chief)
    assert validation_loss(result) == pytest.approx(expected, rel=TOLERANCE[strategy])
    for role in roles:
        assert role.wait(timeout=60) == 0, home.said(role)[-2000:]
    assert home.roles(name)[victim][2] >= 2


def test_a_worker_that_never_comes_is_named(home: Home) -> None:
    ports = free_ports(2)
    hosts = f"localhost:{ports[0]},localhost:{ports[1]}"
    process = home.run("lonely", "--worker-hosts", hosts, "--join-timeout", "5")
    assert process.wait(timeout=DEADLINE) == 1
    said = home.said(process)
    assert f"missing: worker-0 (localhost:{ports[1]})" in said
    folder = home.folder("lonely")
    assert folder is not None
    assert (read_json(folder.error_path) or {})["reason"] == "PeersMissing"
