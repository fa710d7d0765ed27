"""Lease: a claim on a job that is renewed while its supervisor works, and known to be lost when it isn't.

Takes a claimed job. Gives heartbeats, and StaleFence to whoever asks too late. Next: `finetune.jobs.supervisor`.
"""

from __future__ import annotations

import sys
import threading
import time

from finetune.jobs.job import Job, StaleFence, StateChanged
from finetune.jobs.queue import LEASE_SECONDS, JobQueue, QueueUnavailable


class Lease:
    """Heartbeats from a thread of their own, since publishing may take minutes."""

    def __init__(self, queue: JobQueue, job: Job, every: float) -> None:
        self._queue = queue
        self._job = job
        self._every = every
        self._ended = threading.Event()
        self._renewed = time.monotonic()
        self._lost: str | None = None
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()

    def check(self) -> None:
        """Raises StaleFence when the lease is lost, or may be: then others may already run the job."""
        if self._lost is None and time.monotonic() - self._renewed > LEASE_SECONDS:
            self._lost = f"no heartbeat went through for {LEASE_SECONDS:.0f} s"
        if self._lost is not None:
            raise StaleFence(f"the lease of job {self._job.id} is lost: {self._lost}", job=self._job.id)

    def _beat(self) -> None:
        while not self._ended.wait(self._every):
            begun = time.monotonic()
            try:
                self._queue.heartbeat(self._job)
            except StaleFence as error:
                self._lost = error.message
                return
            except StateChanged:  # the job has just ended; the main thread knows, or will when it writes
                return
            except QueueUnavailable as error:  # tried again until the lease has run out
                print(f"warning: no heartbeat: {error.message}", file=sys.stderr)
                continue
            self._renewed = begun
