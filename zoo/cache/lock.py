"""DownloadLock: one process downloads a blob while the others wait for it.

Takes the path of a lock file. Gives the lock, or none where the wait isn't worth it.
Next: `zoo.cache.blob_cache`.

It only saves bandwidth. Nothing rests on it: each downloader writes a file of its own name, which gets the blob's name
by a rename once it is verified. So no flock, which some network file systems grant to everybody: a small file made with
O_EXCL that says who holds it and how far it is. Each step of the download rewrites it, so its mtime is a heartbeat; a
holder who is known to be dead, or hasn't got a byte further for `STALE_AFTER`, loses it to the next one.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from zoo.cache.owner import Owner

STALE_AFTER = 30.0  # seconds without a heartbeat
LONGEST_WAIT = 3600.0  # seconds; then one downloads beside the holder
_BEAT = 1.0  # seconds at least between two heartbeats
_FIRST_PAUSE, _LONGEST_PAUSE = 0.02, 0.5  # seconds between two looks


@dataclass(frozen=True, kw_only=True)
class LockState:
    """A lock as somebody else sees it."""

    owner: Owner | None  # None where it can't be read
    done: int  # bytes that are on the disk
    mtime: float  # seconds since the epoch
    inode: int

    def is_abandoned(self) -> bool:
        dead = self.owner is not None and self.owner.is_dead()
        return dead or time.time() - self.mtime > STALE_AFTER


class DownloadLock:
    """A held lock. Safe to share between threads."""

    def __init__(self, path: Path, owner: Owner, descriptor: int) -> None:
        self.owner = owner
        self._path = path
        self._descriptor = descriptor
        self._guard = threading.Lock()
        self._next_beat = time.monotonic() + _BEAT

    @classmethod
    def try_take(cls, path: Path) -> DownloadLock | None:
        """None when somebody holds it. Raises OSError, so that missing rights aren't taken for somebody's lock."""
        owner = Owner.me()
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except FileExistsError:
            return None
        os.write(descriptor, _text(owner, 0))
        return cls(path, owner, descriptor)

    def beat(self, done: int) -> None:
        """The download has come to `done` bytes."""
        if time.monotonic() < self._next_beat:
            return
        with self._guard, suppress(OSError):  # a full disk stops the download itself
            self._next_beat = time.monotonic() + _BEAT
            os.pwrite(self._descriptor, _text(self.owner, done), 0)

    def release(self) -> None:
        with suppress(OSError):
            if os.fstat(self._descriptor).st_ino == self._path.stat().st_ino:  # not somebody's who took it over
                self._path.unlink()
        os.close(self._descriptor)


def take_or_wait(
    path: Path, finished: Callable[[], bool], on_done: Callable[[int], None] = lambda done: None
) -> DownloadLock | None:
    """The lock; None when `finished()`, when the wait is too long, or when an abandoned lock can't be removed.

    `on_done` hears how many bytes the holder has. Raises OSError where no lock file can be made.
    """
    seen, since, begun, pause = None, 0.0, time.monotonic(), _FIRST_PAUSE
    while not finished():
        if (lock := DownloadLock.try_take(path)) is not None:
            return lock
        state = look(path)
        if state is None:
            continue  # released just now
        if state != seen:
            seen, since = state, time.monotonic()
        on_done(state.done)
        # Our own clock counts too: the holder's machine may be ahead of ours by hours.
        if state.is_abandoned() or time.monotonic() - since > STALE_AFTER:
            if not _remove(path, state):
                return None
        elif time.monotonic() - begun > LONGEST_WAIT:
            return None
        else:
            time.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 1.5)
    return None


def look(path: Path) -> LockState | None:
    """None when nobody holds it."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    owner, done = None, 0
    with suppress(OSError, ValueError):
        first, _, second = path.read_text("ascii").partition("\n")
        owner, done = Owner.parse(first), int(second)
    return LockState(owner=owner, done=done, mtime=status.st_mtime, inode=status.st_ino)


def _remove(path: Path, state: LockState) -> bool:
    """Takes away an abandoned lock; False without the right to. Somebody's new lock that is caught is put back."""
    aside = path.with_name(f"{path.name}.{Owner.me()}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    caught = look(aside)
    with suppress(OSError):
        if caught is not None and (caught.inode, caught.owner) != (state.inode, state.owner):
            os.link(aside, path)
    with suppress(OSError):
        aside.unlink()
    return True


def _text(owner: Owner, done: int) -> bytes:
    return f"{owner}\n{done:020}\n".encode()
