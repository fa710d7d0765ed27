"""Rows: a Job and a JobEvent as the tables hold them. Moments are seconds since the epoch, values are JSON text.

Takes rows. Gives frozen values, and back. Next: `finetune.jobs.queue`.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from finetune.jobs.job import Job, JobEvent, JobState
from finetune.jobs.owner import Owner
from finetune.spec import JobSpec


def new_row(job_id: str, spec: JobSpec, *, created: float, again: bool, scheduled: bool) -> dict[str, Any]:
    text = json.dumps(spec.to_json(), ensure_ascii=False)
    row = {"id": job_id, "name": spec.name, "spec": text, "created": created, "again": again, "scheduled": scheduled}
    return row | {"fence": 0, "attempts": 0, "failures": 0}


def moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, tz=UTC)


def _maybe_moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else moment(seconds)


def _maybe_json(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def job_of(row: Any) -> Job:
    return Job(
        id=row.id,
        spec=JobSpec.model_validate(json.loads(row.spec)),
        state=JobState(row.state),
        fence=row.fence,
        owner=None if row.owner is None else Owner.decode(row.owner),
        lease_until=_maybe_moment(row.lease_until),
        attempts=row.attempts,
        failures=row.failures,
        created=moment(row.created),
        updated=moment(row.updated),
        not_before=_maybe_moment(row.not_before),
        again=row.again,
        scheduled=row.scheduled,
        error=_maybe_json(row.error),
        result=_maybe_json(row.result),
        progress=_maybe_json(row.progress),
    )


def event_of(row: Any) -> JobEvent:
    return JobEvent(
        cursor=row.id,
        job=row.job,
        time=moment(row.time),
        kind=row.kind,
        state=JobState(row.state),
        body=json.loads(row.body),
    )
