"""The `zoo` command: the catalogue on the command line. What a command needs is imported when it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from zoo.cli import architectures, change, copy, export, importing, keep, lineage, listing, look, serving
from zoo.cli.output import DebugOption, new_app, print_fields, run_cli

app = new_app("The catalogue of models.")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print_fields([("modelzoo", version("modelzoo"))])
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    debug: DebugOption = False,
) -> None:
    pass


COMMANDS: dict[str, Callable[..., None]] = {
    "import": importing.import_,
    "list": listing.list_,
    "show": look.show,
    "history": look.history,
    "lineage": lineage.lineage,
    "alias": change.alias,
    "archive": keep.archive,
    "delete": keep.delete,
    "undelete": keep.undelete,
    "diff": keep.diff,
    "card": keep.card,
    "pull": copy.pull,
    "push": keep.push,
    "export": export.export,
    "verify": copy.verify,
    "gc": keep.gc,
    "architectures": architectures.architectures,
    "serve": serving.serve,
}
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)


def main() -> None:
    run_cli(app)


if __name__ == "__main__":
    main()
