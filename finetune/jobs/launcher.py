"""The local launcher: one exec'd process a role, each in a session of its own.

Takes a job's folder and a role. Gives a RoleProcess to poll and end. Next: `finetune.jobs.worker`.
Exec, never fork: a fork of a process that uses gRPC or TensorFlow hangs. A session of its own: Ctrl-C in a terminal
reaches the supervisor alone, which then ends the roles in order.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from finetune.jobs.cluster import CHIEF
from finetune.jobs.folder import JobFolder

SOURCE_ROOT = Path(__file__).parents[2]  # what `import finetune` was found in


@dataclass(frozen=True, kw_only=True)
class RoleProcess:
    """One running process of a job."""

    role: str
    process: subprocess.Popen[bytes]

    def poll(self) -> int | None:
        """The exit code, negative the signal that killed it, None while it runs."""
        return self.process.poll()

    def terminate(self) -> None:
        """Asks it to save and end (SIGTERM)."""
        if self.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it and whatever it started, at once."""
        with contextlib.suppress(ProcessLookupError):  # the last of the group has just ended
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Launch(Protocol):
    """How a role becomes a process; `launch` is the one for this machine."""

    def __call__(self, role: str, folder: JobFolder, *, inline: bool) -> RoleProcess: ...


def launch(role: str, folder: JobFolder, *, inline: bool) -> RoleProcess:
    """Starts a role. Its output goes to logs/<role>.log; `inline` shows the chief's stderr on ours as well.

    Must be called from a thread that lives as long as the process: the kernel's parent-death signal, which the worker
    asks for, is tied to the thread that made it.
    """
    folder.logs.mkdir(parents=True, exist_ok=True)
    shown = inline and role == CHIEF
    arguments = ["--job-folder", str(folder.root), "--role", role, "--parent", str(os.getpid())]
    if shown:
        arguments.append("--tee")
    with folder.log_path(role).open("ab") as log:
        process = exec_module("finetune.jobs.worker", arguments, stdout=log, stderr=None if shown else log)
    return RoleProcess(role=role, process=process)


def source_environment() -> dict[str, str]:
    """Our environment, with which a Python process imports this same source tree whatever folder it starts in."""
    path = os.pathsep.join(filter(None, [str(SOURCE_ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}


def exec_module(
    module: str,
    arguments: Sequence[str],
    *,
    stdout: IO[bytes] | int,
    stderr: IO[bytes] | int | None,
    more: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """`python -m module …` with this interpreter, in a new session, and this same source tree whatever the folder.

    `more`: of its environment, over ours.
    """
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        env=source_environment() | dict(more or {}),
        start_new_session=True,
    )


def stop_all(processes: Iterable[RoleProcess], *, grace: float) -> None:
    """SIGTERM to all, then SIGKILL to those still there after `grace` seconds. A KeyboardInterrupt (a second Ctrl-C)
    kills at once and is raised again."""
    alive = [process for process in processes if process.poll() is None]
    for process in alive:
        process.terminate()
    deadline = time.monotonic() + grace
    try:
        while time.monotonic() < deadline and any(process.poll() is None for process in alive):
            time.sleep(0.05)
    finally:
        for process in alive:
            if process.poll() is None:
                process.kill()
