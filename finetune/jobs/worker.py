"""The entry of one role: `python -m finetune.jobs.worker --job-folder DIR --role ROLE --parent PID`.

Takes a job's folder, and a role: chief, evaluator, or of a cluster worker-0, …, ps-0, …. Gives an exit code: 0 done,
1 failed (error.json), 75 interrupted and resumable, 76 another process of the cluster was lost. Next:
`finetune.training.run`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import os
import signal
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import NoReturn, TextIO

from finetune.jobs.cluster import CHIEF, EVALUATOR, Cluster, InvalidCluster, PortTaken, require_free
from finetune.jobs.exit_codes import EXIT_INTERRUPTED, EXIT_NOT_STARTED
from finetune.jobs.folder import JobFolder
from finetune.tensorflow_start import start_tensorflow
from zoo.errors import Aborted

_PR_SET_PDEATHSIG = 1
_FORMER_GRACE = 15.0  # seconds that a process of a supervisor now dead gets to save its Checkpoint


class RoleTaken(Aborted):
    """Another process of the same job and role is still there and could not be ended."""


def die_with_parent(parent: int, number: signal.Signals) -> None:
    """Asks the kernel for a signal when the process `parent` dies (Linux), so that no orphan trains on beside a resumed
    run. Exits when it has died already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(number)) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before the call
        sys.exit(EXIT_INTERRUPTED)


class RoleLock:
    """At most one process a role and job on this machine; held until the process ends, however it ends.

    The second guard after the parent-death signal: a new chief waits for the former one to save and leave, then kills
    it. What a person started by hand (`by_hand`) is never killed: a supervisor's process stands by until it has ended,
    and a second one by hand is refused. The lock file holds the process id of its holder, right as long as the lock is
    held.
    """

    def __init__(self, path: Path, *, grace: float, by_hand: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+")
        self._grace = grace
        self._by_hand = by_hand

    def __enter__(self) -> None:
        """Raises RoleTaken."""
        try:
            self._wait()
        except BaseException:
            self._file.close()
            raise
        self._file.seek(0)
        self._file.truncate()
        self._file.write(f"{os.getpid()} by hand" if self._by_hand else str(os.getpid()))
        self._file.flush()

    def _wait(self) -> None:
        killed = told = False
        deadline = time.monotonic() + self._grace
        while not self._try():
            if self._by_hand:
                raise RoleTaken(
                    f"{self._file.name} is held by process {self._holder() or 'unknown'}: this role runs already",
                    hint="end that process first, or leave the role to it",
                )
            if self._holder_is_by_hand():
                if not told:
                    print(f"standing by: process {self._holder()}, started by hand, has this role", file=sys.stderr)
                told, deadline = True, time.monotonic() + self._grace
            elif time.monotonic() > deadline:
                if killed:
                    raise RoleTaken(
                        f"{self._file.name} is held by process {self._holder()}, which cannot be ended",
                        hint="end it, then run the same command",
                    )
                if (holder := self._holder()) is not None:
                    print(f"killing process {holder}, left over of an earlier run", file=sys.stderr)
                    os.kill(holder, signal.SIGKILL)
                killed, deadline = True, time.monotonic() + 5
            time.sleep(0.1)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def _try(self) -> bool:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _holder(self) -> int | None:
        """None for the moment before a new holder has written its id."""
        words = self._words()
        return int(words[0]) if words else None

    def _holder_is_by_hand(self) -> bool:
        return self._words()[1:] == ["by", "hand"]

    def _words(self) -> list[str]:
        self._file.seek(0)
        return self._file.read().split()


class Tee:
    """stderr that also goes to a log, without the redrawn bar. A terminal that has gone away stops nothing."""

    def __init__(self, terminal: TextIO, log: TextIO) -> None:
        self._terminal = terminal
        self._log = log

    def write(self, text: str) -> int:
        if not text.startswith("\r") or text.endswith("\n"):
            self._log.write(text.removeprefix("\r\x1b[K"))
            self._log.flush()
        with contextlib.suppress(OSError):  # the terminal has gone; what is written is still in the log
            self._terminal.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._terminal.flush()

    def isatty(self) -> bool:
        return self._terminal.isatty()

    def fileno(self) -> int:
        return self._terminal.fileno()

    @property
    def encoding(self) -> str:
        return self._terminal.encoding


def _teed(log_path: Path) -> Tee:
    """What Python writes goes to the terminal and the log; what TensorFlow's C++ says of itself only to the log."""
    terminal = os.fdopen(os.dup(sys.stderr.fileno()), "w", buffering=1)
    log = log_path.open("a")
    os.dup2(log.fileno(), sys.stderr.fileno())
    return Tee(terminal, log)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="finetune.jobs.worker")
    parser.add_argument("--job-folder", type=Path, required=True)
    parser.add_argument("--role", required=True, help="chief, evaluator, worker-<n> or ps-<n>")
    parser.add_argument("--cluster", default="", help="TF_CONFIG of the cluster, else the job folder's")
    parser.add_argument("--parent", type=int, required=True, help="process id of the supervisor")
    parser.add_argument("--by-hand", action="store_true", help="it was started by a person, for one role")
    parser.add_argument("--tee", action="store_true", help="write stderr to the role's log as well")
    options = parser.parse_args(arguments)
    folder = JobFolder(options.job_folder)
    die_with_parent(options.parent, signal.SIGTERM)
    if options.tee:
        sys.stderr = _teed(folder.log_path(options.role))
    try:
        with RoleLock(folder.lock_path(options.role), grace=_FORMER_GRACE, by_hand=options.by_hand):
            if options.by_hand:  # said here, since it is no fault of the job's
                require_free(Cluster.of_tf_config(options.cluster)[0].address(options.role), role=options.role)
            return _run(options.role, folder, options.cluster)
    except (RoleTaken, PortTaken) as error:
        print(f"error: {error.message}\nhint: {error.hint}", file=sys.stderr, flush=True)
        return EXIT_NOT_STARTED


def _run(role: str, folder: JobFolder, tf_config: str) -> int:
    request = folder.request()
    os.environ.pop("TF_CONFIG", None)  # an evaluator or a single process must not wait for a cluster
    cluster: Cluster | None = None
    if role not in (CHIEF, EVALUATOR):
        cluster = Cluster.of_tf_config(tf_config)[0] if tf_config else Cluster.read(folder.root)
        if cluster is None:
            raise InvalidCluster(f"{folder.root} names no cluster, so that there is no {role}")
        cluster.address(role)
    from finetune.training import run

    if role == EVALUATOR:
        run.hide_accelerators()
    start_tensorflow()  # seconds, so after every check
    if cluster is None:
        code = {CHIEF: run.run_chief, EVALUATOR: run.run_evaluator}[role](folder, request.store_url)
    elif cluster.ps:
        code = run.run_server(folder, role=role, cluster=cluster)
    else:
        code = run.run_worker(folder, request.store_url, role=role, cluster=cluster)
    if request.spec.strategy.has_peers and role != EVALUATOR:
        _leave(code)
    return code


def _leave(code: int) -> NoReturn:
    """Ends the process without unwinding TensorFlow: threads of a cluster that has gone would keep it for ever."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
