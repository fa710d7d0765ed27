"""Waiting: for what the chief prepares, by the processes that start beside it. No TensorFlow.

Takes a job's folder. Gives nothing, once prepared.json is there. Next: `finetune.training.prepare.load_prepared`.
"""

from __future__ import annotations

import time

from finetune.jobs.folder import JobFolder
from finetune.training.progress import pulse_age
from zoo.errors import Unavailable

_PREPARE_TIMEOUT = 600.0  # seconds without a sign of the chief


class NotPrepared(Unavailable):
    """Waited for a chief that isn't there, or that failed."""


def wait_for_prepared(job: JobFolder, *, beside_chief: bool = False) -> None:
    """Raises NotPrepared when no chief is alive, and, `beside_chief`, when it has failed: then nobody comes."""
    began = time.monotonic()
    while not job.prepared_path.exists():
        if beside_chief and (error := job.read_error()):
            raise NotPrepared(f"the chief failed: {error.get('message')}")
        if min(time.monotonic() - began, pulse_age(job.progress_path)) > _PREPARE_TIMEOUT:
            raise NotPrepared(
                f"{job.root} was not prepared within {_PREPARE_TIMEOUT:.0f} s, and no chief is alive there"
            )
        time.sleep(0.2)
