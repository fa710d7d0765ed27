"""VersionOfJob: which version of a name came from a job, so that a job publishes at most once.

Takes a job's id and a model's states, newer ones after lost races. Gives the version's entry. Next: `zoo.lifecycle`
asks it of the very state that a commit will follow.
"""

from __future__ import annotations

from collections.abc import Callable

from zoo.log import ModelState, VersionEntry
from zoo.manifest import Manifest


class VersionOfJob:
    """`read` gives a manifest by its digest and what it is of; each is read once. No version is of the job None."""

    def __init__(self, read: Callable[[str, str], Manifest], job: str | None) -> None:
        self._read = read
        self._job = job
        self._read_to = 0  # the number of the last version that was looked at
        self.entry: VersionEntry | None = None

    def is_in(self, state: ModelState) -> bool:
        """Raises DamagedManifest, NewerManifest: what can't be read may be that version."""
        if self._job is not None:
            for entry in state.versions:
                if self.entry is None and entry.number > self._read_to:
                    manifest = self._read(entry.digest, f"{state.name}@{entry.number}")
                    self.entry = entry if manifest.lineage.job == self._job else None
                    self._read_to = entry.number
        return self.entry is not None
