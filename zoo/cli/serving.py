"""`zoo serve`: the catalogue, fine-tuning and captions over gRPC."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zoo.cli.output import DebugOption, Format, FormatOption, StoreOption

DEFAULT_ADDRESS = "127.0.0.1:50051"


def serve(
    address: Annotated[
        str, typer.Option("--address", metavar="HOST:PORT", help="Port 0 picks a free one.")
    ] = DEFAULT_ADDRESS,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="YAML: data_roots, queue, limits.")
    ] = None,
    store: StoreOption = None,
    format: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Serve over gRPC until interrupted.

    When ready, it prints one line of JSON: address, health_address and token_file.
    """
    from server.serve import serve as run_server
    from zoo.store import default_store_url, open_store

    url = open_store(store or default_store_url()).url  # absolute: the server's processes start elsewhere
    run_server(address=address, store_url=url, config=config)
