"""Waiting: for what the chief prepares, by the processes that start beside it. No TensorFlow.

Takes a job's folder. Gives nothing, once prepared.json is there. Next: `finetune.training.prepare.load_prepared`.
"""

from __future__ import annotations

import time

from finetune.jobs.folder import JobFolder
from finetune.training.progress import PulseWatch
from zoo.errors import Unavailable

SILENT_SECONDS = 600.0  # without a sign of life of the chief


class NotPrepared(Unavailable):
    """Waited for a chief that isn't there, or that failed."""


def wait_for_prepared(job: JobFolder, *, beside_chief: bool = False, timeout: float = SILENT_SECONDS) -> None:
    """Raises NotPrepared when no chief is alive, and, `beside_chief`, when it has failed: then nobody comes."""
    chief = PulseWatch(job.progress_path)
    while not job.prepared_path.exists():
        if beside_chief and (error := job.read_error()):
            raise NotPrepared(f"the chief failed: {error.get('message')}")
        if chief.silent() > timeout:
            raise NotPrepared(
                f"{job.root} was not prepared within {timeout:.0f} s, and no chief is alive there",
                hint="start the run, or look whether this is its folder",
            )
        time.sleep(0.2)
