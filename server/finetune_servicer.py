"""The FineTune service: converts and calls.

Takes requests. Gives Jobs and their events. Next: `finetune.jobs`, whose jobs `server.scheduler` starts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Executor
from contextlib import suppress

import grpc

from finetune.jobs.adopt import is_elsewhere, tell_cancelled
from finetune.jobs.job import ENDED, Job, JobEvent, JobState
from finetune.jobs.queue import JobQueue
from finetune.jobs.roles import RoleState, role_states
from finetune.jobs.submit import submit_or_resume
from protos.modelzoo.v1 import finetune_pb2, finetune_pb2_grpc
from server import convert
from server.data_roots import Roots
from server.evaluations import Evaluations
from server.threads import in_thread
from zoo.catalog import Catalog
from zoo.errors import Unavailable

_POLL_SECONDS = 0.3
_EVENTS = 500  # read at a time


class ServerStopping(Unavailable):
    """The call would last longer than the server."""


class FineTuneServicer(finetune_pb2_grpc.FineTuneServicer):
    """`stopping`: set when the server is about to end; watchers are sent away then."""

    def __init__(
        self,
        catalog: Catalog,
        queue: JobQueue,
        roots: Roots,
        threads: Executor,
        stopping: asyncio.Event,
        evaluations: Evaluations,
    ) -> None:
        self._evaluations = evaluations
        self._stopping = stopping
        self._catalog = catalog
        self._queue = queue
        self._roots = roots
        self._threads = threads

    async def CreateFineTuneJob(
        self, request: finetune_pb2.CreateFineTuneJobRequest, _context: grpc.aio.ServicerContext
    ) -> finetune_pb2.FineTuneJob:
        return convert.job(await in_thread(self._threads, self._create, request))

    def _create(self, request: finetune_pb2.CreateFineTuneJobRequest) -> Job:
        spec = convert.job_spec(request.spec, self._roots)
        for reference in filter(None, (spec.backbone, spec.start_from)):
            self._catalog.get(reference)  # an unknown one is refused now, not by a job in an hour
        store = self._catalog.store
        return submit_or_resume(self._queue, spec, again=request.again, for_server=True, store=store)

    async def GetFineTuneJob(
        self, request: finetune_pb2.GetFineTuneJobRequest, _context: grpc.aio.ServicerContext
    ) -> finetune_pb2.FineTuneJob:
        job, roles = await in_thread(self._threads, self._with_roles, request.id)
        return convert.job(job, roles)

    def _with_roles(self, job_id: str) -> tuple[Job, Sequence[RoleState]]:
        return self._queue.get(job_id), role_states(self._queue.role_events(job_id))

    async def ListFineTuneJobs(
        self, request: finetune_pb2.ListFineTuneJobsRequest, _context: grpc.aio.ServicerContext
    ) -> finetune_pb2.ListFineTuneJobsResponse:
        size = convert.page_size(request.page_size)
        before = convert.jobs_after(request.page_token)
        jobs = await in_thread(
            self._threads, self._queue.list, name=request.name or None, before=before, limit=size + 1
        )
        return finetune_pb2.ListFineTuneJobsResponse(
            jobs=[convert.job(job) for job in jobs[:size]],
            next_page_token=convert.jobs_token(jobs[size - 1]) if len(jobs) > size else "",
        )

    async def WatchFineTuneJob(
        self, request: finetune_pb2.WatchFineTuneJobRequest, _context: grpc.aio.ServicerContext
    ) -> AsyncIterator[finetune_pb2.WatchFineTuneJobResponse]:
        cursor = request.after_cursor
        while True:
            job, events = await in_thread(self._threads, self._after, request.id, cursor)
            last = job.ended and len(events) < _EVENTS
            roles = (await in_thread(self._threads, self._with_roles, request.id))[1] if last else ()
            for place, event in enumerate(events):
                ended = job if last and place == len(events) - 1 else None
                yield finetune_pb2.WatchFineTuneJobResponse(event=convert.event(event, ended, roles))
                cursor = event.cursor
            if last and not events:  # the watcher has seen all; say once more how it ended
                event = JobEvent(cursor=cursor, job=job.id, time=job.updated, kind="state", state=job.state)
                yield finetune_pb2.WatchFineTuneJobResponse(event=convert.event(event, job, roles))
            if last:
                return
            if self._stopping.is_set():
                raise ServerStopping(
                    "the server is stopping; the job goes on", hint=f"watch again after cursor {cursor}", job=job.id
                )
            if len(events) < _EVENTS:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), _POLL_SECONDS)

    def _after(self, job_id: str, cursor: int) -> tuple[Job, Sequence[JobEvent]]:
        """The job is read first: if it has ended by then, the events read next are all that there will be. It may also
        end between the two, and then they tell of it."""
        job = self._queue.get(job_id)
        events = self._queue.events(job_id, after=cursor, limit=_EVENTS)
        if events and events[-1].state in ENDED and not job.ended:
            job = self._queue.get(job_id)
        return job, events

    async def CancelFineTuneJob(
        self, request: finetune_pb2.CancelFineTuneJobRequest, _context: grpc.aio.ServicerContext
    ) -> finetune_pb2.FineTuneJob:
        return convert.job(await in_thread(self._threads, self._cancel, request.id))

    def _cancel(self, job_id: str) -> Job:
        job = self._queue.cancel(job_id)
        if job.state is JobState.CANCELLED and is_elsewhere(self._catalog.store):
            tell_cancelled(self._catalog.store, job)
        return job

    async def EvaluateVersion(
        self, request: finetune_pb2.EvaluateVersionRequest, _context: grpc.aio.ServicerContext
    ) -> finetune_pb2.EvaluateVersionResponse:
        version = await in_thread(self._threads, self._catalog.get, request.reference)
        return convert.evaluated(await self._evaluations.run(convert.evaluation(request, version, self._roots)))
