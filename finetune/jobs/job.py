"""Job: one fine-tune request on its way to a ModelVersion, and the states that it may pass through.

Takes a JobSpec. Gives frozen values that `finetune.jobs.queue` reads and writes. Next: `finetune.jobs.supervisor`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from finetune.jobs.owner import Owner
from finetune.spec import JobSpec
from zoo.describe import rfc3339
from zoo.errors import Aborted, FailedPrecondition, Internal, NotFound


class JobState(StrEnum):
    QUEUED = "QUEUED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    PUBLISHING = "PUBLISHING"
    SUCCEEDED = "SUCCEEDED"
    BACKOFF = "BACKOFF"
    CANCELLING = "CANCELLING"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"


_S = JobState
# From each state, the states that one update may lead to. STARTING again is a claim after the owner's lease has ended.
TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    _S.QUEUED: frozenset({_S.STARTING, _S.CANCELLED}),
    _S.STARTING: frozenset(
        {_S.STARTING, _S.RUNNING, _S.PUBLISHING, _S.BACKOFF, _S.QUEUED, _S.CANCELLING, _S.CANCELLED, _S.FAILED}
    ),
    _S.RUNNING: frozenset({_S.STARTING, _S.PUBLISHING, _S.BACKOFF, _S.QUEUED, _S.CANCELLING, _S.CANCELLED, _S.FAILED}),
    _S.PUBLISHING: frozenset({_S.STARTING, _S.SUCCEEDED, _S.BACKOFF, _S.QUEUED, _S.FAILED}),
    _S.BACKOFF: frozenset({_S.QUEUED, _S.CANCELLED}),
    _S.CANCELLING: frozenset({_S.CANCELLED}),
    _S.CANCELLED: frozenset({_S.QUEUED}),  # retried by hand
    _S.FAILED: frozenset({_S.QUEUED}),  # retried by hand
    _S.SUCCEEDED: frozenset(),
}
ENDED = frozenset({_S.SUCCEEDED, _S.CANCELLED, _S.FAILED})
OWNED = frozenset({_S.STARTING, _S.RUNNING, _S.PUBLISHING, _S.CANCELLING})  # somebody holds a lease, or held one


class UnknownJob(NotFound):
    """No job has that id."""


class StaleFence(Aborted):
    """Another supervisor has claimed the job since; this one's writes are refused."""


class StateChanged(Aborted):
    """The job is no longer in the state that the update was meant for."""


class IllegalTransition(Internal):
    """An update that `TRANSITIONS` doesn't know: a fault of ours."""


class JobHeld(FailedPrecondition):
    """A live supervisor holds the job's lease, so nobody else may run it."""


class UnfinishedWithAnotherSpec(FailedPrecondition):
    """The model has an unfinished job, and what is asked now differs from it."""


class JobEnded(FailedPrecondition):
    """The job is over, or too near its end, for what was asked."""


def check_transition(source: JobState, target: JobState) -> None:
    """Raises IllegalTransition."""
    if target not in TRANSITIONS[source]:
        allowed = ", ".join(sorted(TRANSITIONS[source])) or "none"
        raise IllegalTransition(f"a job cannot go from {source} to {target}; from {source} it can go to: {allowed}")


@dataclass(frozen=True, kw_only=True)
class Job:
    """A row of the table `jobs` at one moment.

    `fence` rises with every claim; `lease_until` (UTC) is when others may claim it. `attempts` counts claims,
    `failures` crashes since it was last queued by a user. `scheduled`: a server may run it by itself; False for a job
    of `finetune run`, which goes on only when the user says so. `error` is `ZooError.to_dict()`, `result` what
    `finetune run --format json` prints, `progress` the chief's progress.json.
    """

    id: str
    spec: JobSpec
    state: JobState
    fence: int
    owner: Owner | None
    lease_until: datetime | None
    attempts: int
    failures: int
    created: datetime
    updated: datetime
    not_before: datetime | None
    again: bool
    scheduled: bool
    error: Mapping[str, Any] | None = None
    result: Mapping[str, Any] | None = None
    progress: Mapping[str, Any] | None = None

    @property
    def name(self) -> str:
        """The model that it publishes to."""
        return self.spec.name

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def to_json(self) -> dict[str, Any]:
        """What `finetune get --format json` prints, here and through a server."""
        return {
            "id": self.id,
            "name": self.name,
            "state": str(self.state),
            "spec": self.spec.to_json(),
            "fence": self.fence,
            "owner": None if self.owner is None else str(self.owner),
            "lease_until": _time(self.lease_until),
            "attempts": self.attempts,
            "created": _time(self.created),
            "updated": _time(self.updated),
            "error": self.error,
            "result": self.result,
            "progress": self.progress,
        }

    def alive(self, now: datetime) -> bool:
        """Whether somebody may be running it: the lease holds, and its owner isn't known to be dead."""
        if self.state not in OWNED or self.lease_until is None:
            return False
        return now < self.lease_until and not (self.owner is not None and self.owner.is_dead())


@dataclass(frozen=True, kw_only=True)
class JobEvent:
    """Something that happened to a job. `cursor` rises within a job; `kind` is `state`, `progress` or `role`."""

    cursor: int
    job: str
    time: datetime
    kind: str
    state: JobState
    body: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A line of `finetune watch --format json`."""
        return {
            "cursor": self.cursor,
            "job": self.job,
            "time": _time(self.time),
            "kind": self.kind,
            "state": str(self.state),
            "message": self.message,
            "role": self.body.get("role") if self.kind == "role" else None,
            "progress": dict(self.body) if self.kind == "progress" else None,
        }

    @property
    def message(self) -> str:
        """One line for people."""
        if self.kind == "state":
            reason = self.body.get("message")
            return f"{self.state}: {reason}" if reason else str(self.state)
        return str(self.body.get("message", ""))


def _time(moment: datetime | None) -> str | None:
    return None if moment is None else rfc3339(moment)
