"""Mirroring: what the supervisor of a job does about a store that isn't on this disk, beside the training.

Takes a claimed Job. Gives a local folder with all that the store has of it, and keeps the store's copy up to date until
the job's end. Next: `finetune.jobs.supervisor` runs the roles in that folder.

Two threads: one says every ten seconds that this machine runs the job, so that a long upload doesn't look like a death;
one sends what has changed. A store that doesn't answer stops no training: it is told once, tried again, and at the
job's end waited for a while. Only a higher claim of another machine ends the run (StaleFence).
"""

from __future__ import annotations

import functools
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from finetune.jobs.folder import JobFolder
from finetune.jobs.job import Job, JobState, StaleFence
from finetune.jobs.mirror import JobMirror, MirrorState
from finetune.jobs.queue import HEARTBEAT_SECONDS
from finetune.jobs.restore import restore_folder, use_store
from finetune.jobs.store_lease import STORE_LEASE_SECONDS, StoreLease
from zoo.errors import ZooError
from zoo.store.object_store import ObjectStore


@dataclass(frozen=True, kw_only=True)
class MirrorPace:
    """Seconds; tests are in more of a hurry."""

    every: float = 3.0  # between passes
    heartbeat: float = HEARTBEAT_SECONDS
    lease: float = STORE_LEASE_SECONDS
    grace: float = 60.0  # at the job's end, for a store that doesn't answer
    leaving: float = 10.0  # the same when the user interrupts


class FolderCare(Protocol):
    """What the supervisor asks of the place where a job's folder is kept."""

    def begin(self) -> str | None:
        """Makes the local folder the newest there is; returns what is to be told of it. Raises JobHeld."""

    def follow(self, folder: JobFolder) -> None:
        """The folder has its spec.json: it may be mirrored."""

    def check(self) -> None:
        """Raises StaleFence."""

    def confirm(self) -> None:
        """Asks once more, before what can't be undone. Raises StaleFence, the store's errors."""

    def tell(self, state: JobState) -> None:
        """The state that the job is in now."""

    def news(self) -> list[str]:
        """What has gone wrong, or right again, since the last call."""

    def settle(self, state: JobState, *, error: Any = None, result: Any = None) -> str | None:
        """Called before the job's row says `state`: the store gets all of it. Returns what is to be told where it
        didn't."""

    def close(self) -> None:
        """Ends the threads; whatever wasn't settled is for the next claim."""


class LocalFolder:
    """The folder lies in the store itself: there is nothing to do."""

    def begin(self) -> str | None:
        return None

    def follow(self, folder: JobFolder) -> None:
        del folder

    def check(self) -> None:
        return

    def confirm(self) -> None:
        return

    def tell(self, state: JobState) -> None:
        del state

    def news(self) -> list[str]:
        return []

    def settle(self, state: JobState, *, error: Any = None, result: Any = None) -> str | None:
        del state, error, result
        return None

    def close(self) -> None:
        return


class Mirroring:
    """For a store elsewhere. `begin`, `follow`, `settle`, `close` in that order, from one thread."""

    def __init__(self, store: ObjectStore, job: Job, root: Path, *, store_url: str, pace: MirrorPace) -> None:
        self._store = store
        self._job = job
        self._root = root
        self._store_url = store_url
        self._pace = pace
        self._lease = StoreLease(store, job, lease_seconds=pace.lease)
        self._state = job.state
        self._lost: StaleFence | None = None
        self._trouble = _Trouble(store.url)
        self._ended = threading.Event()  # close: nothing more is begun
        self._finish = threading.Event()  # settle: one last pass, until it went through
        self._finished = threading.Event()
        self._last_word: dict[str, Any] = {}
        self._threads: list[threading.Thread] = []

    def begin(self) -> str | None:
        before = self._lease.acquire()
        self._lease.beat(self._state)
        self._start(self._beat, "store-heartbeat")
        known = MirrorState.read(self._root)
        if before in (0, known.claim) or not any(self._store.list(f"jobs/{self._job.id}/spec.json")):
            known.claim = self._lease.claim  # nobody has done more of it than what lies here
            self._root.mkdir(parents=True, exist_ok=True)
            known.write(self._root)
            return None
        folder = JobFolder(self._root)
        restored = restore_folder(self._store, self._job.id, folder, claim=self._lease.claim)
        use_store(folder, self._store_url)
        at = f"the Checkpoint of step {restored.step}" if restored.step is not None else "no Checkpoint"
        dropped = f"; {restored.dropped} objects of later steps are made again" if restored.dropped else ""
        return f"fetched {restored.files} files ({restored.bytes} bytes) from {self._store.url}, {at}{dropped}"

    def follow(self, folder: JobFolder) -> None:
        mirror = JobMirror(self._store, folder, self._job.id)
        self._start(lambda: self._send(mirror), "mirror")

    def check(self) -> None:
        if self._lost is not None:
            raise self._lost

    def confirm(self) -> None:
        self.check()
        self._lease.beat(self._state)

    def tell(self, state: JobState) -> None:
        self._state = state

    def news(self) -> list[str]:
        return self._trouble.news()

    def settle(self, state: JobState, *, error: Any = None, result: Any = None) -> str | None:
        if not any(thread.name == "mirror" for thread in self._threads):
            return None  # it ended before there was a folder
        self._last_word = {"state": state, "error": error, "result": result}
        self._finish.set()
        leaving = state in (JobState.QUEUED, JobState.CANCELLED)
        self._finished.wait(self._pace.leaving if leaving else self._pace.grace)
        self.check()
        if self._finished.is_set():
            return None
        return f"not all of it is in {self._store.url} ({self._trouble.last}); {self._root} has it whole"

    def close(self) -> None:
        self._ended.set()
        self._finish.set()
        for thread in self._threads:
            thread.join(timeout=self._pace.leaving)  # a call that hangs ends with the process: they are daemons

    # -- the threads

    def _start(self, body: Callable[[], None], name: str) -> None:
        thread = threading.Thread(target=body, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _beat(self) -> None:
        while not self._finished.is_set() and not self._ended.wait(self._pace.heartbeat):
            if not self._finish.is_set():  # the last word is the other thread's
                self._tried(self._say_alive)

    def _send(self, mirror: JobMirror) -> None:
        while not self._ended.is_set() and self._lost is None:
            last = self._finish.is_set()
            complete = self._tried(functools.partial(self._pass, mirror, final=last))
            if complete and last and self._tried(self._say_last_word):
                self._finished.set()
                return
            if last:
                self._ended.wait(min(1.0, self._pace.every))
            else:
                self._finish.wait(self._pace.every)

    @staticmethod
    def _pass(mirror: JobMirror, *, final: bool) -> bool:
        return mirror.sync(final=final).complete

    def _say_last_word(self) -> bool:
        self._lease.release(**self._last_word)
        return True

    def _say_alive(self) -> bool:
        self._lease.beat(self._state)
        return True

    def _tried(self, call: Callable[[], bool]) -> bool:
        """What the call says, False where it failed; a store that is away is no reason to end anything."""
        try:
            done = call()
        except StaleFence as error:
            self._lost = error
            self._finished.set()
            return False
        except ZooError as error:
            self._trouble.failed(error)
            return False
        except Exception as error:  # noqa: BLE001 – a fault of ours in a copy must not end the training
            self._trouble.failed(error)
            return False
        self._trouble.went_through()
        return done


class _Trouble:
    """Says once when mirroring begins to fail, and once when it works again."""

    def __init__(self, where: str) -> None:
        self._where = where
        self._lock = threading.Lock()
        self._news: list[str] = []
        self._since: float | None = None
        self.last = "no answer yet"

    def failed(self, error: Exception) -> None:
        with self._lock:
            self.last = error.message if isinstance(error, ZooError) else repr(error)
            if self._since is None:
                self._since = time.monotonic()
                self._say(f"the job's folder is not being mirrored to {self._where}, tried again: {self.last}")

    def went_through(self) -> None:
        with self._lock:
            if self._since is not None:
                self._say(f"mirrored to {self._where} again after {time.monotonic() - self._since:.0f} s")
            self._since = None

    def news(self) -> list[str]:
        with self._lock:
            news, self._news = self._news, []
            return news

    def _say(self, text: str) -> None:
        self._news.append(text)
        print(f"note: {text}", file=sys.stderr, flush=True)
