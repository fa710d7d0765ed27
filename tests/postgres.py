"""A real PostgreSQL for tests: a private cluster on a socket, run by an unprivileged user. No TCP port, no password.

Takes nothing. Gives a Postgres whose `new_database` makes an empty database for a test; it ends with the thread that
started it. Next: `url(name)` is what `finetune.jobs.tables.open_engine` reads.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

READY_WITHIN = 60.0  # seconds; 1 is usual
_USER = "zoo"

# Dies with the thread that starts it: the kernel sends SIGKILL to the postmaster, whose children end with it. The user
# is changed before, since that clears the signal.
_DIES_WITH_US = """
import ctypes, os, signal, sys
parent, uid, gid = (int(each) for each in sys.argv[1:4])
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
if ctypes.CDLL(None, use_errno=True).prctl(1, int(signal.SIGKILL)) != 0:
    raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
if os.getppid() != parent:
    sys.exit("the process that wanted this server is gone")
os.execv(sys.argv[4], sys.argv[4:])
"""


class PostgresMissing(Exception):
    """There is no PostgreSQL server on this machine (Debian: apt-get install postgresql)."""


class PostgresFailed(Exception):
    """The server didn't come up."""


def find_programs() -> Path:
    """The folder of `initdb` and `postgres`, the newest version's. Raises PostgresMissing."""
    debian = sorted(
        (path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")),
        key=lambda path: int(path.parent.name) if path.parent.name.isdigit() else 0,
    )
    found = shutil.which("initdb")
    if debian:
        return debian[-1]
    if found:
        return Path(found).resolve().parent
    raise PostgresMissing("no PostgreSQL on this machine; on Debian: apt-get install postgresql")


class Postgres:
    """A running server. `kill` and `start` keep its data."""

    def __init__(self) -> None:
        self._programs = find_programs()
        user = _unprivileged()
        self._uid, self._gid = user.pw_uid, user.pw_gid
        # Not below pytest's own folders: their parents are closed to other users, and a socket's path must be short.
        self.folder = Path(tempfile.mkdtemp(prefix="zoo-pg-"))
        if os.getuid() == 0:
            os.chown(self.folder, self._uid, self._gid)
        self._log = (self.folder / "server.log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None
        done = self._run("initdb", "-D", str(self._data), "-U", _USER, "--auth=trust", "-E", "UTF8", "--locale=C", "-N")
        if done.returncode:
            raise PostgresFailed(f"initdb: {done.stderr}")

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def start(self) -> None:
        """Returns when it answers. Raises PostgresFailed."""
        (self._data / "postmaster.pid").unlink(missing_ok=True)  # a killed one leaves it behind
        options = {
            "listen_addresses": "",
            "unix_socket_directories": str(self.folder),
            "max_connections": "60",
            "fsync": "off",  # what a killed process wrote is kept; only a power cut would lose it
        }
        command = [str(self._programs / "postgres"), "-D", str(self._data)]
        for name, value in options.items():
            command += ["-c", f"{name}={value}"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _DIES_WITH_US, str(os.getpid()), str(self._uid), str(self._gid), *command],
            stdout=self._log,
            stderr=self._log,
        )
        deadline = time.monotonic() + READY_WITHIN
        while self._run("pg_isready", "-q", "-h", str(self.folder), "-U", _USER, "-d", "postgres").returncode:
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise PostgresFailed((self.folder / "server.log").read_text(errors="replace")[-2000:])
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL, as a power cut; its children notice and end."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def remove(self) -> None:
        self._log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"jobs_{secrets.token_hex(6)}"
        done = self._run("createdb", "-h", str(self.folder), "-U", _USER, name)
        if done.returncode:
            raise PostgresFailed(f"createdb: {done.stderr}")
        return self.url(name)

    def url(self, name: str) -> str:
        return f"postgresql://{_USER}@/{name}?host={self.folder}"

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        who = {"user": self._uid, "group": self._gid, "extra_groups": []} if os.getuid() == 0 else {}
        command = [str(self._programs / program), *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=self.folder, check=False, **who)


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """A server for the length of a block. Raises PostgresMissing, PostgresFailed."""
    server = Postgres()
    try:
        server.start()
        yield server
    finally:
        server.kill()
        server.remove()


def _unprivileged() -> pwd.struct_passwd:
    """PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return pwd.getpwuid(os.getuid())
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise PostgresMissing("PostgreSQL doesn't run as root, and there is neither a user postgres nor nobody")
