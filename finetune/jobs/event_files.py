"""A job's event files on this disk, wherever the job runs. No TensorFlow.

Takes a store and a job's id. Gives a folder for TensorBoard that grows as the job's does. Next: `finetune tensorboard`.

Event files only grow, so what is new of one is fetched and appended: TensorBoard goes on reading a file that it has
open, and would not see another in its place.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finetune.jobs.folder import JobFolder
from finetune.jobs.store_lease import job_prefix
from zoo.atomic_file import make_directories
from zoo.errors import NotFound
from zoo.store.keys import check_key
from zoo.store.object_store import ObjectStore


class NoEvents(NotFound):
    """A job that has written nothing for TensorBoard yet."""


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What one pass fetched."""

    files: int
    bytes: int


class EventFiles:
    """`folder` is TensorBoard's `--logdir`. Used by one thread at a time."""

    def __init__(self, store: ObjectStore, job_id: str, folder: Path) -> None:
        self.folder = folder
        self._store = store
        self._prefix = f"{job_prefix(job_id)}events/"

    def sync(self) -> Fetched:
        """Fetches what is new. Raises InvalidKey for a key that would lead out of the folder, the store's errors."""
        files, count = 0, 0
        for info in list(self._store.list(self._prefix)):
            path = self.folder / check_key(info.key).removeprefix(self._prefix)
            have = path.stat().st_size if path.exists() else 0
            if have > info.size:  # another file of that name: a job that was begun anew
                path.unlink()
                have = 0
            if have == info.size:
                continue
            make_directories(path.parent)
            with path.open("ab") as file:
                for piece in self._store.stream(info.key, start=have, length=info.size - have):
                    file.write(piece)
                    count += len(piece)
            files += 1
        return Fetched(files=files, bytes=count)

    def require_any(self) -> None:
        """Raises NoEvents."""
        if not any(self.folder.rglob("events.out.tfevents.*")):
            raise NoEvents(f"there are no event files in {self.folder} yet", hint="finetune watch JOB")


def own_events(folder: JobFolder) -> Path | None:
    """Where a job that runs, or ran, on this machine writes them; None where it left none here."""
    return folder.events if any(folder.events.rglob("events.out.tfevents.*")) else None
