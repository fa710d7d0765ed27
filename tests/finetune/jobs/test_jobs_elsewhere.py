"""Jobs of other machines in `finetune list` and `finetune watch`."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import pytest

from finetune.cli.jobs import LocalJobs, list_, watch
from finetune.jobs import elsewhere
from finetune.jobs.adopt import read_job
from finetune.jobs.elsewhere import jobs_elsewhere
from finetune.jobs.job import JobState, UnknownJob
from finetune.jobs.store_lease import name_index_prefix, record_key
from tests.finetune.jobs.conftest import make_spec
from tests.finetune.jobs.test_elsewhere import FAIL, Machine, machines, until
from tests.finetune.jobs.test_supervisor import Roles
from zoo.cli.output import Format
from zoo.errors import InvalidArgument, ZooError

__all__ = ["machines"]  # a fixture

Machines = Callable[[str], Machine]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elsewhere, "POLL_SECONDS", 0.02)


def nobody_knows(job_id: str) -> bool:
    return False


def listed(machine: Machine, **more: str) -> list[tuple[str, str, bool]]:
    jobs = LocalJobs(machine.queue, machine.store)
    return [(job["id"], job["state"], job["elsewhere"]) for job in jobs.list_jobs(**more)]


def test_each_machine_lists_its_own_and_the_others(machines: Machines) -> None:
    a, b = machines("a"), machines("b")
    first = a.run(a.submit(), Roles([FAIL]))
    waiting = a.run(a.submit(spec=make_spec(name="other")), Roles(["sys.exit(75)"]))
    second = b.run(b.submit(spec=make_spec(name="third")), Roles([FAIL]))
    assert listed(b) == [
        (second.id, "FAILED", False),
        (waiting.id, "QUEUED", True),
        (first.id, "FAILED", True),
    ]
    assert listed(a) == [
        (second.id, "FAILED", True),
        (waiting.id, "QUEUED", False),
        (first.id, "FAILED", False),
    ]
    assert listed(b, name="other") == [(waiting.id, "QUEUED", True)]
    assert listed(b, name="nothing") == []
    taken = b.submit(spec=make_spec(name="other"))  # from here on b knows it itself
    assert (taken.id, "QUEUED", False) in listed(b)


def test_what_the_command_prints(machines: Machines, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = machines("a"), machines("b")
    job = a.run(a.submit(), Roles([FAIL]))
    assert b.queue.list() == []
    list_(store=b.store_url)
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0].split()[-1] == "where"
    assert any(job.id in line and line.rstrip().endswith("elsewhere") for line in shown.out.splitlines())
    list_(store=b.store_url, output=Format.JSON)
    [value] = json.loads(capsys.readouterr().out)
    assert (value["id"], value["elsewhere"], value["error"]["reason"]) == (job.id, True, "Bad")
    assert a.queue.get(job.id).state is JobState.FAILED
    list_(store=a.store_url)
    assert "where" not in capsys.readouterr().out


def test_what_cannot_be_read_is_told_and_hides_nothing(machines: Machines, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = machines("a"), machines("b")
    good = a.run(a.submit(), Roles([FAIL]))
    bad = a.run(a.submit(spec=make_spec(name="other")), Roles([FAIL]))
    a.store.put(record_key(bad.id), b"{")
    a.store.put(name_index_prefix("n") + "20260101-000000-00000000", b"{}")  # has only just begun
    a.store.put(name_index_prefix("n") + "whatever", b"{}")  # a stranger's
    assert [job_id for job_id, _, _ in listed(b)] == [good.id]
    told = capsys.readouterr().err
    assert f"note: job {bad.id} in {a.store.url} cannot be read" in told
    assert "20260101-000000-00000000" in told
    assert "whatever" not in told


def test_the_newest_are_read(machines: Machines, monkeypatch: pytest.MonkeyPatch) -> None:
    a = machines("a")
    jobs = [a.run(a.submit(spec=make_spec(name=f"n{number}")), Roles([FAIL])) for number in range(3)]
    newest = max(job.id for job in jobs)
    found = jobs_elsewhere(a.store, is_known=nobody_knows, shown=1)
    assert ([job["id"] for job in found.jobs], found.left_out) == ([newest], 2)
    assert jobs_elsewhere(a.store, is_known=lambda job_id: job_id == newest).left_out == 0


def test_another_machines_job_can_be_followed(machines: Machines) -> None:
    a, b = machines("a"), machines("b")
    job = a.submit()
    events: list[dict[str, object]] = []

    def follow() -> None:
        until(lambda: read_job(a.store, job.id))
        for event in LocalJobs(b.queue, b.store).watch_job(job.id, after_cursor=3):
            events.append(event)

    slow = "put('progress.json', {'phase': 'training', 'step': 4, 'steps': 9, 'time': 1.0, 'pid': 1}); time.sleep(1)"
    b.queue  # noqa: B018 - made in this thread, with b's home
    watcher = threading.Thread(target=follow)
    watcher.start()
    ended = a.run(job, Roles([f"{slow}; {FAIL}"]))
    watcher.join(20)
    assert ended.state is JobState.FAILED
    assert [event["cursor"] for event in events] == list(range(4, 4 + len(events)))
    assert events[-1]["state"] == "FAILED"
    states = [event["state"] for event in events if event["kind"] == "state"]
    assert "RUNNING" in states
    assert {"phase": "training", "step": 4, "steps": 9} in [event["progress"] for event in events]


def test_to_its_end_as_typed(machines: Machines, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = machines("a"), machines("b")
    job = a.run(a.submit(), Roles([FAIL]))
    assert b.queue.list() == []
    with pytest.raises(InvalidArgument, match="bad"):
        watch(job.id, store=b.store_url)
    assert f"FAILED: says {b.store.url}" in capsys.readouterr().err
    with pytest.raises(ZooError) as caught:
        watch("20260101-000000-00000000", store=b.store_url)
    assert isinstance(caught.value, UnknownJob)
    assert caught.value.hint == "finetune list"
