"""`finetune list | get | watch | logs | cancel`: jobs of a store, or of a server."""

from __future__ import annotations

import codecs
import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from zoo.cli.output import (
    DebugOption,
    Format,
    FormatOption,
    ServerOption,
    StoreOption,
    TokenOption,
    chosen_server,
    print_fields,
    print_json,
    print_table,
    say,
    say_next,
)
from zoo.errors import Cancelled, InvalidArgument, NotFound, from_dict

if TYPE_CHECKING:
    from finetune.jobs.queue import JobQueue
    from zoo.store.object_store import ObjectStore

JobId = Annotated[str, typer.Argument(metavar="JOB")]
POLL_SECONDS = 0.5
RECONNECT_SECONDS = 60.0


class NoLog(NotFound):
    """A role of a job that has written no log."""


class Jobs(Protocol):
    """Where jobs are asked for: the store's own queue, or a server. Jobs and events are as `to_json` has them."""

    def list_jobs(self, *, name: str | None = None) -> Iterator[dict[str, Any]]: ...

    def get_job(self, job_id: str) -> dict[str, Any]: ...

    def watch_job(self, job_id: str, *, after_cursor: int = 0) -> Iterator[dict[str, Any]]: ...

    def cancel_job(self, job_id: str) -> dict[str, Any]: ...


class LocalJobs:
    """The queue that this machine keeps for a store. Where the store isn't on this disk, it knows of other machines'
    jobs too."""

    def __init__(self, queue: JobQueue, store: ObjectStore) -> None:
        self._queue = queue
        self._store = store

    def list_jobs(self, *, name: str | None = None) -> Iterator[dict[str, Any]]:
        """Newest first; of a store that isn't on this disk also the jobs that only it knows, marked `elsewhere`."""
        from finetune.jobs.adopt import is_elsewhere

        own: list[dict[str, Any]] = []
        page = self._queue.list(name=name)
        while page:
            own += [job.to_json() for job in page]
            page = self._queue.list(name=name, before=(page[-1].created, page[-1].id))
        if not is_elsewhere(self._store):
            yield from own
            return
        from finetune.jobs.elsewhere import jobs_elsewhere

        ids = {job["id"] for job in own}
        found = jobs_elsewhere(self._store, name=name, is_known=ids.__contains__)
        for problem in found.problems:
            say(f"note: {problem}")
        if found.left_out:
            say(f"note: {found.left_out} older jobs of other machines are left out; finetune get shows any by its id")
        both = [job | {"elsewhere": False} for job in own] + [job | {"elsewhere": True} for job in found.jobs]
        yield from sorted(both, key=lambda job: (job["created"], job["id"]), reverse=True)

    def get_job(self, job_id: str) -> dict[str, Any]:
        from finetune.jobs.adopt import is_elsewhere, read_job, stored_job_json
        from finetune.jobs.job import UnknownJob

        try:
            job = self._queue.get(job_id).to_json()
        except UnknownJob:
            found = read_job(self._store, job_id) if is_elsewhere(self._store) else None
            if found is None:
                raise
            return stored_job_json(self._store, found)
        from finetune.jobs.roles import role_states

        return job | {"roles": [state.to_json() for state in role_states(self._queue.role_events(job_id))]}

    def watch_job(self, job_id: str, *, after_cursor: int = 0) -> Iterator[dict[str, Any]]:
        from finetune.jobs.adopt import is_elsewhere
        from finetune.jobs.job import UnknownJob

        try:
            self._queue.get(job_id)
        except UnknownJob:
            if not is_elsewhere(self._store):
                raise
            from finetune.jobs.elsewhere import watch_elsewhere

            yield from watch_elsewhere(self._store, job_id, after_cursor=after_cursor)
            return
        while True:
            job = self._queue.get(job_id)  # before its events, so that none is missed when it has ended
            for event in self._queue.events(job_id, after=after_cursor):
                after_cursor = event.cursor
                yield event.to_json()
            if job.ended:
                return
            time.sleep(POLL_SECONDS)

    def cancel_job(self, job_id: str) -> dict[str, Any]:
        from finetune.jobs.adopt import is_elsewhere, tell_cancelled
        from finetune.jobs.job import JobState

        job = self._queue.cancel(job_id)
        if job.state is JobState.CANCELLED and is_elsewhere(self._store):
            tell_cancelled(self._store, job)
        return job.to_json()


@contextlib.contextmanager
def opened(store: str | None, server: str | None, token: str | None) -> Iterator[Jobs]:
    """The jobs of a server where one is meant, else of the store."""
    address = chosen_server(server, store)
    if address:
        from finetune.client import ZooClient

        with ZooClient(address, token=token) as client:
            yield client
        return
    from finetune.jobs.queue import JobQueue
    from zoo.store import default_store_url, open_store

    url = store or default_store_url()
    queue = JobQueue.of_store(url)
    try:
        yield LocalJobs(queue, open_store(url))
    finally:
        queue.close()


def job_id_of(job: str, store: str | None) -> str:
    """The id of a job that is named by it, or by its model: then the newest. Raises UnknownJob."""
    from finetune.jobs.job import UnknownJob

    with opened(store, None, None) as jobs:
        try:
            return str(jobs.get_job(job)["id"])
        except (UnknownJob, InvalidArgument):
            newest = next(iter(jobs.list_jobs(name=job)), None)
            if newest is None:
                raise
            return str(newest["id"])


def list_(
    name: Annotated[str | None, typer.Option("--name", help="only jobs that publish to this model")] = None,
    store: StoreOption = None,
    server: ServerOption = None,
    token: TokenOption = None,
    output: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """The jobs, newest first."""
    with opened(store, server, token) as jobs:
        found = list(jobs.list_jobs(name=name))
    if output is Format.JSON:
        print_json(found)
        return
    columns = ["job", "model", "state", "step", "created"]
    rows = [[job["id"], job["name"], job["state"], _step(job), job["created"]] for job in found]
    if any(job.get("elsewhere") for job in found):
        columns.append("where")
        rows = [[*row, "elsewhere" if job.get("elsewhere") else "here"] for row, job in zip(rows, found, strict=True)]
    print_table(columns, rows)


def get(
    job_id: JobId,
    store: StoreOption = None,
    server: ServerOption = None,
    token: TokenOption = None,
    output: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """One job: its state, spec, progress, error or result."""
    with opened(store, server, token) as jobs:
        job = jobs.get_job(job_id)
    if output is Format.JSON:
        print_json(job)
        return
    error = job["error"]
    result = job["result"] or {}
    print_fields(
        [
            ("job", job["id"]),
            ("model", job["name"]),
            ("state", job["state"]),
            ("step", _step(job)),
            ("run by", job["owner"]),
            ("claimed", job["attempts"]),
            ("created", job["created"]),
            ("updated", job["updated"]),
            ("published", result.get("reference")),
            ("error", error and error["message"]),
            ("try", error and error["hint"]),
            *((role["role"], _role(role)) for role in job.get("roles", [])),
        ]
    )


def watch(
    job_id: JobId,
    store: StoreOption = None,
    server: ServerOption = None,
    token: TokenOption = None,
    output: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Follow a job to its end, from its first event. With `--format json`, one object an event."""
    with opened(store, server, token) as jobs:
        job = follow(jobs, job_id, output)
    if job["state"] == "FAILED":
        raise from_dict(job["error"] or {})
    if job["state"] == "CANCELLED":
        raise Cancelled(f"job {job_id} was cancelled")
    if output is Format.TEXT:
        print(job["result"]["reference"])
    say_next(f"zoo show {job['result']['reference']}")


def follow(jobs: Jobs, job_id: str, output: Format | None = None) -> dict[str, Any]:
    """Shows a job's events until it has ended; returns the ended job.

    A server that stops answering is asked again for a minute, from the last event seen. `output` JSON prints the events
    as data; otherwise they are talk.
    """
    from finetune.client import ServerUnreachable

    cursor, lost_at = 0, None
    while True:
        try:
            for event in jobs.watch_job(job_id, after_cursor=cursor):
                cursor, lost_at = event["cursor"], None
                _show(event, output)
            return jobs.get_job(job_id)
        except ServerUnreachable as error:
            lost_at = lost_at or time.monotonic()
            if time.monotonic() - lost_at > RECONNECT_SECONDS:
                raise
            say(f"{error.message}; asking again")
            time.sleep(2)


def _show(event: dict[str, Any], output: Format | None) -> None:
    if output is Format.JSON:
        print_json(event)
        return
    progress = event.get("progress")
    if event["kind"] != "progress" or not progress:
        say(f"{event['time']}  {event['message']}")
        return
    line = f"{progress.get('phase')}: {progress.get('step')}/{progress.get('steps')}"
    if progress.get("loss") is not None:
        line += f", loss {progress['loss']:.4f}"
    if progress.get("examples_per_second"):
        line += f", {progress['examples_per_second']:.0f} examples/s"
    waited = (progress.get("input") or {}).get("waited_share") or 0.0
    if waited >= 0.01:
        line += f", waits for input {waited:.0%}"
    if progress.get("eta_seconds"):
        line += f", {progress['eta_seconds']:.0f} s left"
    say(f"{event['time']}  {line}")


def logs(
    job_id: JobId,
    role: Annotated[str, typer.Option("--role", help="chief | evaluator | supervisor")] = "chief",
    store: StoreOption = None,
    debug: DebugOption = False,
) -> None:
    """Print what a role of a job wrote: its stdout and stderr."""
    from finetune.jobs.adopt import is_elsewhere, stored_log, stored_roles
    from finetune.jobs.folder import JobFolder
    from finetune.jobs.supervisor import job_folder_path
    from zoo.catalog import open_catalog

    with opened(store, None, None) as jobs:
        jobs.get_job(job_id)
    catalog = open_catalog(store)
    folder = JobFolder(job_folder_path(catalog, job_id))
    path = folder.log_path(role)
    if path.is_file():
        with path.open(encoding="utf-8", errors="replace") as lines:
            for line in lines:
                sys.stdout.write(line)
        return
    there = sorted(log.stem for log in folder.logs.glob("*.log")) if folder.logs.is_dir() else []
    if is_elsewhere(catalog.store):
        there = stored_roles(catalog.store, job_id)
    if role not in there:
        raise NoLog(f"job {job_id} has no log of {role!r}; there are: {', '.join(there) or 'none'}")
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a piece may end within a character
    for piece in stored_log(catalog.store, job_id, role):
        sys.stdout.write(decoder.decode(piece))


def cancel(
    job_id: JobId,
    store: StoreOption = None,
    server: ServerOption = None,
    token: TokenOption = None,
    output: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Ask for a job's end. What it has published stays, what it has computed is kept for a retry."""
    with opened(store, server, token) as jobs:
        job = jobs.cancel_job(job_id)
    if output is Format.JSON:
        print_json(job)
    else:
        print(f"{job['id']} {job['state']}")


def _step(job: dict[str, Any]) -> str | None:
    progress = job["progress"]
    return f"{progress['step']}/{progress['steps']}" if progress and "steps" in progress else None


def _role(role: dict[str, Any]) -> str:
    """A process in few words, e.g. `running since … as 4711, started 2 times`."""
    text = f"{role['state']} since {role['since']}"
    if role["pid"] is not None:
        text += f" as process {role['pid']}"
    if (role["exit_code"] or 0) < 0:
        text += f" by signal {-role['exit_code']}"
    return text + (f", started {role['starts']} times" if role["starts"] > 1 else "")
