"""`finetune worker`: one role of a job, placed by hand on any machine, by TF_CONFIG or by flags."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.output import DebugOption, Format, FormatOption, StoreOption, say

if TYPE_CHECKING:
    from finetune.jobs.cluster import Cluster

WorkerHosts = Annotated[
    str | None,
    typer.Option("--worker-hosts", "--worker_hosts", metavar="HOST:PORT,…", help="of all workers, the same everywhere"),
]
PsHosts = Annotated[
    str | None, typer.Option("--ps-hosts", "--ps_hosts", metavar="HOST:PORT,…", help="of all parameter servers")
]
ChiefHost = Annotated[
    str | None,
    typer.Option(
        "--chief-host", "--chief_hosts", metavar="HOST:PORT", help="of the chief, where it has one of its own"
    ),
]


JoinTimeout = Annotated[
    float | None,
    typer.Option("--join-timeout", min=1, metavar="SECONDS", help="within which every process has to be there; 300"),
]


def worker(
    job: Annotated[
        str | None,
        typer.Argument(metavar="[JOB]", help="its id, its model's name or its folder; ps and their workers need none"),
    ] = None,
    worker_hosts: WorkerHosts = None,
    ps_hosts: PsHosts = None,
    chief_host: ChiefHost = None,
    job_name: Annotated[
        str | None, typer.Option("--job-name", "--job_name", help="worker | ps | chief | evaluator")
    ] = None,
    task_index: Annotated[int, typer.Option("--task-index", "--task_index", min=0)] = 0,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0, help="seconds to wait for the job, and without a sign of its chief")
    ] = 600.0,
    store: StoreOption = None,
    output: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Be one process of a distributed job, until the job is over.

    Which one, and where the others are, say the flags that TensorFlow's tutorials have, or else TF_CONFIG.
    `finetune run` with the same --worker-hosts and --ps-hosts is the chief.
    """
    cluster, role = placement(worker_hosts, ps_hosts, chief_host, job_name=job_name, task_index=task_index)
    if role == "evaluator":
        from finetune.cli.evaluate_job import follow_job

        follow_job(_named(job, role), store, timeout=timeout, gpu=False, output=output)
    elif role == "chief":
        _lead(_named(job, role), store, cluster, output)
    elif job is None and cluster.ps:
        _serve(cluster, role)
    else:
        _follow(_named(job, role), store, cluster, role, timeout)


def placement(
    worker_hosts: str | None,
    ps_hosts: str | None,
    chief_host: str | None,
    *,
    job_name: str | None = None,
    task_index: int = 0,
) -> tuple[Cluster, str]:
    """The cluster and this process' role in it. Raises InvalidCluster, BadParameter where neither says."""
    from finetune.jobs.cluster import Cluster, host_list

    if worker_hosts or ps_hosts or chief_host:
        if job_name is None:
            raise typer.BadParameter("say which process this is: --job-name worker|ps|chief|evaluator --task-index N")
        cluster = Cluster.of_hosts(workers=host_list(worker_hosts), ps=host_list(ps_hosts), chief=chief_host)
        return cluster, cluster.role_of(job_name, task_index, chief_apart=chief_host is not None)
    text = os.environ.get("TF_CONFIG")
    if not text:
        raise typer.BadParameter("say where the others are: --worker-hosts (and --ps-hosts), or TF_CONFIG")
    if job_name is not None:
        raise typer.BadParameter(
            "goes with --worker-hosts; TF_CONFIG says itself which process this is", param_hint="--job-name"
        )
    cluster, role = Cluster.of_tf_config(text)
    if '"evaluator"' in text.partition('"task"')[0] or role == "evaluator":
        say("the evaluator is no member of the cluster: a coordinator would wait for it for ever; it needs no address")
    return cluster, role


def chief_placement(
    worker_hosts: str | None,
    ps_hosts: str | None,
    chief_host: str | None,
    *,
    strategy: str | None,
    join_timeout: float | None = None,
) -> Cluster | None:
    """Of a `finetune run`: its cluster, where the others are placed by hand. TF_CONFIG counts when a strategy of
    several processes is asked for. Raises InvalidCluster."""
    from finetune.jobs.cluster import CHIEF, InvalidCluster

    given = worker_hosts or ps_hosts or chief_host
    if not given and not (os.environ.get("TF_CONFIG") and strategy in ("all-reduce", "parameter-server")):
        if join_timeout is not None:
            raise typer.BadParameter("goes with hosts, or TF_CONFIG", param_hint="--join-timeout")
        return None
    cluster, role = placement(worker_hosts, ps_hosts, chief_host, job_name=CHIEF if given else None)
    if role != CHIEF:
        raise InvalidCluster(
            f"by TF_CONFIG this process is {role}, and `finetune run` is the chief's", hint="finetune worker JOB"
        )
    return cluster if join_timeout is None else replace(cluster, join_seconds=join_timeout)


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """An event that SIGTERM sets: a scheduler that takes the machine away."""
    stop = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)


def _named(job: str | None, role: str) -> str:
    if job is None:
        raise typer.BadParameter(f"a {role} needs the job: its id, its model's name or its folder", param_hint="JOB")
    return job


def _follow(job: str, store: str | None, cluster: Cluster, role: str, timeout: float) -> None:
    from finetune.cli.job_folder import waited_for
    from finetune.jobs.placed import PlacedPatience, PlacedRole

    with stopping() as stop:
        folder = waited_for(job, store, timeout, unfinished=True)
        say(f"{role} of {folder.root}, at {cluster.address(role)}")
        code = PlacedRole(folder, role, cluster, stop=stop, patience=PlacedPatience(timeout=timeout)).run()
    raise typer.Exit(code)


def _lead(job: str, store: str | None, cluster: Cluster, output: Format) -> None:
    from finetune.cli.job_folder import folder_of, is_path
    from finetune.cli.jobs import job_id_of
    from finetune.cli.run import print_result, run_job_here
    from zoo.store import default_store_url

    if is_path(job):
        request = folder_of(job, store).request()
        job_id, store_url = request.job, store or request.store_url
    else:
        store_url = store or default_store_url()
        job_id = job_id_of(job, store_url)
    print_result(run_job_here(job_id, store_url, placed=cluster), output)


def _serve(cluster: Cluster, role: str) -> None:
    """A ps, or a worker of such: whatever the coordinator sends, until this process is ended."""
    from finetune.tensorflow_start import start_tensorflow

    os.environ.pop("TF_CONFIG", None)
    with stopping() as stop:
        start_tensorflow()
        from finetune.training.strategies import serve

        server: Any = serve(cluster, role)
        say(f"{role} listens at {cluster.address(role)} ({server.target}) until it is ended")
        while not stop.is_set():
            time.sleep(0.2)
    os._exit(0)  # TensorFlow's server has no other end
