"""Roles placed by hand: how they are named, and one that lives beside a chief elsewhere, each a real process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from finetune.cli.worker import chief_placement, placement
from finetune.jobs.cluster import Cluster, InvalidCluster
from finetune.jobs.folder import JobFolder, write_json
from finetune.jobs.launcher import RoleProcess
from finetune.jobs.placed import JobFailed, NoChief, NotPlaced, PlacedNews, PlacedPatience, PlacedRole
from finetune.spec import JobSpec

HASTY = PlacedPatience(timeout=60.0, backoff=0.01, poll=0.02)
SLEEP = "time.sleep(60)"


def tf_config(task: str, index: int, **cluster: list[str]) -> str:
    return json.dumps({"cluster": cluster, "task": {"type": task, "index": index}})


def test_the_flags_of_every_tutorial_and_tf_config_name_the_same_roles(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster, role = placement("a:1,b:2", "c:3", "d:4", job_name="worker", task_index=1)
    assert (role, cluster.address(role), cluster.chief, cluster.strategy) == (
        "worker-1",
        "b:2",
        "d:4",
        "parameter-server",
    )
    monkeypatch.setenv("TF_CONFIG", tf_config("worker", 1, chief=["d:4"], worker=["a:1", "b:2"], ps=["c:3"]))
    assert placement(None, None, None) == (cluster, role)
    # Without ps the first worker is the chief, and works too.
    assert placement("a:1,b:2", None, None, job_name="worker")[1] == "chief"
    assert placement("a:1,b:2", None, None, job_name="worker", task_index=1)[1] == "worker-0"
    monkeypatch.setenv("TF_CONFIG", tf_config("worker", 1, worker=["a:1", "b:2"]))
    both = placement(None, None, None)
    assert both == placement("a:1,b:2", None, None, job_name="worker", task_index=1)
    assert (both[0].chief, both[0].address(both[1])) == ("a:1", "b:2")


def test_an_evaluator_in_the_cluster_is_taken_out_and_it_is_said_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TF_CONFIG", tf_config("ps", 0, worker=["a:1"], ps=["c:3"], chief=["d:4"], evaluator=["e:5"]))
    cluster, role = placement(None, None, None)
    assert role == "ps-0"
    assert "e:5" not in cluster.tf_config(role)
    assert "a coordinator would wait for it for ever" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"cluster": {', "TF_CONFIG cannot be read"),
        ("[1]", "TF_CONFIG cannot be read"),
        (tf_config("worker", 5, worker=["a:1", "b:2"]), "no worker 5: the cluster has 2, counted from 0"),
        (tf_config("ps", 0, worker=["a:1"]), "no ps 0: the cluster has 0"),
        (tf_config("oracle", 0, worker=["a:1"]), "no job 'oracle'"),
        (tf_config("worker", 0, worker=["a:1"], master=["b:2"]), "names the jobs master"),
        (tf_config("worker", 0, worker=["a:1", "b"]), "'b' is no address"),
        (tf_config("worker", 0, worker=["a:1", "a:1"]), "an address is there twice"),
        (tf_config("chief", 0, chief=["a:1"]), "a cluster needs workers"),
    ],
)
def test_a_tf_config_that_cannot_be_is_refused(text: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(InvalidCluster, match=said):
        placement(None, None, None)


def test_the_chief_takes_tf_config_where_several_processes_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert chief_placement(None, None, None, strategy="all-reduce") is None
    found = chief_placement("a:1,b:2", None, None, strategy=None)
    assert found is not None
    assert (found.strategy, found.chief, found.workers, found.here) == ("all-reduce", "a:1", ("b:2",), False)
    monkeypatch.setenv("TF_CONFIG", tf_config("worker", 1, worker=["a:1", "b:2"]))
    assert chief_placement(None, None, None, strategy=None) is None  # one device: nothing to do with it
    with pytest.raises(InvalidCluster, match="by TF_CONFIG this process is worker-0"):
        chief_placement(None, None, None, strategy="all-reduce")
    with pytest.raises(typer.BadParameter, match="which process this is"):
        placement("a:1,b:2", None, None)


class Bench:
    """A job whose one role runs the lines given for it, the last ones again and again."""

    def __init__(self, root: Path, *lines: str, strategy: dict[str, object] | None = None) -> None:
        spec = JobSpec.parse(
            {
                "name": "cap",
                "backbone": "tiny",
                "head": {"kind": "captioner"},
                "data": {"location": "scenes:"},
                "strategy": strategy or {"kind": "all-reduce", "workers": 2},
            }
        )
        self.folder = JobFolder.create(root, job="j1", spec=spec, store_url="memory://x")
        self.stop = threading.Event()
        self.started: list[RoleProcess] = []
        self._lines = lines

    def launch(self, folder: JobFolder, role: str, cluster: Cluster) -> RoleProcess:
        assert json.loads(cluster.tf_config(role))["task"] == {"type": "worker", "index": 0}
        code = "import os, signal, sys, time\n" + self._lines[min(len(self.started), len(self._lines) - 1)]
        process = subprocess.Popen([sys.executable, "-c", code, str(folder.root)], start_new_session=True)
        self.started.append(RoleProcess(role=role, process=process))
        return self.started[-1]

    def run(self, patience: PlacedPatience = HASTY) -> int:
        cluster = Cluster.of_hosts(workers=["a:1", "b:2"], ps=[])
        role = PlacedRole(self.folder, "worker-0", cluster, stop=self.stop, patience=patience, launch=self.launch)
        return role.run()

    def when(self, condition: Callable[[], object], act: Callable[[], object]) -> threading.Thread:
        def wait() -> None:
            deadline = time.monotonic() + 60
            while not condition() and time.monotonic() < deadline:
                time.sleep(0.01)
            act()

        thread = threading.Thread(target=wait)
        thread.start()
        return thread

    def all_ended(self) -> bool:
        return all(process.poll() is not None for process in self.started)


def test_a_role_starts_again_after_every_loss_until_the_chief_says_that_it_is_over(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "sys.exit(76)", "os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(0)")
    news = PlacedNews(bench.folder)
    assert bench.run() == 0
    assert [process.poll() for process in bench.started] == [76, -9, 0]
    [(message, facts)] = news.read()
    assert message.startswith("worker-0 ended with 0 on ")
    assert facts == {"role": "worker-0", "starts": 3, "code": 0}
    assert news.read() == []


def test_a_server_that_never_ends_is_ended_when_the_job_is_over(tmp_path: Path) -> None:
    bench = Bench(tmp_path, SLEEP)
    news = PlacedNews(bench.folder)
    told: list[tuple[str, dict[str, object]]] = []

    def publish() -> None:
        told.extend(news.read())
        write_json(bench.folder.export_path, {})

    thread = bench.when(lambda: bench.started, publish)
    assert bench.run() == 0
    thread.join()
    assert bench.all_ended()
    assert [facts for _, facts in told] in (
        [],
        [{"role": "worker-0", "starts": 1, "pid": bench.started[0].process.pid}],
    )
    assert [facts["code"] for _, facts in news.read()] == [0]


def test_sigterm_ends_the_role_and_is_no_failure(tmp_path: Path) -> None:
    bench = Bench(tmp_path, SLEEP)
    thread = bench.when(lambda: bench.started, bench.stop.set)
    assert bench.run() == 75
    thread.join()
    assert bench.all_ended()


def test_a_job_that_fails_ends_the_role_saying_why_and_an_old_error_does_not(tmp_path: Path) -> None:
    bench = Bench(tmp_path, SLEEP)
    write_json(bench.folder.error_path, {"message": "of yesterday"})
    os.utime(bench.folder.error_path, (1, 1))
    thread = bench.when(lambda: bench.started, lambda: write_json(bench.folder.error_path, {"message": "all is lost"}))
    with pytest.raises(JobFailed, match="all is lost"):
        bench.run()
    thread.join()
    assert bench.all_ended()


def test_a_role_without_a_chief_ends_naming_the_folder(tmp_path: Path) -> None:
    bench = Bench(tmp_path, SLEEP)
    with pytest.raises(NoChief, match=f"worker-0 of {tmp_path} has waited"):
        bench.run(PlacedPatience(timeout=0.2, backoff=0.01, poll=0.02))
    assert bench.all_ended()


def test_a_cluster_of_another_size_and_a_place_that_is_taken_are_refused(tmp_path: Path) -> None:
    other = Bench(tmp_path / "a", SLEEP, strategy={"kind": "all-reduce", "workers": 3})
    with pytest.raises(InvalidCluster, match="3 workers and 0 ps; the cluster is one for all-reduce with 2"):
        other.run()
    assert other.started == []
    taken = Bench(tmp_path / "b", "sys.exit(69)")
    with pytest.raises(NotPlaced, match="worker-0 can't be here, at b:2"):
        taken.run()
    assert len(taken.started) == 1
