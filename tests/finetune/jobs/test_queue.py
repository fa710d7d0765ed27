from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from finetune.jobs.job import (
    ENDED,
    TRANSITIONS,
    IllegalTransition,
    Job,
    JobEnded,
    JobHeld,
    JobState,
    StaleFence,
    StateChanged,
    UnknownJob,
)
from finetune.jobs.owner import Owner
from finetune.jobs.queue import LEASE_SECONDS, JobQueue, NameBusy, QueueUnavailable
from finetune.jobs.roles import role_states
from finetune.jobs.tables import InvalidQueueUrl
from tests.finetune.jobs.conftest import Clock, make_spec

ME = Owner.of_this_process()
ELSEWHERE = replace(ME, host="elsewhere", place="another-boot", pid=1)


def running(queue: JobQueue) -> Job:
    return queue.move(queue.claim(queue.create(make_spec()).id, ME), JobState.RUNNING)


def test_a_job_goes_from_queued_to_succeeded_and_says_so_in_events(queue: JobQueue) -> None:
    job = queue.create(make_spec())
    assert (job.state, job.fence, job.owner, job.attempts) == (JobState.QUEUED, 0, None, 0)
    job = queue.claim(job.id, ME)
    assert (job.state, job.fence, job.owner, job.attempts) == (JobState.STARTING, 1, ME, 1)
    job = queue.move(job, JobState.RUNNING)
    job = queue.progress(job, {"step": 3, "loss": 1.5})
    job = queue.move(job, JobState.PUBLISHING)
    job = queue.move(job, JobState.SUCCEEDED, result={"reference": "cap@1"})
    assert job.result == {"reference": "cap@1"}
    assert job.progress == {"step": 3, "loss": 1.5}
    assert (job.owner, job.lease_until) == (None, None)
    assert job == queue.get(job.id)
    events = queue.events(job.id)
    assert [event.state for event in events if event.kind == "state"] == [
        "QUEUED",
        "STARTING",
        "RUNNING",
        "PUBLISHING",
        "SUCCEEDED",
    ]
    assert [dict(event.body) for event in events if event.kind == "progress"] == [{"step": 3, "loss": 1.5}]


def test_every_state_can_be_left_unless_it_is_final() -> None:
    assert TRANSITIONS.keys() == set(JobState)
    assert {state for state in JobState if not TRANSITIONS[state]} == {JobState.SUCCEEDED}
    assert all(TRANSITIONS[state] <= {JobState.QUEUED} for state in ENDED)


def test_a_transition_that_is_not_in_the_table_is_refused(queue: JobQueue) -> None:
    job = queue.create(make_spec())
    with pytest.raises(IllegalTransition, match="from QUEUED to SUCCEEDED"):
        queue.move(job, JobState.SUCCEEDED)
    assert queue.get(job.id) == job


def test_a_late_writer_with_an_old_fence_is_refused(queue: JobQueue, clock: Clock) -> None:
    old = running(queue)
    clock.seconds += LEASE_SECONDS + 1
    new = queue.claim(old.id, ELSEWHERE)
    assert new.fence == old.fence + 1
    before = queue.events(old.id)
    for write in (
        lambda: queue.move(old, JobState.PUBLISHING),
        lambda: queue.progress(old, {"step": 9}),
        lambda: queue.heartbeat(old),
        lambda: queue.note(old, "still here"),
    ):
        with pytest.raises(StaleFence, match="refused"):
            write()
    assert queue.get(old.id) == new
    assert queue.events(old.id) == before


def test_a_write_meant_for_another_state_is_refused(queue: JobQueue) -> None:
    job = running(queue)
    queue.cancel(job.id)
    with pytest.raises(StateChanged, match="is CANCELLING, expected RUNNING"):
        queue.progress(job, {"step": 1})


def test_a_lease_keeps_others_out_until_it_ends(queue: JobQueue, clock: Clock) -> None:
    job = queue.claim(queue.create(make_spec()).id, ELSEWHERE)
    clock.seconds += LEASE_SECONDS - 1
    with pytest.raises(JobHeld, match="elsewhere:1"):
        queue.claim(job.id, ME)
    queue.heartbeat(job)
    clock.seconds += LEASE_SECONDS - 1
    with pytest.raises(JobHeld):
        queue.claim(job.id, ME)
    clock.seconds += 2
    assert queue.claim(job.id, ME).fence == 2


def test_the_lease_of_a_process_known_to_be_dead_counts_for_nothing(queue: JobQueue) -> None:
    dead = replace(ME, started=ME.started - 1)  # the same process number, given to another process since
    job = queue.claim(queue.create(make_spec()).id, dead)
    assert queue.claim(job.id, ME).fence == 2


def test_a_heartbeat_between_reading_and_claiming_saves_the_lease(queue: JobQueue, clock: Clock) -> None:
    job = queue.claim(queue.create(make_spec()).id, ELSEWHERE)
    clock.seconds += LEASE_SECONDS + 1
    read = queue.get

    def read_then_hear_from_the_owner(job_id: str) -> Job:
        found = read(job_id)
        queue.heartbeat(job)
        return found

    queue.get = read_then_hear_from_the_owner  # type: ignore[method-assign]
    with pytest.raises(StateChanged):
        queue.claim(job.id, ME)
    assert read(job.id).fence == 1


def test_of_many_claims_at_once_one_wins(queue_url: str) -> None:
    url = queue_url
    with closing(JobQueue(url)) as first:
        job = first.create(make_spec())
    won: list[int] = []
    lost: list[type[Exception]] = []
    gate = threading.Barrier(8)

    def claim(number: int) -> None:
        mine = JobQueue(url)
        gate.wait()
        try:
            mine.claim(job.id, replace(ELSEWHERE, pid=number))
            won.append(number)
        except (JobHeld, StateChanged, StaleFence) as error:
            lost.append(type(error))
        mine.close()

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(lost)) == (1, 7)
    with closing(JobQueue(url)) as last:
        owner = last.get(job.id).owner
    assert owner is not None
    assert owner.pid == won[0]


def test_writers_of_one_database_wait_for_each_other(queue_url: str) -> None:
    """ "database is locked" is what SQLite says where a transaction reads first and wants to write then."""
    url = queue_url
    faults: list[Exception] = []

    def work(number: int) -> None:
        try:
            mine = JobQueue(url)
            job = mine.move(mine.claim(mine.create(make_spec(f"m{number}")).id, ME), JobState.RUNNING)
            for step in range(20):
                job = mine.progress(job, {"step": step})
            mine.close()
        except Exception as error:
            faults.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    with closing(JobQueue(url)) as queue:
        assert sorted(len(queue.events(job.id)) for job in queue.list()) == [23] * 6


def test_a_cursor_shows_each_event_once_and_in_order(queue: JobQueue) -> None:
    job = running(queue)
    other = queue.create(make_spec("other"))
    for step in range(7):
        job = queue.progress(job, {"step": step})
    seen = []
    cursor = 0
    while batch := queue.events(job.id, after=cursor, limit=3):
        seen += batch
        cursor = batch[-1].cursor
    assert seen == list(queue.events(job.id))
    assert [event.body["step"] for event in seen if event.kind == "progress"] == list(range(7))
    assert [event.job for event in queue.events(other.id)] == [other.id]
    assert queue.events(job.id, after=cursor) == []
    with pytest.raises(UnknownJob, match="no job 'nope'"):
        queue.events("nope")


def test_cancelling(queue: JobQueue, clock: Clock) -> None:
    waiting = queue.create(make_spec("waiting"))
    assert queue.cancel(waiting.id).state is JobState.CANCELLED
    with pytest.raises(JobEnded, match="CANCELLED"):
        queue.cancel(waiting.id)

    held = queue.claim(queue.create(make_spec("held")).id, ELSEWHERE)
    assert queue.cancel(held.id).state is JobState.CANCELLING
    assert queue.cancel(held.id).state is JobState.CANCELLING
    clock.seconds += LEASE_SECONDS + 1
    with pytest.raises(JobEnded, match="supervisor died"):
        queue.claim(held.id, ME)
    assert queue.get(held.id).state is JobState.CANCELLED

    lost = queue.claim(queue.create(make_spec("lost")).id, ELSEWHERE)
    clock.seconds += LEASE_SECONDS + 1
    assert queue.cancel(lost.id).state is JobState.CANCELLED
    with pytest.raises(StaleFence):
        queue.move(lost, JobState.RUNNING)

    publishing = queue.move(running(queue), JobState.PUBLISHING)
    with pytest.raises(JobEnded, match="is being published"):
        queue.cancel(publishing.id)


def test_a_model_has_one_unfinished_job(queue: JobQueue) -> None:
    job = queue.create(make_spec())
    with pytest.raises(NameBusy):
        queue.create(make_spec(steps=7))
    queue.cancel(job.id)
    assert queue.create(make_spec(steps=7)).spec.train.steps == 7


def test_listing_in_pages(queue: JobQueue, clock: Clock) -> None:
    made = []
    for number in range(7):
        made.append(queue.create(make_spec(f"m{number}")).id)
        clock.seconds += 0.3 if number % 2 else 0.0  # some share a moment
    found: list[Job] = []
    while page := queue.list(limit=2, before=(found[-1].created, found[-1].id) if found else None):
        found += page
    assert sorted(job.id for job in found) == sorted(made)
    assert [job.created for job in found] == sorted((job.created for job in found), reverse=True)
    assert [job.name for job in queue.list(name="m3")] == ["m3"]


def test_what_is_no_queue_is_named(tmp_path: Path) -> None:
    for url in ("nonsense", "mysql://x/y", "sqlite://", "postgresql+pg8000://x/y"):
        with pytest.raises(InvalidQueueUrl):
            JobQueue(url)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(QueueUnavailable, match="cannot be opened"):
        JobQueue(f"sqlite:///{tmp_path}/file/jobs.sqlite")
    (tmp_path / "text.sqlite").write_text("this is not a database, but it is long enough to look like one" * 20)
    with pytest.raises(QueueUnavailable, match="not a database"):
        JobQueue(f"sqlite:///{tmp_path}/text.sqlite")


def test_pages_end_whatever_the_clock_says_below_a_microsecond(queue: JobQueue, clock: Clock) -> None:
    """`created` was once stored finer than a Job shows it, so the last row of a page came again, for ever."""
    for number in range(5):
        clock.seconds = 1_790_000_000 + number + 6e-7  # a datetime rounds this up
        queue.create(make_spec(f"model-{number}"))
    found: list[Job] = []
    for _ in range(6):
        page = queue.list(limit=1, before=(found[-1].created, found[-1].id) if found else None)
        found += page
    assert [job.name for job in found] == [f"model-{number}" for number in (4, 3, 2, 1, 0)]


def test_what_has_become_of_each_role_is_told_from_the_events(queue: JobQueue) -> None:
    job = queue.claim(queue.create(make_spec()).id, Owner.of_this_process())
    job = queue.note(job, "chief started", role="chief", pid=11)
    job = queue.note(job, "ps-0 started", role="ps-0", pid=12)
    job = queue.note(job, "worker-0 started", role="worker-0", pid=13)
    job = queue.move(job, JobState.RUNNING)
    job = queue.note(job, "worker-0 was killed by signal 9; started again", role="worker-0", code=-9)

    def told() -> list[tuple[str, str, int, int | None, int | None]]:
        states = role_states(queue.role_events(job.id))
        return [(one.role, one.state, one.starts, one.pid, one.exit_code) for one in states]

    killed = ("worker-0", "killed", 1, None, -9)
    assert told() == [("chief", "running", 1, 11, None), ("ps-0", "running", 1, 12, None), killed]
    job = queue.note(job, "worker-0 started", role="worker-0", pid=14)
    assert told()[2] == ("worker-0", "running", 2, 14, None)
    job = queue.note(job, "chief ended with 75", role="chief", code=75)
    job = queue.move(job, JobState.QUEUED, message="interrupted")
    assert told() == [
        ("chief", "interrupted", 1, None, 75),
        ("ps-0", "stopped", 1, None, None),
        ("worker-0", "stopped", 2, None, None),
    ]
    with pytest.raises(UnknownJob):
        queue.role_events("nobody")
