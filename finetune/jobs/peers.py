"""Peers: the processes that train beside a job's chief, and what their end means for the job.

Takes a StrategyConfig, the job's folder and, where they are placed by hand, the cluster. Gives the roles to start, and
a verdict when one has ended. Next: `finetune.jobs.supervisor`, which acts on it.

- all-reduce: no process can go on without another. The group starts again from the last Checkpoint.
- parameter-server: a worker that died is started again, and training goes on meanwhile with the others; a ps held
  variables, so that the group starts again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune.jobs.cluster import Cluster
from finetune.jobs.exit_codes import EXIT_DONE, EXIT_PEER_LOST
from finetune.jobs.folder import JobFolder
from finetune.jobs.launcher import RoleProcess
from finetune.spec import StrategyConfig

_WORKER_RESTARTS = 3  # of one parameter-server worker, within one start of the group
_PASSING = ("PortTaken", "PeersMissing")
_CAUSE_SECONDS = 5.0  # a process that says that it lost another one: so long the other has to show


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A peer that has ended before the chief. `again`: whether it alone is started again; otherwise the group is."""

    role: str
    code: int
    again: bool


class Peers:
    """The roles beside chief and evaluator that this supervisor starts; none for one device."""

    def __init__(self, strategy: StrategyConfig, placed: Cluster | None) -> None:
        """`placed`: the cluster of a job whose workers are started by hand. Raises InvalidCluster."""
        self._strategy = strategy
        self._placed = placed
        if placed is not None:
            placed.require_strategy(strategy)
        self.roles: tuple[str, ...] = ()
        self._restarts: Counter[str] = Counter()
        self._told: dict[str, float] = {}  # when a role that lost another one was first seen to have ended

    def gather(self, folder: JobFolder) -> tuple[str, ...]:
        """Writes down where each process is to be for this start, and names those to start here."""
        cluster = self._placed or Cluster.local(self._strategy)
        if cluster is not None:
            cluster.write(folder.root)
            self.roles = cluster.peers if cluster.here else ()
        return self.roles

    def ended(self, processes: Mapping[str, RoleProcess]) -> Ended | None:
        """The next peer whose end asks for something."""
        for role in self.roles:
            code = processes[role].poll()
            if code is None or code == EXIT_DONE:
                continue
            now = time.monotonic()
            if code == EXIT_PEER_LOST and now < self._told.setdefault(role, now) + _CAUSE_SECONDS:
                continue  # the one that it lost is the cause
            return Ended(role=role, code=code, again=self._again(role))
        return None

    def cause(self, processes: Mapping[str, RoleProcess]) -> tuple[str, int] | None:
        """Which of them ended by itself, and how, when the chief says that it has lost one. It may show a moment later
        than in the chief."""
        deadline = time.monotonic() + _CAUSE_SECONDS
        while True:
            codes = {role: processes[role].poll() for role in self.roles}
            for role, code in codes.items():
                if code not in (None, EXIT_DONE, EXIT_PEER_LOST):
                    return role, int(code or 0)
            if None not in codes.values() or time.monotonic() > deadline:
                return None
            time.sleep(0.05)

    def may_pass(self, error: Mapping[str, Any] | None) -> bool:
        """Whether what a process says of its failure may go better on another start: on ports that are free then, or on
        a machine with less to do. Where addresses were given by hand, somebody has to see to it."""
        return self._placed is None and error is not None and error.get("reason") in _PASSING

    def _again(self, role: str) -> bool:
        if self._strategy.kind != "parameter-server" or not role.startswith("worker"):
            return False
        self._restarts[role] += 1
        return self._restarts[role] <= _WORKER_RESTARTS


def in_order(processes: Mapping[str, RoleProcess]) -> list[list[RoleProcess]]:
    """In which order they are to be ended: the chief saves first, which needs the others."""
    first = [process for role, process in processes.items() if not role.startswith(("worker", "ps"))]
    return [first, [process for role, process in processes.items() if process not in first]]
