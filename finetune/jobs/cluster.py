"""Cluster: which processes train one job together, and at which addresses. No TensorFlow.

Takes a StrategyConfig, TF_CONFIG or lists of hosts. Gives addresses by role, and each role's TF_CONFIG. Next:
`finetune.jobs.launcher` starts the roles that this machine has, `finetune.training.strategies` joins them.

Where a job runs is no part of its spec: the supervisor writes the cluster into the job's folder each time it starts the
roles, with ports that are free then. The evaluator never is in it: a coordinator would wait for it for ever.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from finetune.jobs.folder import DamagedJobFile, read_json, write_json
from finetune.spec import StrategyConfig
from zoo.errors import InvalidArgument, Unavailable

CHIEF = "chief"
EVALUATOR = "evaluator"
CLUSTER_FILE = ".cluster.json"  # in the job's folder; not mirrored, since it holds for this start on these machines
_ROLE = re.compile(r"(worker|ps)-([0-9]+)")
_CONNECT_SECONDS = 1.0


class InvalidCluster(InvalidArgument):
    """Addresses that don't make a cluster, or not the one that the spec asks for."""


class PortTaken(Unavailable):
    """The port that a role is to listen on belongs to another process."""


class PeerLost(Unavailable):
    """Another process of the cluster has gone. TensorFlow's collectives can't go on in this process: it must end, and
    the group start again from the last Checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """`host:port` of each process. `here`: this machine's supervisor starts the workers and ps too; otherwise only the
    chief, and the others are started by hand (`finetune worker`). `join_seconds`: within which all have to be there."""

    chief: str
    workers: tuple[str, ...] = ()  # all-reduce: beside the chief, which works too
    ps: tuple[str, ...] = ()
    here: bool = True
    join_seconds: float = 300.0

    @classmethod
    def local(cls, strategy: StrategyConfig) -> Cluster | None:
        """On free ports of this machine; None for a process alone."""
        if not strategy.has_peers:
            return None
        num_workers = strategy.workers - 1 if strategy.kind == "all-reduce" else strategy.workers
        ports = [f"localhost:{port}" for port in free_ports(1 + num_workers + strategy.ps)]
        return cls(chief=ports[0], workers=tuple(ports[1 : 1 + num_workers]), ps=tuple(ports[1 + num_workers :]))

    @classmethod
    def of_hosts(cls, *, workers: Sequence[str], ps: Sequence[str], chief: str | None = None) -> Cluster:
        """From the lists of hosts that every TensorFlow tutorial has. Without ps the first worker is the chief; with
        them the chief is the coordinator, beside the workers: `chief`, else a free port of this machine.

        Raises InvalidCluster.
        """
        known = [*workers, *ps, *([chief] if chief else [])]
        for address in known:
            _check_address(address)
        if len(set(known)) < len(known):
            raise InvalidCluster(f"an address is there twice: {', '.join(known)}")
        if not workers:
            raise InvalidCluster("a cluster needs workers: --worker-hosts HOST:PORT,HOST:PORT")
        if ps or chief:
            return cls(chief=chief or _own_address(known), workers=tuple(workers), ps=tuple(ps), here=False)
        return cls(chief=workers[0], workers=tuple(workers[1:]), here=False)

    @classmethod
    def of_tf_config(cls, text: str) -> tuple[Cluster, str]:
        """(the cluster, this process' role) of a TF_CONFIG. Raises InvalidCluster."""
        try:
            value = json.loads(text)
            hosts = {job: [str(address) for address in value["cluster"][job]] for job in value["cluster"]}
            job, index = str(value["task"]["type"]), int(value["task"]["index"])
        except (ValueError, TypeError, LookupError) as error:
            raise InvalidCluster(
                f"TF_CONFIG cannot be read: {error!r}; expected "
                '{"cluster": {"worker": ["HOST:PORT", …]}, "task": {"type": "worker", "index": 0}}'
            ) from None
        unknown = sorted(hosts.keys() - {"chief", "worker", "ps", "evaluator"})
        if unknown:
            raise InvalidCluster(f"TF_CONFIG names the jobs {', '.join(unknown)}; known: chief, worker, ps")
        chief = next(iter(hosts.get("chief", [])), None)
        cluster = cls.of_hosts(workers=hosts.get("worker", []), ps=hosts.get("ps", []), chief=chief)
        return cluster, cluster.role_of(job, index, chief_apart=chief is not None)

    @classmethod
    def read(cls, folder: Path) -> Cluster | None:
        """The cluster that the job was last started with. Raises DamagedJobFile."""
        value = read_json(folder / CLUSTER_FILE)
        if value is None:
            return None
        try:
            return cls(**(value | {"workers": tuple(value["workers"]), "ps": tuple(value["ps"])}))
        except (LookupError, TypeError) as error:
            raise DamagedJobFile(f"{folder / CLUSTER_FILE} is no cluster: {error}") from None

    def write(self, folder: Path) -> None:
        write_json(folder / CLUSTER_FILE, self.__dict__)

    @property
    def peers(self) -> tuple[str, ...]:
        """The roles beside the chief: worker-0, …, ps-0, …"""
        workers = [f"worker-{i}" for i in range(len(self.workers))]
        return (*workers, *(f"ps-{i}" for i in range(len(self.ps))))

    @property
    def strategy(self) -> str:
        """What such a cluster can run."""
        return "parameter-server" if self.ps else "all-reduce"

    def address(self, role: str) -> str:
        """Raises InvalidCluster for a role that isn't in it."""
        if role == CHIEF:
            return self.chief
        found = _ROLE.fullmatch(role)
        hosts = {"worker": self.workers, "ps": self.ps}[found[1]] if found else ()
        if found is None or int(found[2]) >= len(hosts):
            raise InvalidCluster(f"there is no {role} in this cluster; there are: {', '.join((CHIEF, *self.peers))}")
        return hosts[int(found[2])]

    def role_of(self, job_name: str, task_index: int, *, chief_apart: bool) -> str:
        """The role of a task as TensorFlow counts them: without ps, and where no chief was named apart, worker 0 is
        the chief. Raises InvalidCluster."""
        if job_name in (CHIEF, EVALUATOR):
            return job_name
        if job_name not in ("worker", "ps"):
            raise InvalidCluster(f"there is no job {job_name!r}; known: chief, worker, ps, evaluator")
        first = job_name == "worker" and not self.ps and not chief_apart
        count = len(self.ps if job_name == "ps" else self.workers) + first
        if task_index >= count:
            raise InvalidCluster(f"there is no {job_name} {task_index}: the cluster has {count}, counted from 0")
        if first:
            if task_index == 0:
                return CHIEF
            task_index -= 1
        role = f"{job_name}-{task_index}"
        self.address(role)
        return role

    def replica(self, role: str) -> int:
        """Which share of a batch an all-reduce role has; the chief's is the first."""
        return 0 if role == CHIEF else 1 + int(role.removeprefix("worker-"))

    def tf_config(self, role: str) -> str:
        """TF_CONFIG of a role. Raises InvalidCluster."""
        self.address(role)
        job, _, index = role.partition("-")
        named = {"chief": [self.chief], "worker": list(self.workers), "ps": list(self.ps)}
        cluster = {name: hosts for name, hosts in named.items() if hosts}
        return json.dumps({"cluster": cluster, "task": {"type": job, "index": int(index or 0)}})

    def require_strategy(self, strategy: StrategyConfig) -> None:
        """Raises InvalidCluster unless this is the cluster that the spec asks for."""
        num_workers = len(self.workers) + (0 if self.ps else 1)
        has = (self.strategy, num_workers, len(self.ps))
        if has != (strategy.kind, strategy.workers, strategy.ps):
            raise InvalidCluster(
                f"the spec asks for {strategy.kind} with {strategy.workers} workers and {strategy.ps} ps; the cluster "
                f"is one for {has[0]} with {has[1]} workers and {has[2]} ps"
            )

    def missing(self, roles: Sequence[str]) -> list[str]:
        """`role (address)` of those that nobody listens for, asked one after another, a second each at most."""
        return [f"{role} ({self.address(role)})" for role in roles if not _answers(self.address(role))]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now. One may be taken before its role binds it: then the group starts again."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("localhost", 0))
        return [int(each.getsockname()[1]) for each in sockets]


def require_free(address: str, *, role: str) -> None:
    """Raises PortTaken unless this machine can listen at `address`. TensorFlow would abort the process."""
    _, _, port = address.rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(port)))
        except OSError as error:
            raise PortTaken(
                f"the {role} is to listen at {address}, and port {port} can't be had: {error.strerror}",
                hint="another process has it: end that one, or name another port for this role on every machine",
            ) from None


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _check_address(address: str) -> None:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InvalidCluster(f"{address!r} is no address: expected HOST:PORT, e.g. trainer1:2222")


def _own_address(others: Sequence[str]) -> str:
    local = all(address.rpartition(":")[0] in ("localhost", "127.0.0.1") for address in others)
    return f"{'localhost' if local else socket.gethostname()}:{free_ports(1)[0]}"


def host_list(text: str | None) -> list[str]:
    """`a:1,b:2` as a list."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]
