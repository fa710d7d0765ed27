"""The scheduler and clocks: a jump makes no living supervisor look dead."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from finetune.jobs.job import JobState
from finetune.jobs.owner import Owner
from finetune.jobs.queue import JobQueue
from server.scheduler import Scheduler
from tests.finetune.jobs.conftest import Clock, make_spec
from zoo.catalog import open_catalog


def test_a_clock_that_jumps_starts_no_second_supervisor(tmp_path: Path) -> None:
    clock = Clock()
    queue = JobQueue(f"sqlite:///{tmp_path}/jobs.sqlite", now=clock)
    store_url = f"file://{tmp_path}/store"
    job = queue.claim(queue.create(make_spec(), scheduled=True).id, Owner.of_this_process())
    with ThreadPoolExecutor(1) as threads:
        scheduler = Scheduler(queue, open_catalog(store_url), store_url, at_most=2, roots={}, threads=threads)
        for jump in (3600.0, -7200.0):
            clock.seconds += jump
            asyncio.run(scheduler.step())
            job = queue.heartbeat(job)
            asyncio.run(scheduler.step())
    commands = [" ".join(child.cmdline()) for child in psutil.Process().children()]
    assert not [command for command in commands if "finetune.jobs.supervise" in command]
    assert (queue.get(job.id).state, queue.get(job.id).fence) == (JobState.STARTING, job.fence)
    queue.close()
