"""Owner: which process holds a job's lease, told well enough to see from the same machine that it has died.

Takes nothing but the running process. Gives a value that fits in one column. Next: `finetune.jobs.queue`.
A lease by itself would make a user wait 30 s after a kill -9 before the same command could resume the run.
"""

from __future__ import annotations

import functools
import getpass
import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Owner:
    """`place` tells this boot of this machine and this process namespace from all others; `started` (clock ticks since
    boot) tells the process from a later one with the same number."""

    user: str
    host: str
    pid: int
    place: str
    started: int

    @classmethod
    def of_this_process(cls) -> Owner:
        return cls(
            user=_user(), host=socket.gethostname(), pid=os.getpid(), place=_place(), started=start_ticks(os.getpid())
        )

    @classmethod
    def decode(cls, text: str) -> Owner:
        """Reads what `encode` wrote."""
        shown, place, started = text.rsplit(" ", 2)
        user, _, rest = shown.partition("@")
        host, _, pid = rest.rpartition(":")
        return cls(user=user, host=host, pid=int(pid), place=place, started=int(started))

    def encode(self) -> str:
        return f"{self} {self.place} {self.started}"

    def __str__(self) -> str:
        return f"{self.user}@{self.host}:{self.pid}"

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, a process of this machine."""
        return self.place == _place()

    def is_dead(self) -> bool:
        """True only when the process is known to be gone; of other machines nothing is known."""
        return self.is_here and start_ticks(self.pid) != self.started


def start_ticks(pid: int) -> int:
    """When the process was started (Linux: field 22 of /proc/PID/stat), -1 when there is no living one."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return -1
    except ProcessLookupError:
        return -1
    fields = text.rpartition(")")[2].split()  # the command's name before it may hold spaces and brackets
    return -1 if fields[0] in ("Z", "X") else int(fields[19])


@functools.cache
def _place() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}.{Path('/proc/self/ns/pid').stat().st_ino}"


def _user() -> str:
    try:
        return getpass.getuser().replace("@", "_").replace(" ", "_")
    except (KeyError, OSError):  # a uid without an entry in the user database
        return str(os.getuid())
