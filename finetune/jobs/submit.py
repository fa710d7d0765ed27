"""What a request becomes: a new job, the unfinished one of the same spec, or a refusal that shows the difference.

Takes a JobSpec. Gives a Job. Next: `finetune.jobs.supervisor` (the local CLI) or the server's scheduler.
"""

from __future__ import annotations

from finetune.jobs.adopt import adopt_newest, is_elsewhere
from finetune.jobs.folder import spec_differences
from finetune.jobs.job import Job, JobHeld, JobState, StaleFence, StateChanged, UnfinishedWithAnotherSpec
from finetune.jobs.queue import JobQueue, NameBusy
from finetune.spec import JobSpec
from zoo.store.object_store import ObjectStore


def submit_or_resume(
    queue: JobQueue, spec: JobSpec, *, again: bool = False, for_server: bool = False, store: ObjectStore | None = None
) -> Job:
    """The job to run, or to look at, for a request.

    - No job of that model, or a finished one of another spec: a new job.
    - An unfinished one of the same spec: that job, to be resumed. While a live process runs it, the local CLI is
      refused (JobHeld); a server gives it back, so that a request may be sent again after a lost answer.
    - An unfinished one of another spec: UnfinishedWithAnotherSpec, with every key that differs.
    - FAILED or CANCELLED with the same spec: the same job, queued again; it goes on from its last Checkpoint.
    - SUCCEEDED with the same spec: that job as it is, or with `again` a new one.

    Args:
        for_server: the job may be run by a server's scheduler, without the caller.
        store: where other machines' jobs are looked for, if it isn't on this disk.
    """
    if store is not None and is_elsewhere(store):
        adopt_newest(queue, store, spec, for_server=for_server)
    for _ in range(20):  # somebody else may submit, claim or cancel in between; then look again
        job = queue.latest(spec.name)
        try:
            if job is None:
                return queue.create(spec, again=again, scheduled=for_server)
            return _with_latest(queue, job, spec, again=again, for_server=for_server)
        except (NameBusy, StateChanged, StaleFence):
            continue
    raise StateChanged(f"the jobs of model {spec.name!r} keep changing", hint="try again")


def _with_latest(queue: JobQueue, job: Job, spec: JobSpec, *, again: bool, for_server: bool) -> Job:
    same = not spec_differences(job.spec, spec)
    if job.state is JobState.CANCELLING and not job.alive(queue.now()):
        job = queue.move(job, JobState.CANCELLED, message="its supervisor had died")
    if not job.ended:
        return _unfinished(queue, job, spec, for_server=for_server)
    if job.state is JobState.SUCCEEDED and same and not again:
        return job
    if job.state in (JobState.FAILED, JobState.CANCELLED) and same:
        return queue.requeue(_looked_at(queue, job, spec), again=again, scheduled=for_server)
    return queue.create(spec, again=again, scheduled=for_server)


def _unfinished(queue: JobQueue, job: Job, spec: JobSpec, *, for_server: bool) -> Job:
    differences = spec_differences(job.spec, spec)
    if differences:
        raise UnfinishedWithAnotherSpec(
            f"model {spec.name!r} has an unfinished job {job.id} ({job.state}) with another spec: "
            + "; ".join(differences),
            hint=f"finetune cancel {job.id}, or the same settings to resume it, or another --name",
            job=job.id,
        )
    if for_server:
        return job if job.scheduled else queue.let_server_run(job)
    if job.alive(queue.now()):
        raise JobHeld(
            f"a run of model {spec.name!r} is alive: job {job.id} ({job.state}), run by {job.owner}",
            hint=f"finetune watch {job.id}, or finetune cancel {job.id}",
            job=job.id,
        )
    return _looked_at(queue, job, spec)


def _looked_at(queue: JobQueue, job: Job, spec: JobSpec) -> Job:
    return job if job.spec.debug == spec.debug else queue.look_otherwise(job, spec)
