from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from finetune.jobs.job import Job, JobHeld, JobState
from finetune.jobs.owner import Owner
from finetune.jobs.queue import LEASE_SECONDS, JobQueue
from finetune.jobs.submit import UnfinishedWithAnotherSpec, submit_or_resume
from finetune.spec import DebugConfig
from tests.finetune.jobs.conftest import Clock, make_spec

ME = Owner.of_this_process()
ELSEWHERE = replace(ME, user="anna", host="elsewhere", place="another-boot", pid=7)


def finished(queue: JobQueue, job: Job) -> Job:
    job = queue.move(queue.move(queue.claim(job.id, ME), JobState.RUNNING), JobState.PUBLISHING)
    return queue.move(job, JobState.SUCCEEDED, result={"reference": "cap@1"})


def test_a_first_request_makes_a_job_that_no_server_starts_by_itself(queue: JobQueue) -> None:
    job = submit_or_resume(queue, make_spec())
    assert (job.state, job.scheduled) == (JobState.QUEUED, False)


def test_an_interrupted_run_is_resumed_by_the_same_request(queue: JobQueue) -> None:
    job = submit_or_resume(queue, make_spec())
    stopped = queue.move(queue.move(queue.claim(job.id, ME), JobState.RUNNING), JobState.QUEUED)
    assert submit_or_resume(queue, make_spec()) == stopped


def test_a_killed_run_is_resumed_at_once_on_its_own_machine(queue: JobQueue) -> None:
    job = queue.claim(submit_or_resume(queue, make_spec()).id, replace(ME, started=ME.started - 1))
    assert submit_or_resume(queue, make_spec()).id == job.id


def test_a_live_run_is_not_joined(queue: JobQueue, clock: Clock) -> None:
    job = queue.claim(submit_or_resume(queue, make_spec()).id, ELSEWHERE)
    with pytest.raises(JobHeld, match="anna@elsewhere:7") as caught:
        submit_or_resume(queue, make_spec())
    assert caught.value.hint == f"finetune watch {job.id}, or finetune cancel {job.id}"
    clock.seconds += LEASE_SECONDS + 1
    assert submit_or_resume(queue, make_spec()).id == job.id


def test_a_server_gives_back_the_live_run_of_the_same_spec(queue: JobQueue) -> None:
    job = queue.claim(submit_or_resume(queue, make_spec()).id, ELSEWHERE)
    again = submit_or_resume(queue, make_spec(), for_server=True)
    assert (again.id, again.fence, again.scheduled) == (job.id, job.fence, True)


@pytest.mark.parametrize("for_server", [False, True])
def test_another_spec_is_refused_and_the_difference_shown(queue: JobQueue, for_server: bool) -> None:
    submit_or_resume(queue, make_spec(steps=10, batch_size=4))
    with pytest.raises(UnfinishedWithAnotherSpec) as caught:
        submit_or_resume(queue, make_spec(steps=20, batch_size=4), for_server=for_server)
    assert "train.steps: 10 → 20" in caught.value.message
    assert "batch_size" not in caught.value.message


def test_what_is_finished_runs_again_only_when_asked(queue: JobQueue) -> None:
    first = finished(queue, submit_or_resume(queue, make_spec()))
    assert submit_or_resume(queue, make_spec()) == first
    second = submit_or_resume(queue, make_spec(), again=True)
    assert (second.id != first.id, second.state, second.again) == (True, JobState.QUEUED, True)


def test_a_finished_job_of_another_spec_is_no_hindrance(queue: JobQueue) -> None:
    first = finished(queue, submit_or_resume(queue, make_spec(steps=10)))
    second = submit_or_resume(queue, make_spec(steps=20))
    assert (second.id != first.id, second.state) == (True, JobState.QUEUED)


def test_a_failed_or_cancelled_job_is_tried_again_in_its_folder(queue: JobQueue) -> None:
    job = submit_or_resume(queue, make_spec())
    queue.move(queue.claim(job.id, ME), JobState.FAILED, error={"message": "no disk"})
    again = submit_or_resume(queue, make_spec())
    assert (again.id, again.state, again.error, again.failures) == (job.id, JobState.QUEUED, None, 0)
    queue.cancel(job.id)
    assert submit_or_resume(queue, make_spec()).id == job.id
    queue.cancel(job.id)
    assert submit_or_resume(queue, make_spec(steps=3)).id != job.id


def test_a_cancelled_run_whose_supervisor_died_does_not_block_the_name(queue: JobQueue, clock: Clock) -> None:
    job = queue.claim(submit_or_resume(queue, make_spec()).id, ELSEWHERE)
    assert queue.cancel(job.id).state is JobState.CANCELLING
    with pytest.raises(JobHeld):
        submit_or_resume(queue, make_spec())
    clock.seconds += LEASE_SECONDS + 1
    assert submit_or_resume(queue, make_spec()).state is JobState.QUEUED


def test_the_same_request_from_many_at_once_is_one_job(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/jobs.sqlite"
    gate = threading.Barrier(6)
    ids: list[str] = []

    def submit() -> None:
        mine = JobQueue(url)
        gate.wait()
        ids.append(submit_or_resume(mine, make_spec()).id)
        mine.close()

    threads = [threading.Thread(target=submit) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids) == 6
    assert len(set(ids)) == 1


def test_other_ways_to_look_at_a_job_go_on_with_it(queue: JobQueue) -> None:
    """`debug` decides no weight: the same job is taken up, by what is asked for now."""
    first = submit_or_resume(queue, make_spec())
    looking = make_spec().model_copy(update={"debug": DebugConfig(check_numerics=True)})
    again = submit_or_resume(queue, looking)
    assert again.id == first.id
    assert again.spec.debug.check_numerics
    assert submit_or_resume(queue, make_spec()).spec == make_spec()
