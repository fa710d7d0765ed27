"""A job's folder by what people call it: its id, its model's name, or the folder itself; also one that isn't there yet.

Takes JOB as typed. Gives a JobFolder. Next: `finetune evaluate --job`, `finetune worker`.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.cli.jobs import job_id_of, opened
from zoo.cli.output import say
from zoo.errors import NotFound, Unavailable, ZooError

if TYPE_CHECKING:
    from finetune.jobs.folder import JobFolder

_POLL = 0.5  # seconds


class FolderNotHere(NotFound):
    """The job is known, but its folder is on another machine."""


class JobOver(NotFound):
    """The newest job of the model has ended, and an unfinished one is wanted."""


class JobNeverCame(Unavailable):
    """No job appeared where one was waited for."""


def is_path(job: str) -> bool:
    """Whether JOB is a folder: it has a separator, or holds a spec.json."""
    path = Path(job)
    return path.name != job or (path / "spec.json").exists()


def folder_of(job: str, store: str | None, *, unfinished: bool = False) -> JobFolder:
    """Raises UnknownJob, FolderNotHere, NotAJobFolder, and JobOver for an `unfinished` one that has ended."""
    from finetune.jobs.folder import JobFolder, NotAJobFolder
    from finetune.jobs.job import ENDED
    from finetune.jobs.supervisor import job_folder_path
    from zoo.catalog import open_catalog

    if is_path(job):
        folder = JobFolder(Path(job).resolve())
        if not folder.spec_path.exists():
            raise NotAJobFolder(f"{folder.root} is no job folder: it has no spec.json", hint="finetune list")
        return folder
    job_id = job_id_of(job, store)
    if unfinished:
        with opened(store, None, None) as jobs:
            state = jobs.get_job(job_id)["state"]
        if state in ENDED:
            raise JobOver(f"job {job_id} has ended: {state}")
    folder = JobFolder(job_folder_path(open_catalog(store), job_id))
    if not folder.spec_path.exists():
        raise FolderNotHere(
            f"job {job_id} has no folder at {folder.root}: it hasn't begun, or another machine runs it",
            hint=f"finetune get {job_id}",
        )
    return folder


def waited_for(job: str, store: str | None, timeout: float, *, unfinished: bool = False) -> JobFolder:
    """As `folder_of`, for a job that may not have begun yet. Raises JobNeverCame naming where it watched."""
    from finetune.jobs.folder import NotAJobFolder
    from finetune.jobs.job import UnknownJob

    deadline, told = time.monotonic() + timeout, False
    while True:
        try:
            return folder_of(job, store, unfinished=unfinished)
        except (UnknownJob, FolderNotHere, NotAJobFolder, JobOver) as error:
            _require_time(job, store, error, deadline, timeout)
            if not told:
                say(f"waiting for it: {error.message}")
            told = True
        time.sleep(_POLL)


def _require_time(job: str, store: str | None, error: ZooError, deadline: float, timeout: float) -> None:
    if time.monotonic() <= deadline:
        return
    from zoo.store import default_store_url

    where = str(Path(job).resolve()) if is_path(job) else f"{store or default_store_url()}/jobs"
    raise JobNeverCame(f"waited {timeout:.0f} s for job {job!r} in {where}: {error.message}", hint="finetune list")
