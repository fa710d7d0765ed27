"""Jobs of other machines, as the store that they share tells of them: listed and followed, never touched.

Takes a store that isn't on this disk. Gives what `finetune list` and `finetune watch` print. Next: `finetune.cli.jobs`.
To take one up is another matter: `finetune.jobs.adopt`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from finetune.jobs.adopt import StoredJob, read_job, stored_job_json
from finetune.jobs.folder import DamagedJobFile
from finetune.jobs.job import ENDED, JobEvent, UnknownJob
from finetune.jobs.store_lease import job_ids
from zoo.errors import InvalidArgument
from zoo.store.object_store import ObjectStore

SHOWN = 100  # jobs that are read for a list; each takes some requests
POLL_SECONDS = 3.0
_THREADS = 8


@dataclass(frozen=True, kw_only=True)
class JobsElsewhere:
    """jobs: as `Job.to_json`, newest first. left_out: older ones that weren't read. problems: what can't be read."""

    jobs: tuple[dict[str, Any], ...]
    left_out: int
    problems: tuple[str, ...]


def jobs_elsewhere(
    store: ObjectStore, *, name: str | None = None, is_known: Callable[[str], bool], shown: int = SHOWN
) -> JobsElsewhere:
    """The newest `shown` jobs that the store knows and `is_known` doesn't. `name`: only those of this model.

    Raises the store's errors.
    """
    ids = [job_id for job_id in sorted(set(job_ids(store, name)), reverse=True) if not is_known(job_id)]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="jobs") as pool:
        found = list(pool.map(lambda job_id: _read(store, job_id), ids[:shown]))
    return JobsElsewhere(
        jobs=tuple(job for job in found if isinstance(job, dict)),
        left_out=max(len(ids) - shown, 0),
        problems=tuple(job for job in found if isinstance(job, str)),
    )


def watch_elsewhere(store: ObjectStore, job_id: str, *, after_cursor: int = 0) -> Iterator[dict[str, Any]]:
    """What happens to a job from now on to its end, as `JobEvent.to_json`: the store has no events of before.

    Raises UnknownJob, DamagedJobFile, InvalidSpec and the store's errors.
    """
    cursor, state, progress = after_cursor, None, None
    while True:
        found = read_job(store, job_id)
        if found is None:
            raise UnknownJob(f"there is no job {job_id!r} in {store.url}", hint="finetune list", job=job_id[:100])
        job = stored_job_json(store, found)
        if found.state is not state:
            state, cursor = found.state, cursor + 1
            yield _event(cursor, found, "state", {"message": _who(found, store.url)})
        if job["progress"] and job["progress"] != progress:
            progress, cursor = job["progress"], cursor + 1
            yield _event(cursor, found, "progress", progress)
        if found.state in ENDED:
            return
        time.sleep(POLL_SECONDS)


def _read(store: ObjectStore, job_id: str) -> dict[str, Any] | str:
    try:
        found = read_job(store, job_id)
    except (DamagedJobFile, InvalidArgument) as error:
        return f"job {job_id} in {store.url} cannot be read: {error.message}"
    if found is None:
        return f"job {job_id} in {store.url} has not said yet what it is of"
    return stored_job_json(store, found)


def _event(cursor: int, found: StoredJob, kind: str, body: dict[str, Any]) -> dict[str, Any]:
    now = datetime.now(UTC)
    return JobEvent(cursor=cursor, job=found.record.job, time=now, kind=kind, state=found.state, body=body).to_json()


def _who(found: StoredJob, url: str) -> str:
    if found.state in ENDED:
        return f"says {url}"
    return f"run by {found.owner}, says {url}" if found.owner else f"nobody runs it, says {url}"
