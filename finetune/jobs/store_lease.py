"""Who runs a job, told in the store itself: for stores that machines share while each has a job queue of its own.

Takes a store and a job. Gives a StoreLease, or JobHeld. Next: `finetune.jobs.mirroring`.

```
jobs/<id>/claims/<n:06>.json     create-only: of any number of claimants of n, one wins; the highest n runs the job
jobs/<id>/owner.json             a JobRecord, put again with every heartbeat and once more when the job ends
job-index/names/<model>/<id>     `/` in the model's name as %2F         job-index/open/<id>     while it hasn't ended
```

An owner is taken for dead when it is known to be (a process of this machine that has gone) or hasn't been heard of for
a minute by the store's own clock. One that only seemed dead finds the higher claim with its next heartbeat, and stops.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from finetune.jobs.folder import DamagedJobFile
from finetune.jobs.job import ENDED, OWNED, Job, JobHeld, JobState, StaleFence
from finetune.jobs.owner import Owner
from zoo.errors import ZooError
from zoo.names import key_segment
from zoo.store.object_store import NoAnswer, ObjectExists, ObjectMissing, ObjectStore, StoreBusy

STORE_LEASE_SECONDS = 60.0  # a machine's queue has shorter ones; a bucket is slower, and asked less often
NAMES = "job-index/names/"
_TRIES = 6  # while the outcome of a claim is unknown
_JOB_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{8}")  # as JobQueue.create makes them
_CLAIM_KEY = re.compile(r"/claims/([0-9]{6})\.json\Z")
_HELD = OWNED | {JobState.BACKOFF}  # its supervisor waits to start it again


class ClaimedElsewhere(StaleFence):
    """Another machine has claimed the job since, and runs it."""


class JobRecord(BaseModel):
    """What owner.json says: a job as others may see it, or take it up. Keys that aren't known are let be."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    job: str
    name: str
    state: JobState
    claim: int
    owner: str  # of the newest claim, for people
    again: bool
    scheduled: bool
    created: float  # seconds since the epoch
    time: float  # of this record, by its writer's clock
    error: dict[str, Any] | None = None
    result: dict[str, Any] | None = None


def job_prefix(job_id: str) -> str:
    return f"jobs/{job_id}/"


def record_key(job_id: str) -> str:
    return f"{job_prefix(job_id)}owner.json"


def claim_key(job_id: str, number: int) -> str:
    return f"{job_prefix(job_id)}claims/{number:06}.json"


def open_index_key(job_id: str) -> str:
    return f"job-index/open/{job_id}"


def name_index_prefix(name: str) -> str:
    return f"{NAMES}{key_segment(name)}/"


def newest_job(store: ObjectStore, name: str) -> str | None:
    """The id of the newest job that publishes to the model `name`; ids begin with the time of the request."""
    return max(_ids(store, name_index_prefix(name)), default=None)


def open_jobs(store: ObjectStore) -> Iterator[str]:
    """The ids of the jobs that haven't ended, oldest first."""
    return _ids(store, "job-index/open/")


def job_ids(store: ObjectStore, name: str | None = None) -> Iterator[str]:
    """The ids of all jobs that were ever claimed, or of those that publish to the model `name`; in no order."""
    return _ids(store, name_index_prefix(name) if name is not None else NAMES)


def _ids(store: ObjectStore, prefix: str) -> Iterator[str]:
    """An id becomes a folder's name here, so a stranger's key is none."""
    names = (info.key.rpartition("/")[2] for info in store.list(prefix))
    return (name for name in names if _JOB_ID.fullmatch(name))


def read_record(store: ObjectStore, job_id: str) -> JobRecord | None:
    """None where the store has no such job. Raises DamagedJobFile."""
    try:
        record = JobRecord.model_validate_json(store.read(record_key(job_id)))
    except ObjectMissing:
        return None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise DamagedJobFile(f"{record_key(job_id)} in {store.url} cannot be read: {where}: {first['msg']}") from None
    if record.job != job_id:
        raise DamagedJobFile(f"{record_key(job_id)} in {store.url} is of another job, {record.job[:100]!r}")
    return record


def newest_claim(store: ObjectStore, job_id: str) -> int:
    """0 where nobody ever claimed the job."""
    keys = (_CLAIM_KEY.search(info.key) for info in store.list(f"{job_prefix(job_id)}claims/"))
    return max((int(match[1]) for match in keys if match), default=0)


def holder(store: ObjectStore, job_id: str, *, lease_seconds: float = STORE_LEASE_SECONDS) -> Owner | None:
    """Who runs the job; None: nobody, or somebody who is known or taken to be dead."""
    number = newest_claim(store, job_id)
    if number == 0:
        return None
    record = read_record(store, job_id)
    if record is not None and record.claim >= number and record.state not in _HELD:
        return None
    key = claim_key(job_id, number)
    try:
        owner = Owner.decode(json.loads(store.read(key))["owner"])
    except (ValueError, TypeError, LookupError, AttributeError):
        raise DamagedJobFile(f"{key} in {store.url} names no owner") from None
    if owner.is_dead():
        return None
    heard = store.stat(key).modified
    if record is not None:
        heard = max(heard, store.stat(record_key(job_id)).modified)
    return owner if _store_now(store, job_id) - heard <= lease_seconds else None


def _store_now(store: ObjectStore, job_id: str) -> float:
    """By the store's clock, as `modified` is: machines may differ by minutes."""
    key = f"{job_prefix(job_id)}clock-{secrets.token_hex(4)}.json"
    store.put(key, b"{}")
    try:
        return store.stat(key).modified
    finally:
        store.delete(key)


class StoreLease:
    """One claim of one job. Safe to share between threads once it is acquired."""

    def __init__(self, store: ObjectStore, job: Job, *, lease_seconds: float = STORE_LEASE_SECONDS) -> None:
        self._store = store
        self._job = job
        self._lease_seconds = lease_seconds
        self._owner = Owner.of_this_process()
        self.claim = 0  # ours, once acquired

    def acquire(self) -> int:
        """Claims the job; returns the number of the claim before, 0 for none. Raises JobHeld."""
        job_id = self._job.id
        self._store.put(name_index_prefix(self._job.name) + job_id, b"{}")
        self._store.put(open_index_key(job_id), b"{}")
        before = newest_claim(self._store, job_id)
        alive = holder(self._store, job_id, lease_seconds=self._lease_seconds)
        if alive is not None and alive != self._owner:
            raise _held(job_id, alive, self._store.url)
        if not self._create(claim_key(job_id, before + 1)):
            raise _held(job_id, holder(self._store, job_id), self._store.url)
        self.claim = before + 1
        return before

    def beat(self, state: JobState, *, error: Any = None, result: Any = None) -> None:
        """Says that this owner is alive. Raises ClaimedElsewhere."""
        newest = newest_claim(self._store, self._job.id)
        if newest > self.claim:
            raise ClaimedElsewhere(
                f"job {self._job.id} was claimed by another machine (claim {newest} in {self._store.url}, ours is "
                f"{self.claim})",
                job=self._job.id,
            )
        record = JobRecord(
            job=self._job.id,
            name=self._job.name,
            state=state,
            claim=self.claim,
            owner=str(self._owner),
            again=self._job.again,
            scheduled=self._job.scheduled,
            created=self._job.created.timestamp(),
            time=time.time(),
            error=error,
            result=result,
        )
        self._store.put(record_key(self._job.id), record.model_dump_json(indent=1).encode())

    def release(self, state: JobState, *, error: Any = None, result: Any = None) -> None:
        """The last word of this claim. Raises ClaimedElsewhere."""
        self.beat(state, error=error, result=result)
        if state in ENDED:
            self._store.delete(open_index_key(self._job.id))

    def _create(self, key: str) -> bool:
        """Whether this process made the object; a lost answer is settled by reading it."""
        mine = json.dumps({"owner": self._owner.encode(), "id": secrets.token_hex(16)}).encode()
        trouble: ZooError | None = None
        for attempt in range(_TRIES):
            try:
                self._store.create(key, mine)
            except ObjectExists as error:  # perhaps by us: a layer below may have sent it twice
                trouble = error
            except (StoreBusy, NoAnswer) as error:
                trouble = error
            else:
                return True
            try:
                return self._store.read(key) == mine
            except ObjectMissing:
                time.sleep(0.1 * 2**attempt)
        assert trouble is not None
        raise trouble


def _held(job_id: str, owner: Owner | None, where: str) -> JobHeld:
    return JobHeld(
        f"job {job_id} is being run by {owner or 'somebody who has just claimed it'}, says {where}",
        hint="wait for its end: the store shows its progress and logs, e.g. finetune get " + job_id,
        job=job_id,
    )
