"""The scheduler: starts a supervisor, in a process of its own, for each job that a server may run.

Takes the queue. Gives running supervisors. Next: `finetune.jobs.supervise`.
It claims nothing: the supervisor does, under its own fence, so two servers on one queue may both try and one wins. A
supervisor is detached and outlives the server; the next server sees its lease and leaves it alone.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Executor
from datetime import datetime
from pathlib import Path

from finetune.jobs.adopt import adopt_abandoned, is_elsewhere
from finetune.jobs.job import OWNED, Job, JobState, StaleFence, StateChanged
from finetune.jobs.launcher import exec_module
from finetune.jobs.queue import HEARTBEAT_SECONDS, JobQueue
from finetune.jobs.supervise import EXIT_NOT_MINE
from finetune.jobs.supervisor import EXIT_INTERRUPTED, LONGEST_PAUSE, job_folder_path
from finetune.jobs.tables import QUEUE_VARIABLE
from finetune.models.heads.captioner import FILE_ARGUMENTS
from finetune.spec import JobSpec
from server.data_roots import Roots, known_file, known_location, known_split
from server.threads import in_thread
from zoo.catalog import Catalog
from zoo.errors import ZooError

_POLL_SECONDS = 0.5
_ADOPT_SECONDS = 60.0  # between looks into a store elsewhere for jobs whose machine is gone
_LONGEST_DELAY = 60.0
_EXPECTED = frozenset({0, EXIT_INTERRUPTED, EXIT_NOT_MINE})
_WAITING = frozenset({JobState.QUEUED, JobState.BACKOFF})


class Scheduler:
    def __init__(
        self,
        queue: JobQueue,
        catalog: Catalog,
        store_url: str,
        *,
        at_most: int,
        roots: Roots,
        threads: Executor,
    ) -> None:
        self._queue = queue
        self._catalog = catalog
        self._store_url = store_url
        self._at_most = at_most
        self._threads = threads
        self._started: dict[str, subprocess.Popen[bytes]] = {}  # job id → the supervisor that we started for it
        self._roots = roots
        self._adopt_at = 0.0  # monotonic
        self._told: set[str] = set()
        self._trouble: dict[str, tuple[int, float]] = {}  # job id → failed starts, no sooner again than (monotonic)
        self._silent: dict[str, tuple[datetime | None, float]] = {}  # job id → a lease that has run out, seen since

    async def run(self) -> None:
        """Until cancelled. Supervisors go on."""
        while self._at_most:
            try:
                await self.step()
            except ZooError as error:  # the database is away, say; it is asked again
                print(f"scheduler: {error.message}", file=sys.stderr, flush=True)
            await asyncio.sleep(_POLL_SECONDS)

    async def step(self) -> None:
        """Reaps the supervisors that have ended and starts those that are due."""
        for job_id, process in list(self._started.items()):
            code = process.poll()
            if code is not None:
                del self._started[job_id]
                self._ended(job_id, code)
        if is_elsewhere(self._catalog.store) and time.monotonic() >= self._adopt_at:
            self._adopt_at = time.monotonic() + _ADOPT_SECONDS
            for text in await in_thread(self._threads, self._adopt):
                if text not in self._told:  # once, not every minute
                    print(f"scheduler: {text}", file=sys.stderr, flush=True)
                self._told.add(text)
        for job in await in_thread(self._threads, self._due):
            self._start(job)

    def _adopt(self) -> Sequence[str]:
        def require_fit(spec: JobSpec) -> None:
            known_location(spec.data.location, self._roots)
            known_split(spec.data.split, self._roots)
            for key in FILE_ARGUMENTS:
                if isinstance(path := spec.head.arguments.get(key), str):
                    known_file(path, path, self._roots)

        return adopt_abandoned(self._queue, self._catalog.store, require_fit=require_fit)

    def _due(self) -> Sequence[Job]:
        jobs = [job for job in self._queue.in_states(OWNED | _WAITING) if job.scheduled]
        now = self._queue.now()
        self._silent = {job.id: self._silent[job.id] for job in jobs if job.id in self._silent}
        alive = {job.id for job in jobs if job.alive(now) or self._may_be_alive(job)} | self._started.keys()
        for job in jobs:
            if job.state is JobState.CANCELLING and job.id not in alive:
                self._end_cancelled(job)
        due = [
            job
            for job in jobs
            if job.id not in alive
            and time.monotonic() >= self._trouble.get(job.id, (0, 0.0))[1]
            and job.state is not JobState.CANCELLING
            and (job.not_before is None or not 0 < (job.not_before - now).total_seconds() <= LONGEST_PAUSE)
        ]
        # What other machines run of a shared queue takes no room here; what an earlier server left running does.
        here = [job for job in jobs if job.id in alive and (job.owner is None or job.owner.is_here)]
        return due[: max(0, self._at_most - len(here))]

    def _may_be_alive(self, job: Job) -> bool:
        """When a machine's clock jumps ahead, every lease looks as if it had run out until its owner's next heartbeat:
        so one that isn't known to be dead is given the time for two, by a clock that doesn't jump."""
        if job.state not in OWNED or (job.owner is not None and job.owner.is_dead()):
            self._silent.pop(job.id, None)
            return False
        lease, since = self._silent.get(job.id, (None, 0.0))
        if lease != job.lease_until:
            since = time.monotonic()
            self._silent[job.id] = (job.lease_until, since)
        return time.monotonic() - since < 2 * HEARTBEAT_SECONDS

    def _end_cancelled(self, job: Job) -> None:
        """Its supervisor died before it could say so itself."""
        try:
            self._queue.move(job, JobState.CANCELLED, message="its supervisor had died")
        except (StateChanged, StaleFence) as error:
            print(f"scheduler: {error.message}", file=sys.stderr, flush=True)

    def _ended(self, job_id: str, code: int) -> None:
        """A supervisor that fails before it can claim its job would otherwise be started twice a second."""
        if code in _EXPECTED:
            self._trouble.pop(job_id, None)
            return
        tries = self._trouble.get(job_id, (0, 0.0))[0] + 1
        delay = min(2.0**tries, _LONGEST_DELAY)
        self._trouble[job_id] = (tries, time.monotonic() + delay)
        print(f"the supervisor of {job_id} ended with {code}; next try in {delay:.0f} s", file=sys.stderr, flush=True)

    def _start(self, job: Job) -> None:
        log = job_folder_path(self._catalog, job.id) / "logs" / "supervisor.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with Path(log).open("ab") as file:
            self._started[job.id] = exec_module(
                "finetune.jobs.supervise",
                ["--store", self._store_url, "--job", job.id],
                stdout=file,
                stderr=file,
                more={QUEUE_VARIABLE: self._queue.url},  # anybody could read a password in its arguments
            )
