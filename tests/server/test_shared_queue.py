"""Two servers whose jobs lie in one PostgreSQL database: one works for both, and one takes over from the other."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from finetune.jobs.job import Job, JobState
from finetune.jobs.owner import Owner
from finetune.jobs.queue import JobQueue
from server.scheduler import Scheduler
from tests.finetune.jobs.conftest import make_spec
from tests.postgres import Postgres
from tests.server.conftest import JOB, RunningServer
from tests.tiny import tiny_backbone_version
from zoo.cache import BlobCache
from zoo.catalog import Catalog
from zoo.store import open_store

_WITHIN = 240.0  # seconds; loaded machines are slow


@contextmanager
def servers(root: Path, queue: str) -> Iterator[tuple[RunningServer, RunningServer]]:
    """One that takes jobs and runs none, and one that runs them, of one store and one queue."""
    front = RunningServer(root / "front", queue=queue, max_running_jobs=0)
    works = RunningServer(root / "works", queue=queue, max_running_jobs=2, store_url=front.store_url)
    tiny_backbone_version(front.catalog)
    try:
        for server in (front, works):
            server.start()
        yield front, works
    finally:
        for server in (front, works):
            if server.process is not None:
                server.kill()


def wait_until(holds: Callable[[], bool], queue: JobQueue) -> None:
    deadline = time.monotonic() + _WITHIN
    while not holds():
        jobs = queue.list()
        assert [job.error for job in jobs if job.state in (JobState.FAILED, JobState.CANCELLED)] == []
        assert time.monotonic() < deadline, [str(job.state) for job in jobs]
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_takes_jobs_and_the_other_runs_them(tmp_path: Path, postgres: Postgres) -> None:
    """The worker is killed while one runs and one waits; the next one on that machine goes on with both."""
    with servers(tmp_path, postgres.new_database()) as (front, works), front.client() as client:
        with closing(JobQueue(front.queue_url)) as queue:
            names = [f"shared-{number}" for number in range(3)]
            for name in names:
                client.create_job(name=name, **JOB)  # type: ignore[arg-type]
            wait_until(lambda: any(job.state is JobState.RUNNING for job in queue.list()), queue)
            works.kill()
            assert front.process is not None
            front.process.send_signal(signal.SIGSTOP)  # and this one hangs for a while
            works.start()
            wait_until(lambda: all(job.ended for job in queue.list()), queue)
            front.process.send_signal(signal.SIGCONT)
            jobs = queue.list()
        assert {(job.state, job.attempts) for job in jobs} == {(JobState.SUCCEEDED, 1)}  # nothing was run twice
        with front.client() as later:  # the first one's connection was given up while the server hung
            assert {later.get_job(job.id)["state"] for job in jobs} == {"SUCCEEDED"}
        assert [len(front.catalog.versions(name)) for name in names] == [1, 1, 1]


class Noted(Scheduler):
    """Notes what it would start."""

    def __init__(self, queue: JobQueue, root: Path, threads: ThreadPoolExecutor, *, at_most: int) -> None:
        catalog = Catalog(open_store(f"file://{root}/store"), BlobCache(root / "cache"))
        super().__init__(queue, catalog, catalog.store.url, at_most=at_most, roots={}, threads=threads)
        self.ids: list[str] = []

    def _start(self, job: Job) -> None:
        self.ids.append(job.id)


@pytest.mark.parametrize(("elsewhere", "started"), [(True, 1), (False, 0)])
def test_only_what_runs_on_this_machine_takes_room(
    tmp_path: Path, postgres: Postgres, elsewhere: bool, started: int
) -> None:
    me = Owner.of_this_process()
    with closing(JobQueue(postgres.new_database())) as queue, ThreadPoolExecutor(1) as threads:
        running = queue.create(make_spec("running"), scheduled=True)
        queue.claim(running.id, replace(me, place="another-boot") if elsewhere else me)
        waiting = queue.create(make_spec("waiting"), scheduled=True)
        scheduler = Noted(queue, tmp_path, threads, at_most=1)
        asyncio.run(scheduler.step())
        assert scheduler.ids == [waiting.id] * started
