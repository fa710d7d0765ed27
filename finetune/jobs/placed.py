"""Placed: one role of a job that somebody starts on any machine, beside a chief that is elsewhere. No TensorFlow.

Takes the job's folder, a role and the cluster. Gives an exit code when the job is over. Next: `finetune.jobs.worker`.

The chief's supervisor starts a group again when it lost one of its processes; so does this for its one role, until the
job is over. What it does is told in `placed/<role>.json`, which that supervisor makes events of.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.jobs.cluster import Cluster
from finetune.jobs.exit_codes import EXIT_DONE, EXIT_INTERRUPTED, EXIT_NOT_STARTED
from finetune.jobs.folder import JobFolder, read_json, write_json
from finetune.jobs.launcher import RoleProcess, exec_module, stop_all
from finetune.training.progress import PulseWatch
from zoo.errors import FailedPrecondition, Unavailable

PLACED = "placed"  # in the job's folder
_STOP_GRACE = 8.0  # seconds that a role gets to end by itself


class JobFailed(FailedPrecondition):
    """The job, of which this is one role, has failed."""


class NotPlaced(Unavailable):
    """Another process has the role, or its port."""


class NoChief(Unavailable):
    """No chief of the job is alive."""


@dataclass(frozen=True, kw_only=True)
class PlacedPatience:
    """How long, in seconds; tests are less patient."""

    timeout: float = 600.0  # without a sign of life of the chief
    backoff: float = 2.0  # between the end of a process and the next
    poll: float = 0.2


LaunchPlaced = Callable[[JobFolder, str, Cluster], RoleProcess]


def launch_placed(folder: JobFolder, role: str, cluster: Cluster) -> RoleProcess:
    """Starts a role whose stderr goes to ours and to its log. The parent-death signal ends it with this process."""
    folder.logs.mkdir(parents=True, exist_ok=True)
    arguments = [
        "--job-folder", str(folder.root), "--role", role, "--cluster", cluster.tf_config(role),
        "--parent", str(os.getpid()), "--tee", "--by-hand",
    ]  # fmt: skip
    with folder.log_path(role).open("ab") as log:
        return RoleProcess(role=role, process=exec_module("finetune.jobs.worker", arguments, stdout=log, stderr=None))


class PlacedRole:
    """`stop`: when set, the process is asked to end, and `run` returns."""

    def __init__(
        self,
        folder: JobFolder,
        role: str,
        cluster: Cluster,
        *,
        stop: threading.Event,
        patience: PlacedPatience | None = None,
        launch: LaunchPlaced | None = None,
    ) -> None:
        self._folder = folder
        self._role = role
        self._cluster = cluster
        self._stop = stop
        self._patience = patience or PlacedPatience()
        self._launch = launch or launch_placed
        self._chief = PulseWatch(folder.progress_path)
        self._old_error = _mark(folder.error_path)  # of a start before this one
        self._starts = 0

    def run(self) -> int:
        """0 when the job is over, 75 when stopped. Raises InvalidCluster, JobFailed, NoChief, NotPlaced."""
        self._cluster.require_strategy(self._folder.request().spec.strategy)
        while True:
            process = self._start()
            try:
                code = self._watched(process)
            finally:
                stop_all([process], grace=_STOP_GRACE)
            over = self._stop.is_set() or self._is_over()
            self._tell(code=EXIT_DONE if over and code < 0 else code)
            if self._stop.is_set():
                return EXIT_INTERRUPTED
            if over or code == EXIT_DONE:
                return EXIT_DONE
            if code == EXIT_NOT_STARTED:
                raise NotPlaced(f"the {self._role} can't be here, at {self._cluster.address(self._role)}; see above")
            print(f"{self._role} ended with {code}; once more in {self._patience.backoff:g} s", file=sys.stderr)
            self._require_chief()
            self._stop.wait(self._patience.backoff)

    def _start(self) -> RoleProcess:
        process = self._launch(self._folder, self._role, self._cluster)
        self._starts += 1
        self._tell(pid=process.process.pid)
        return process

    def _watched(self, process: RoleProcess) -> int:
        """Until it has ended, or has no reason to go on; its code, -15 where it was ended here."""
        while (code := process.poll()) is None:
            if self._stop.is_set() or self._is_over():
                return -15
            self._require_chief()
            self._stop.wait(self._patience.poll)
        return code

    def _is_over(self) -> bool:
        """The chief has exported or somebody published. Raises JobFailed."""
        if _mark(self._folder.error_path) not in (None, self._old_error):
            error = self._folder.read_error() or {}
            raise JobFailed(f"the job in {self._folder.root} failed: {error.get('message')}")
        return self._folder.result_path.exists() or self._folder.export_path.exists()

    def _require_chief(self) -> None:
        silent = self._chief.silent()
        if silent > self._patience.timeout:
            raise NoChief(
                f"the {self._role} of {self._folder.root} has waited {silent:.0f} s, and no chief is alive there",
                hint="start it: `finetune run` with the same hosts; --timeout waits longer",
            )

    def _tell(self, *, pid: int | None = None, code: int | None = None) -> None:
        fact = {"host": socket.gethostname(), "starts": self._starts, "pid": pid, "code": code}
        write_json(self._folder.root / PLACED / f"{self._role}.json", fact)


class PlacedNews:
    """What the roles of other machines say of themselves: first what they said last, then each word once."""

    def __init__(self, folder: JobFolder) -> None:
        self._root = folder.root / PLACED
        self._known: dict[Path, tuple[int, int] | None] = {}

    def read(self) -> list[tuple[str, dict[str, Any]]]:
        """(message, facts) of each change, as `JobQueue.note` takes them."""
        found = []
        for path in sorted(self._root.glob("*.json")):
            mark = _mark(path)
            if mark == self._known.get(path):
                continue
            self._known[path] = mark
            if (value := read_json(path)) is not None:
                found.append(_news(path.stem, value))
        return found


def _news(role: str, value: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    where = f"on {value.get('host')}, by hand"
    facts = {"role": role, "starts": value.get("starts")}  # the supervisor may have missed some
    if value.get("code") is None:
        return f"{role} started {where}", facts | {"pid": value.get("pid")}
    return f"{role} ended with {value['code']} {where}", facts | {"code": value["code"]}


def _mark(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_ino
