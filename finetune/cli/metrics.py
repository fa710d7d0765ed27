"""`finetune metrics`: the running jobs of this machine for Prometheus."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli.output import DebugOption, StoreOption, print_json, say
from zoo.errors import InvalidArgument, Unavailable

if TYPE_CHECKING:
    from http.server import ThreadingHTTPServer


class AddressTaken(Unavailable):
    """An address at which metrics can't be served."""


class NoAddress(InvalidArgument):
    """No HOST:PORT."""


def metrics(
    address: Annotated[
        str | None, typer.Option("--address", metavar="HOST:PORT", help="serve them at /metrics there until Ctrl-C")
    ] = None,
    store: StoreOption = None,
    debug: DebugOption = False,
) -> None:
    """Print the running jobs' progress and input in Prometheus' text format, or serve it."""
    roots = _roots(store)
    if address is None:
        from finetune.jobs.exposition import exposition, running_jobs

        print(exposition(running_jobs(roots)), end="")
        return
    server = serving(address, lambda: roots)
    signal.signal(signal.SIGTERM, _as_interrupt)
    host, port = server.server_address[:2]
    print_json({"url": f"http://{host!s}:{port}/metrics"})
    say("Ctrl-C ends it")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        say("ended")
    finally:
        server.server_close()


def serving(address: str, roots: Callable[[], list[Path]]) -> ThreadingHTTPServer:
    """A server of `/metrics` for the jobs below `roots()`. Raises NoAddress, AddressTaken."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    from finetune.jobs.exposition import CONTENT_TYPE, exposition, running_jobs

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.partition("?")[0] != "/metrics":
                self.send_error(404, "only /metrics is here")
                return
            body = exposition(running_jobs(roots())).encode()
            self.send_response(200)
            self.send_header("Content-Type", CONTENT_TYPE)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """A line a scrape is of no use."""

    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise NoAddress(f"--address {address!r}: expected HOST:PORT", hint="--address 127.0.0.1:9464")
    try:
        return ThreadingHTTPServer((host, int(port)), Handler)
    except OSError as error:
        raise AddressTaken(f"cannot listen at {address}: {error.strerror or error}", hint="choose another") from error


def _roots(store: str | None) -> list[Path]:
    """Where jobs lie: in a store on this disk, and in the data home those of stores elsewhere."""
    from finetune.jobs.tables import data_home
    from zoo.catalog import open_catalog

    local = open_catalog(store).store.local_path("jobs")
    return [*([] if local is None else [local]), data_home() / "jobs"]


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
