"""`finetune tensorboard JOB`: charts of a job, wherever it runs."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.cli.jobs import job_id_of
from zoo.cli.output import DebugOption, Format, FormatOption, StoreOption, print_fields, print_json, say
from zoo.errors import Unavailable

if TYPE_CHECKING:
    from finetune.jobs.event_files import EventFiles

_SYNC_SECONDS = 15.0  # between looks into a store elsewhere


class PortTaken(Unavailable):
    """A port on which TensorBoard can't listen."""


def tensorboard(
    job: Annotated[str, typer.Argument(metavar="JOB", help="a job's id, or a model's name for its newest job")],
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="0: any; default: 6006 or the next free one")
    ] = None,
    host: Annotated[str, typer.Option("--host", help="address to listen at")] = "127.0.0.1",
    store: StoreOption = None,
    output: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Show a job in TensorBoard until Ctrl-C. Another machine's event files are fetched, first and while it runs."""
    from finetune.jobs.event_files import EventFiles, NoEvents, own_events
    from finetune.jobs.folder import JobFolder
    from finetune.jobs.supervisor import job_folder_path
    from finetune.jobs.tables import data_home
    from zoo.catalog import open_catalog

    job_id = job_id_of(job, store)
    catalog = open_catalog(store)
    folder, files = own_events(JobFolder(job_folder_path(catalog, job_id))), None
    if folder is None:
        if catalog.store.local_path("jobs") is not None:
            raise NoEvents(f"job {job_id} has written nothing for TensorBoard yet", hint=f"finetune watch {job_id}")
        folder = data_home() / "tensorboard" / job_id
        files = EventFiles(catalog.store, job_id, folder)
        fetched = files.sync()
        files.require_any()
        say(f"{fetched.files} event files, {fetched.bytes} bytes, fetched into {folder}")
    signal.signal(signal.SIGTERM, _as_interrupt)
    try:
        url = _start(folder, host, port)
        if output is Format.JSON:
            print_json({"url": url, "job": job_id, "folder": str(folder)})
        else:
            print_fields([("url", url), ("job", job_id), ("folder", folder)])
        say("Ctrl-C ends it")
        _serve(files)
    except KeyboardInterrupt:
        say("ended")


def _start(folder: Path, host: str, port: int | None) -> str:
    """TensorBoard in threads of this process; its address. Raises PortTaken."""
    import warnings

    warnings.filterwarnings("ignore", message="pkg_resources is deprecated")
    from tensorboard import default, program

    # In this process (no fast data server), so that nothing is left when it ends.
    arguments = ["tensorboard", "--logdir", str(folder), "--host", host, "--load_fast", "false"]
    if port is not None:
        arguments += ["--port", str(port)]
    board = program.TensorBoard(plugins=default.get_plugins())
    board.configure(argv=arguments)
    try:
        return str(board.launch())
    except program.TensorBoardServerException as error:
        raise PortTaken(
            f"TensorBoard can't listen at {host}:{port if port is not None else '6006 and after'}: {error}",
            hint="--port 0 takes any free port",
        ) from None


def _serve(files: EventFiles | None, *, sleep: Callable[[float], None] = time.sleep) -> None:
    """For ever; fetches what is new. A store that doesn't answer for a while stops nothing."""
    while True:
        sleep(_SYNC_SECONDS)
        if files is None:
            continue
        try:
            files.sync()
        except Unavailable as error:
            say(f"warning: {error.message}")


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise KeyboardInterrupt
