"""JobQueue: the only writer of the tables. Several processes may use one database.

Takes JobSpecs. Gives Jobs and JobEvents. Next: `finetune.jobs.supervisor`, `server.scheduler`.
Each change is one UPDATE that names the state and the fence it was meant for, and one event, in one transaction. An
update that hits no row is looked into and refused: StaleFence when somebody has claimed the job since, StateChanged
when it has moved on.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.exc import DBAPIError, IntegrityError

from finetune.jobs.job import (
    ENDED,
    OWNED,
    Job,
    JobEnded,
    JobEvent,
    JobHeld,
    JobState,
    StaleFence,
    StateChanged,
    UnknownJob,
    check_transition,
)
from finetune.jobs.owner import Owner
from finetune.jobs.rows import event_of, job_of, moment, new_row
from finetune.jobs.tables import (
    EVENTS,
    JOBS,
    STORE,
    QueueUnavailable,
    chosen_queue_url,
    default_queue_url,
    open_engine,
    shown_url,
)
from finetune.spec import JobSpec
from zoo.errors import AlreadyExists, FailedPrecondition
from zoo.store import open_store

LEASE_SECONDS = 30.0
HEARTBEAT_SECONDS = 10.0


class NameBusy(AlreadyExists):
    """Another unfinished job publishes to the same model."""


class QueueOfAnotherStore(FailedPrecondition):
    """The database has the jobs of another store, which would be run in this one."""


class JobQueue:
    """The jobs of one store. Safe to use from several threads.

    Args:
        url: a database URL, see `finetune.jobs.tables.default_queue_url`.
        now: seconds since the epoch; tests give their own.
    """

    def __init__(self, url: str, *, now: Callable[[], float] = time.time) -> None:
        self.url = url
        self._engine = open_engine(url)
        self._writes = self._engine.execution_options(writes=True)
        self._now = now

    @classmethod
    def of_store(cls, store_url: str, *, url: str | None = None) -> JobQueue:
        """The queue of a store: `url`, else `MODELZOO_QUEUE`, else the store's own file.

        Raises QueueOfAnotherStore for one that another store's jobs are in, and what `open_engine` raises.
        """
        url = url or chosen_queue_url(store_url)
        queue = cls(url)
        if url != default_queue_url(store_url):
            try:
                queue._belong_to(open_store(store_url).url)
            except BaseException:
                queue.close()
                raise
        return queue

    def _belong_to(self, store: str) -> None:
        with self._write() as connection:
            kept = connection.execute(sa.select(STORE.c.url)).scalar()
            if kept is None:
                try:
                    connection.execute(sa.insert(STORE).values(id=1, url=store))
                    return
                except IntegrityError:  # another process was faster; what it wrote is seen from outside
                    pass
        if kept is None:
            with self._read() as connection:
                kept = connection.execute(sa.select(STORE.c.url)).scalar()
        if kept != store:
            raise QueueOfAnotherStore(
                f"the job queue {shown_url(self.url)} holds the jobs of {kept}, not of {store}",
                hint="give each store a database of its own",
            )

    def close(self) -> None:
        self._engine.dispose()

    def now(self) -> datetime:
        return moment(self._now())

    # -- reading

    def get(self, job_id: str) -> Job:
        """Raises UnknownJob."""
        with self._read() as connection:
            return self._get(connection, job_id)

    def list(
        self, *, name: str | None = None, before: tuple[datetime, str] | None = None, limit: int = 100
    ) -> Sequence[Job]:
        """Newest first; `before` is (created, id) of the last job of the page before."""
        query = sa.select(JOBS).order_by(JOBS.c.created.desc(), JOBS.c.id.desc()).limit(limit)
        if name is not None:
            query = query.where(JOBS.c.name == name)
        if before is not None:
            query = query.where(sa.tuple_(JOBS.c.created, JOBS.c.id) < sa.tuple_(before[0].timestamp(), before[1]))
        with self._read() as connection:
            return [job_of(row) for row in connection.execute(query)]

    def latest(self, name: str) -> Job | None:
        """The newest job that publishes to the model `name`."""
        return next(iter(self.list(name=name, limit=1)), None)

    def in_states(self, states: Collection[JobState]) -> Sequence[Job]:
        """Oldest first."""
        query = sa.select(JOBS).where(JOBS.c.state.in_([str(state) for state in states])).order_by(JOBS.c.created)
        with self._read() as connection:
            return [job_of(row) for row in connection.execute(query)]

    def events(self, job_id: str, *, after: int = 0, limit: int = 1000) -> Sequence[JobEvent]:
        """What happened after the cursor, in order. Raises UnknownJob."""
        query = sa.select(EVENTS).where(EVENTS.c.job == job_id, EVENTS.c.id > after).order_by(EVENTS.c.id).limit(limit)
        with self._read() as connection:
            found = [event_of(row) for row in connection.execute(query)]
            if not found:
                self._get(connection, job_id)
            return found

    def role_events(self, job_id: str) -> Sequence[JobEvent]:
        """All that happened to the job's processes and to its state, in order. Raises UnknownJob."""
        query = sa.select(EVENTS).where(EVENTS.c.job == job_id, EVENTS.c.kind != "progress").order_by(EVENTS.c.id)
        with self._read() as connection:
            self._get(connection, job_id)
            return [event_of(row) for row in connection.execute(query)]

    # -- changes that need no lease

    def create(self, spec: JobSpec, *, again: bool = False, scheduled: bool = False) -> Job:
        """A new job in QUEUED. Raises NameBusy while the model has an unfinished one."""
        # Whole microseconds, which a Job's `created` keeps: paging compares it with the stored number.
        now = moment(self._now()).timestamp()
        job_id = f"{moment(now):%Y%m%d-%H%M%S}-{secrets.token_hex(4)}"
        row = new_row(job_id, spec, created=now, again=again, scheduled=scheduled)
        with self._write() as connection:
            try:
                connection.execute(sa.insert(JOBS).values(**row, state=str(JobState.QUEUED), updated=now))
            except IntegrityError:
                raise NameBusy(f"model {spec.name!r} already has an unfinished job", name=spec.name) from None
            self._event(connection, job_id, "state", JobState.QUEUED, 0, {}, now)
            return self._get(connection, job_id)

    def adopt(
        self, job_id: str, spec: JobSpec, *, state: JobState, created: float, again: bool, scheduled: bool,
        error: Mapping[str, Any] | None, result: Mapping[str, Any] | None, message: str,
    ) -> Job:  # fmt: skip
        """A job that another queue began, as QUEUED or as it ended. Raises NameBusy as `create`."""
        now = self._now()
        row = new_row(job_id, spec, created=moment(created).timestamp(), again=again, scheduled=scheduled)
        ends = {"error": error and json.dumps(dict(error)), "result": result and json.dumps(dict(result))}
        with self._write() as connection:
            try:
                connection.execute(sa.insert(JOBS).values(**row, **ends, state=str(state), updated=now))
            except IntegrityError:
                raise NameBusy(f"model {spec.name!r} already has an unfinished job", name=spec.name) from None
            self._event(connection, job_id, "state", state, 0, {"message": message}, now)
            return self._get(connection, job_id)

    def claim(self, job_id: str, owner: Owner) -> Job:
        """Takes the lease and raises the fence: the job is STARTING.

        QUEUED jobs, and owned ones whose lease has run out or whose owner is known to be dead. A BACKOFF goes through
        QUEUED first. Raises UnknownJob, JobHeld, JobEnded.
        """
        job = self.get(job_id)
        if job.state is JobState.BACKOFF:
            job = self.move(job, JobState.QUEUED)
        if job.state in ENDED:
            raise JobEnded(f"job {job.id} has ended: {job.state}", job=job.id)
        if job.alive(self.now()):
            raise JobHeld(
                f"job {job.id} is being run by {job.owner} ({job.state})",
                hint=f"finetune watch {job.id}, or finetune cancel {job.id}",
                job=job.id,
            )
        if job.state is JobState.CANCELLING:
            self.move(job, JobState.CANCELLED)
            raise JobEnded(
                f"job {job.id} was being cancelled when its supervisor died; it is CANCELLED now", job=job.id
            )
        return self.move(
            job,
            JobState.STARTING,
            fence=job.fence + 1,
            owner=owner.encode(),
            lease_until=self._now() + LEASE_SECONDS,
            attempts=job.attempts + 1,
            not_before=None,
            error=None,
            message=f"claimed by {owner}",
            when=_abandoned(job, self._now()),
        )

    def cancel(self, job_id: str) -> Job:
        """CANCELLING where somebody runs it (the supervisor ends it), CANCELLED at once where nobody does.

        Raises UnknownJob, JobEnded.
        """
        for _ in range(20):  # the job may move under us; every round starts from what it is now
            job = self.get(job_id)
            if job.state is JobState.CANCELLING:
                return job
            if job.state in ENDED or job.state is JobState.PUBLISHING:
                doing = "is being published" if job.state is JobState.PUBLISHING else f"has ended: {job.state}"
                raise JobEnded(f"job {job.id} cannot be cancelled, it {doing}", job=job.id)
            try:
                if job.alive(self.now()):
                    return self.move(job, JobState.CANCELLING, message="asked for")
                # With the fence raised, a supervisor that only seemed to be gone is refused and stops.
                return self.move(job, JobState.CANCELLED, fence=job.fence + 1, when=_abandoned(job, self._now()))
            except (StateChanged, StaleFence):
                continue
        raise StateChanged(f"job {job_id} changes its state faster than it can be cancelled", hint="try again")

    def requeue(self, job: Job, *, again: bool, scheduled: bool) -> Job:
        """A FAILED or CANCELLED job once more, from its last Checkpoint."""
        return self.move(
            job, JobState.QUEUED, failures=0, error=None, not_before=None, again=again, scheduled=scheduled
        )

    def look_otherwise(self, job: Job, spec: JobSpec) -> Job:
        """A job that nobody runs, with the `debug` part of `spec`, which decides none of its weights."""
        changed = job.spec.model_copy(update={"debug": spec.debug})
        text = json.dumps(changed.to_json(), ensure_ascii=False)
        with self._write() as connection:
            connection.execute(sa.update(JOBS).where(JOBS.c.id == job.id, JOBS.c.fence == job.fence).values(spec=text))
            return self._get(connection, job.id)

    def let_server_run(self, job: Job) -> Job:
        """Marks an unfinished job as one that a server may run by itself."""
        with self._write() as connection:
            connection.execute(sa.update(JOBS).where(JOBS.c.id == job.id).values(scheduled=True))
            return self._get(connection, job.id)

    # -- changes by the owner of the lease

    def heartbeat(self, job: Job) -> Job:
        """Prolongs the lease; no event. Raises StaleFence."""
        now = self._now()
        with self._write() as connection:
            done = connection.execute(
                sa.update(JOBS)
                .where(JOBS.c.id == job.id, JOBS.c.fence == job.fence, JOBS.c.state.in_([str(s) for s in OWNED]))
                .values(lease_until=now + LEASE_SECONDS)
            )
            current = self._get(connection, job.id)
            if done.rowcount != 1:
                raise _refusal(job, current)
            return current

    def progress(self, job: Job, progress: Mapping[str, Any]) -> Job:
        """Mirrors the chief's progress.json. Raises StaleFence, StateChanged."""
        changes = {"progress": json.dumps(dict(progress), allow_nan=False)}
        return self._change(job, changes, kind="progress", state=job.state, body=progress)

    def note(self, job: Job, message: str, **facts: Any) -> Job:
        """An event about a process of the job. Raises StaleFence, StateChanged."""
        return self._change(job, {}, kind="role", state=job.state, body={"message": message, **facts})

    def move(
        self,
        job: Job,
        to: JobState,
        *,
        message: str | None = None,
        when: sa.ColumnElement[bool] | None = None,
        **columns: Any,
    ) -> Job:
        """The job in its next state. `columns` are the table's, as they are stored; dicts become JSON.

        `when`: what else must still hold of the row.

        Raises IllegalTransition, StaleFence, StateChanged.
        """
        check_transition(job.state, to)
        changes = {key: json.dumps(value) if isinstance(value, dict) else value for key, value in columns.items()}
        if to not in OWNED:
            changes |= {"owner": None, "lease_until": None}
        body = {"message": message} if message else {}
        return self._change(job, changes | {"state": str(to)}, kind="state", state=to, body=body, when=when)

    # -- the machinery

    def _change(
        self,
        job: Job,
        changes: Mapping[str, Any],
        *,
        kind: str,
        state: JobState,
        body: Mapping[str, Any],
        when: sa.ColumnElement[bool] | None = None,
    ) -> Job:
        now = self._now()
        update = sa.update(JOBS).where(JOBS.c.id == job.id, JOBS.c.state == str(job.state), JOBS.c.fence == job.fence)
        if when is not None:
            update = update.where(when)
        with self._write() as connection:
            done = connection.execute(update.values(**changes, updated=now))
            if done.rowcount != 1:
                raise _refusal(job, self._get(connection, job.id))
            self._event(connection, job.id, kind, state, int(changes.get("fence", job.fence)), body, now)
            return self._get(connection, job.id)

    def _event(
        self,
        connection: Connection,
        job_id: str,
        kind: str,
        state: JobState,
        fence: int,
        body: Mapping[str, Any],
        now: float,
    ) -> None:
        text = json.dumps(dict(body), ensure_ascii=False, allow_nan=False)
        connection.execute(
            sa.insert(EVENTS).values(job=job_id, time=now, kind=kind, state=str(state), fence=fence, body=text)
        )

    def _get(self, connection: Connection, job_id: str) -> Job:
        row = connection.execute(sa.select(JOBS).where(JOBS.c.id == job_id)).one_or_none()
        if row is None:
            raise UnknownJob(f"there is no job {job_id!r}", hint="finetune list", job=job_id[:100])
        return job_of(row)

    def _read(self) -> _Answering:
        return _Answering(self._engine.connect)

    def _write(self) -> _Answering:
        return _Answering(self._writes.begin)


class _Answering:
    """A connection or transaction whose database errors come out as QueueUnavailable."""

    def __init__(self, opened: Callable[[], Any]) -> None:
        self._opened = opened

    def __enter__(self) -> Connection:
        try:
            self._inner = self._opened()  # which connects, where the pool has no connection left
            return self._inner.__enter__()
        except DBAPIError as error:
            raise QueueUnavailable(f"the job queue does not answer: {error.orig}") from error

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            self._inner.__exit__(kind, error, trace)
        except DBAPIError as late:
            raise QueueUnavailable(f"the job queue does not answer: {late.orig}") from late
        if isinstance(error, DBAPIError):
            raise QueueUnavailable(f"the job queue does not answer: {error.orig}") from error


def _refusal(meant: Job, current: Job) -> StaleFence | StateChanged:
    if current.fence != meant.fence:
        return StaleFence(
            f"job {meant.id} was claimed anew (fence {current.fence}, by {current.owner}); "
            f"a write with fence {meant.fence} is refused",
            job=meant.id,
        )
    return StateChanged(
        f"job {meant.id} is {current.state}, expected {meant.state} and no news from its owner", job=meant.id
    )


def _abandoned(job: Job, now: float) -> sa.ColumnElement[bool]:
    """That still nobody runs the job. Its owner may have sent a heartbeat since it was read; a dead one can't."""
    if job.owner is not None and job.owner.is_dead():
        return JOBS.c.owner == job.owner.encode()
    return sa.or_(JOBS.c.lease_until.is_(None), JOBS.c.lease_until <= now)
