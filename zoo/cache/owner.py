"""Who writes an unfinished file: said in its name or its lock, so that others can tell whether that process lives.

Takes a process. Gives a text that names it and can be read back. Next: `zoo.cache.lock`, `zoo.cache.partial`.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_TEXT = re.compile(r"(?P<host>[0-9a-f]{12})-(?P<pid>[0-9]{1,10})-(?P<started>[0-9]{1,20})-(?P<token>[0-9a-f]{12})\Z")


@dataclass(frozen=True, kw_only=True)
class Owner:
    """`host` stands for a machine since its last boot, and a space of process ids on it: containers that share a folder
    have their own. `started` tells a process from a later one with the same id. `token` is random."""

    host: str
    pid: int
    started: int  # clock ticks after the boot; 0 where the system doesn't say
    token: str

    @classmethod
    def me(cls) -> Owner:
        """This process, with a new token."""
        pid = os.getpid()
        return cls(host=_host(), pid=pid, started=_started(pid) or 0, token=secrets.token_hex(6))

    @classmethod
    def parse(cls, text: str) -> Owner | None:
        match = _TEXT.match(text)
        if match is None:
            return None
        return cls(host=match["host"], pid=int(match["pid"]), started=int(match["started"]), token=match["token"])

    def __str__(self) -> str:
        return f"{self.host}-{self.pid}-{self.started}-{self.token}"

    def is_dead(self) -> bool:
        """Whether the process is known to have ended; of one on another machine that is never known."""
        return self.host == _host() and _started(self.pid) != self.started


@cache
def _host() -> str:
    facts = [socket.gethostname()]
    for read in (
        lambda: Path("/proc/sys/kernel/random/boot_id").read_text(),
        lambda: str(Path("/proc/self/ns/pid").readlink()),
    ):
        try:
            facts.append(read())
        except OSError:
            facts.append("")
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]


def _started(pid: int) -> int | None:
    """None for a process that has ended, also for one that its parent hasn't reaped yet."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return None
    except OSError:
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:
        pass  # it is there, and somebody else's
    return 0
