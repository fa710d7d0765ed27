"""`finetune run` and `finetune submit`: the same request, run here or by a server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from finetune.cli.request import Request
from finetune.cli.worker import ChiefHost, JoinTimeout, PsHosts, WorkerHosts, chief_placement, stopping
from zoo.cli.output import (
    DebugOption,
    Format,
    FormatOption,
    ServerOption,
    StoreOption,
    TokenOption,
    chosen_server,
    print_json,
    say,
    say_next,
)

if TYPE_CHECKING:
    from finetune.jobs.cluster import Cluster

SpecFile = Annotated[Path | None, typer.Argument(metavar="[SPEC.yaml]", help="keys of a spec; flags come before them")]
BackboneRef = Annotated[str | None, typer.Option("--backbone", metavar="REF", help="version whose backbone is used")]
HeadKind = Annotated[str | None, typer.Option("--head", help="captioner | classifier | multilabel | embedding")]
Data = Annotated[str | None, typer.Option("--data", metavar="DATA", help="kind:location, e.g. flickr:FOLDER")]
Name = Annotated[str | None, typer.Option("--name", help="model to publish to")]
RecipeName = Annotated[str | None, typer.Option("--recipe", help="see `finetune recipes`")]
Settings = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="any key of the spec")]
StartFrom = Annotated[str | None, typer.Option("--from", metavar="REF", help="start from its weights, head included")]
Strategy = Annotated[
    str | None, typer.Option("--strategy", help="one-device | mirrored | all-reduce | parameter-server")
]
Workers = Annotated[
    int | None, typer.Option("--workers", metavar="N", help="processes (mirrored: devices) that train together")
]
Servers = Annotated[int | None, typer.Option("--ps", metavar="N", help="parameter servers")]
DebugPrint = Annotated[
    list[str] | None,
    typer.Option(
        "--debug-print", metavar="NAME", help="print a tensor, layer or endpoint now and then; may be repeated"
    ),
]
CheckNumerics = Annotated[bool, typer.Option("--check-numerics", help="name the first operation that gives NaN or Inf")]
OverfitBatch = Annotated[
    bool, typer.Option("--overfit-batch", help="first see whether one batch can be learnt by heart")
]
Profile = Annotated[
    str | None, typer.Option("--profile", metavar="FIRST:LAST", help="trace these steps for TensorBoard")
]
Again = Annotated[bool, typer.Option("--again", help="run and publish once more what has already been published")]


def run(
    spec: SpecFile = None,
    backbone: BackboneRef = None,
    head: HeadKind = None,
    data: Data = None,
    name: Name = None,
    recipe: RecipeName = None,
    settings: Settings = None,
    start_from: StartFrom = None,
    strategy: Strategy = None,
    workers: Workers = None,
    ps: Servers = None,
    worker_hosts: WorkerHosts = None,
    ps_hosts: PsHosts = None,
    chief_host: ChiefHost = None,
    join_timeout: JoinTimeout = None,
    again: Again = False,
    debug_print: DebugPrint = None,
    check_numerics: CheckNumerics = False,
    overfit_batch: OverfitBatch = False,
    profile: Profile = None,
    store: StoreOption = None,
    server: ServerOption = None,
    token: TokenOption = None,
    output: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Fine-tune a head on a backbone and publish it. Typed again after an interruption, it goes on where it was.

    With --server the server does the work, and this command watches it. With --worker-hosts (and --ps-hosts), or
    TF_CONFIG, this is the chief of processes that are placed by hand: see `finetune worker`.
    """
    placed = chief_placement(worker_hosts, ps_hosts, chief_host, strategy=strategy, join_timeout=join_timeout)
    if placed is not None:  # what the hosts say needn't be said again
        strategy = strategy or placed.strategy
        workers = workers or len(placed.workers) + (0 if placed.ps else 1)
        ps = len(placed.ps) if ps is None and placed.ps else ps
    request = Request(
        spec_file=spec, backbone=backbone, head=head, data=data, name=name, recipe=recipe,
        start_from=start_from, strategy=strategy, workers=workers, ps=ps, settings=settings or [],
        debug=_debug(debug_print, check_numerics, overfit_batch, profile),
    )  # fmt: skip
    address = chosen_server(server, store)
    if address and placed is not None:
        raise typer.BadParameter("a server starts all processes itself; hosts go with --store", param_hint="--server")
    result = _run_there(request, address, token, again) if address else _run_here(request, store, again, placed)
    print_result(result, output)
    command = _ASKS.get(str(head))
    say_next(f"finetune {command} {result['reference']} IMAGE" if command else f"zoo show {result['reference']}")


_GOES_ON = "interrupted; the same command goes on from the last Checkpoint"
_ASKS = {"captioner": "caption", "classifier": "classify", "embedding": "embed", "multilabel": "classify"}


def _debug(names: list[str] | None, check_numerics: bool, overfit_batch: bool, profile: str | None) -> dict[str, Any]:
    """The keys of the spec's `debug` that flags were given for."""
    return {
        **({"print": [name for text in names for name in text.split(",") if name]} if names else {}),
        **({"check_numerics": True} if check_numerics else {}),
        **({"overfit_batch": True} if overfit_batch else {}),
        **({"profile": profile} if profile is not None else {}),
    }


def submit(
    spec: SpecFile = None,
    backbone: BackboneRef = None,
    head: HeadKind = None,
    data: Data = None,
    name: Name = None,
    recipe: RecipeName = None,
    settings: Settings = None,
    start_from: StartFrom = None,
    strategy: Strategy = None,
    workers: Workers = None,
    ps: Servers = None,
    again: Again = False,
    server: ServerOption = None,
    token: TokenOption = None,
    output: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Give the same request to a server; it runs whether anybody watches or not."""
    from finetune.client import ZooClient

    request = Request(
        spec_file=spec, backbone=backbone, head=head, data=data, name=name, recipe=recipe,
        start_from=start_from, strategy=strategy, workers=workers, ps=ps, settings=settings or [],
    )  # fmt: skip
    address = chosen_server(server, None)
    if address is None:
        raise typer.BadParameter("needs a server: --server HOST:PORT or MODELZOO_SERVER", param_hint="--server")
    with ZooClient(address, token=token) as client:
        job = client.create_job(**request.wire(), again=again)
    if output is Format.JSON:
        print_json(job)
    else:
        print(job["id"])
    say_next(f"finetune watch {job['id']} --server {address}")


def _run_here(request: Request, store: str | None, again: bool, placed: Cluster | None) -> dict[str, Any]:
    from finetune.jobs.job import JobState
    from finetune.jobs.queue import JobQueue
    from finetune.jobs.submit import submit_or_resume
    from zoo.catalog import open_catalog
    from zoo.store import default_store_url

    spec = request.job_spec()
    if placed is not None:
        placed.require_strategy(spec.strategy)
    store_url = store or default_store_url()
    catalog = open_catalog(store_url)
    for reference in filter(None, (spec.backbone, spec.start_from)):
        catalog.get(reference)  # an unknown one is said before anything is written
    queue = JobQueue.of_store(store_url)
    try:
        job = submit_or_resume(queue, spec, again=again, store=catalog.store)
    finally:
        queue.close()
    say(f"job {job.id}")
    if job.state is JobState.SUCCEEDED:
        say("already published by the same spec; --again runs it once more")
        return dict(job.result or {})
    return run_job_here(job.id, store_url, placed=placed)


def run_job_here(job_id: str, store_url: str, *, placed: Cluster | None) -> dict[str, Any]:
    """The result of a job that this process supervises. On SIGTERM the roles save, and this ends with 75."""
    from finetune.jobs.exit_codes import EXIT_INTERRUPTED
    from finetune.jobs.job import JobState
    from finetune.jobs.queue import JobQueue
    from finetune.jobs.supervisor import run_job
    from zoo.errors import Cancelled, from_dict

    queue = JobQueue.of_store(store_url)
    try:
        with stopping() as stop:
            job = run_job(queue, job_id, store_url=store_url, stop=stop, inline=True, placed=placed)
            interrupted = stop.is_set()
    except KeyboardInterrupt:
        say(_GOES_ON)
        raise
    finally:
        queue.close()
    if job.state is JobState.SUCCEEDED:
        return dict(job.result or {})
    if job.state is JobState.FAILED:
        raise from_dict(dict(job.error or {}))
    if interrupted and job.state is JobState.QUEUED:
        say(_GOES_ON)
        raise typer.Exit(EXIT_INTERRUPTED)
    raise Cancelled(f"job {job.id} is {job.state}", hint="the same command goes on from the last Checkpoint")


def _run_there(request: Request, address: str, token: str | None, again: bool) -> dict[str, Any]:
    from finetune.cli.jobs import follow
    from finetune.client import ZooClient
    from zoo.errors import Cancelled, from_dict

    with ZooClient(address, token=token) as client:
        job = client.create_job(**request.wire(), again=again)
        say(f"job {job['id']}")
        try:
            job = follow(client, job["id"])
        except KeyboardInterrupt:
            say(f"the job goes on; finetune watch {job['id']} --server {address}")
            raise
    if job["state"] == "SUCCEEDED":
        return dict(job["result"])
    if job["state"] == "FAILED":
        raise from_dict(job["error"])
    raise Cancelled(f"job {job['id']} is {job['state']}")


def print_result(result: dict[str, Any], output: Format) -> None:
    if output is Format.JSON:
        print_json(result)
        return
    print(f"{result['reference']}  {result['digest']}")
    print(f"steps {result['steps']}, {result['seconds']:.0f} s, {result['bytes_published']} bytes published")
    for split, metrics in result["metrics"].items():
        numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
        print(f"{split}: " + ", ".join(f"{name} {value:.4g}" for name, value in numbers.items()))
