"""Adopt: jobs that the store knows and this machine's queue doesn't: another machine ran them, or a disk was lost.

Takes a store that isn't on this disk, and a queue that is. Gives rows in the queue. Next: `finetune.jobs.submit`, which
decides on them by its usual rules, and the supervisor, which fetches the folder.

A store on this disk has its queue beside it; several servers with one queue use PostgreSQL. Then there is nothing to do
here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from finetune.jobs.folder import DamagedJobFile, spec_differences
from finetune.jobs.job import ENDED, Job, JobHeld, JobState, UnfinishedWithAnotherSpec, UnknownJob
from finetune.jobs.owner import Owner
from finetune.jobs.queue import JobQueue, NameBusy
from finetune.jobs.store_lease import JobRecord, StoreLease, holder, job_prefix, newest_job, open_jobs, read_record
from finetune.spec import JobSpec
from zoo.describe import rfc3339
from zoo.errors import InvalidArgument
from zoo.store.object_store import ObjectMissing, ObjectStore


@dataclass(frozen=True, kw_only=True)
class StoredJob:
    """A job as the store tells of it. `owner`: who runs it now, as far as is known."""

    record: JobRecord
    spec: JobSpec
    owner: Owner | None

    @property
    def state(self) -> JobState:
        """What it is for whoever takes it up: what nobody runs, and hasn't ended, waits."""
        if self.record.state in ENDED or self.owner is not None:
            return self.record.state
        return JobState.QUEUED


def is_elsewhere(store: ObjectStore) -> bool:
    return store.local_path("jobs") is None


def read_job(store: ObjectStore, job_id: str) -> StoredJob | None:
    """None where the store has no such job, or one that ended before its spec was written. Raises DamagedJobFile,
    InvalidSpec."""
    record = read_record(store, job_id)
    if record is None:
        return None
    key = f"{job_prefix(job_id)}spec.json"
    try:
        spec = json.loads(store.read(key))["spec"]
    except ObjectMissing:
        return None
    except (ValueError, TypeError, LookupError):
        raise DamagedJobFile(f"{key} in {store.url} holds no spec") from None
    return StoredJob(record=record, spec=JobSpec.parse(spec), owner=holder(store, job_id))


def adopt_newest(queue: JobQueue, store: ObjectStore, spec: JobSpec, *, for_server: bool) -> None:
    """Lets the queue know the newest job of the spec's model, if it is another machine's.

    While its owner is alive, the local CLI is refused (JobHeld). A server takes it as a job that may be run once that
    owner isn't heard of any more: its supervisor asks the store again, see `finetune.jobs.store_lease`. An unfinished
    one of another spec is never let into a server's queue (UnfinishedWithAnotherSpec): it might name data that
    requests to this server may not.
    """
    job_id = newest_job(store, spec.name)
    if job_id is None or _knows(queue, job_id):
        return
    found = read_job(store, job_id)
    if found is None:
        return
    if found.owner is not None and not for_server:
        raise JobHeld(
            f"a run of model {spec.name!r} is alive on another machine: job {job_id} ({found.record.state}), run by "
            f"{found.owner}, says {store.url}",
            hint=f"finetune get {job_id} and finetune logs {job_id} show how it goes",
            job=job_id,
        )
    differences = spec_differences(found.spec, spec)
    if for_server and differences and found.record.state not in ENDED:
        raise UnfinishedWithAnotherSpec(
            f"model {spec.name!r} has an unfinished job {job_id} in {store.url} with another spec: "
            + "; ".join(differences),
            hint="the same settings to resume it, or another --name",
            job=job_id,
        )
    with suppress(NameBusy):  # the model has another unfinished job here, which goes first
        _adopt(queue, store, found)


def adopt_abandoned(queue: JobQueue, store: ObjectStore, *, require_fit: Callable[[JobSpec], None]) -> list[str]:
    """Takes up the jobs of servers that are gone; returns what is to be told, a line a job.

    Jobs of `finetune run` wait for their user. `require_fit` raises the error of a spec that may not be run here.
    """
    told = []
    for job_id in open_jobs(store):
        if _knows(queue, job_id):
            continue
        try:
            found = read_job(store, job_id)
            if found is None or not found.record.scheduled or found.state is not JobState.QUEUED:
                continue
            require_fit(found.spec)
            _adopt(queue, store, found)
        except NameBusy:  # the model has another unfinished job here, which goes first
            continue
        except (DamagedJobFile, InvalidArgument) as error:
            told.append(f"job {job_id} in {store.url} is not taken up: {error.message}")
        else:
            told.append(f"job {job_id} of a server that is gone goes on here")
    return told


def tell_cancelled(store: ObjectStore, job: Job) -> None:
    """Says in the store that a job which nobody ran is CANCELLED; one that never began isn't there. Raises JobHeld."""
    if read_record(store, job.id) is not None:
        lease = StoreLease(store, job)
        lease.acquire()
        lease.release(JobState.CANCELLED)


def _adopt(queue: JobQueue, store: ObjectStore, found: StoredJob) -> Job:
    record = found.record
    state = record.state if record.state in ENDED else JobState.QUEUED
    return queue.adopt(
        record.job,
        found.spec,
        state=state,
        created=record.created,
        again=record.again,
        scheduled=record.scheduled,
        error=record.error,
        result=record.result,
        message=f"known from {store.url}, last run by {record.owner}",
    )


def _knows(queue: JobQueue, job_id: str) -> bool:
    try:
        queue.get(job_id)
    except UnknownJob:
        return False
    return True


def stored_job_json(store: ObjectStore, found: StoredJob) -> dict[str, Any]:
    """As `Job.to_json`, of a job that only the store knows."""
    record = found.record
    return {
        "id": record.job,
        "name": record.name,
        "state": str(found.state),
        "spec": found.spec.to_json(),
        "fence": record.claim,
        "owner": record.owner if found.owner is not None else None,
        "lease_until": None,
        "attempts": record.claim,
        "created": _time(record.created),
        "updated": _time(record.time),
        "error": record.error,
        "result": record.result,
        "progress": _progress(store, record.job),
    }


def stored_log(store: ObjectStore, job_id: str, role: str) -> Iterator[bytes]:
    """The log of a role, in pieces. Raises ObjectMissing with the first."""
    return store.stream(f"{job_prefix(job_id)}logs/{role}.log")


def stored_roles(store: ObjectStore, job_id: str) -> list[str]:
    """The roles that have a log there."""
    prefix = f"{job_prefix(job_id)}logs/"
    return [info.key.removeprefix(prefix).removesuffix(".log") for info in store.list(prefix)]


def _progress(store: ObjectStore, job_id: str) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads(store.read(f"{job_prefix(job_id)}progress.json"))
    except ObjectMissing:
        return None
    return {key: part for key, part in value.items() if key not in ("time", "pid")}


def _time(seconds: float) -> str:
    return rfc3339(datetime.fromtimestamp(seconds, tz=UTC))
