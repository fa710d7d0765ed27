"""Commands that change the catalogue: alias."""

from __future__ import annotations

from typing import Annotated

import typer

from zoo.cli.look import NameArgument, ReferenceArgument
from zoo.cli.output import DebugOption, Format, FormatOption, StoreOption, print_json, say_next
from zoo.cli.place import store_catalog


def alias(
    name: NameArgument,
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="e.g. production", show_default=False)],
    reference: ReferenceArgument,
    store: StoreOption = None,
    format: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Let an alias mean a version."""
    from zoo.describe import describe

    version = store_catalog(store, "alias").set_alias(name, alias, reference)
    if format is Format.JSON:
        print_json(describe(version))
        return
    typer.echo(f"{name}@{alias} = {version.reference}")
    say_next(f"zoo history {name}")
