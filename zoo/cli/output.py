"""What both command lines share: data on stdout, talk on stderr, `--format`, errors and exit codes.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Annotated, Any, NoReturn

import typer

from zoo.errors import Internal, ZooError


class Format(StrEnum):
    TEXT = "text"
    JSON = "json"


FormatOption = Annotated[Format, typer.Option("--format", help="How data is printed on stdout.")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Print a traceback when something fails.")]
StoreOption = Annotated[
    str | None,
    typer.Option(
        "--store", metavar="URL", help="file:///DIR or s3://BUCKET/PREFIX. Default: MODELZOO_STORE, else data home."
    ),
]
ServerOption = Annotated[
    str | None,
    typer.Option("--server", metavar="HOST:PORT", help="Act through a server. Default: MODELZOO_SERVER."),
]
TokenOption = Annotated[
    str | None,
    typer.Option("--token", help="For the server. Default: MODELZOO_TOKEN, else a local server's token file."),
]


def new_app(help_text: str) -> typer.Typer:
    """A typer app with our settings: errors are ours to print, and a call without a command is wrong usage."""
    return typer.Typer(
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # plain help: rich's takes a tenth of a second to import
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def chosen_server(server: str | None, store: str | None) -> str | None:
    """The server that a command acts through, or None: a flag wins over the environment."""
    if server is not None and store is not None:
        raise typer.BadParameter("a command acts through a server or on a store, not both: drop --server or --store")
    return server or (None if store is not None else os.environ.get("MODELZOO_SERVER") or None)


def say(text: str) -> None:
    """Talk: to stderr."""
    print(printable(text), file=sys.stderr, flush=True)


def say_next(command: str) -> None:
    """The command to try next, to stderr."""
    say(f"next: {command}")


def print_json(value: Any) -> None:
    """One JSON value on one line of stdout: the whole output, or one object of a stream."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False), flush=True)


def print_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A table on stdout; numbers to the right, None is an empty cell. Folded to a width only on a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    cells = [list(row) for row in rows]
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, column in enumerate(columns):
        numeric = all(isinstance(row[index], int | float) for row in cells if row[index] is not None)
        table.add_column(column, justify="right" if numeric and cells else "left", overflow="fold")
    for row in cells:
        table.add_row(*(Text("" if cell is None else printable(str(cell))) for cell in row))
    Console(highlight=False, width=None if sys.stdout.isatty() else 10_000).print(table, soft_wrap=False)
    sys.stdout.flush()


def print_fields(fields: Iterable[tuple[str, Any]]) -> None:
    """A name and a value a line on stdout, the values aligned; fields that are None are left out."""
    shown = [(name, value) for name, value in fields if value is not None]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        print(f"{name:<{width}}  {printable(str(value))}")
    sys.stdout.flush()


def printable(text: str) -> str:
    """`text` without what could steer a terminal: control characters become `\\x1b` and the like."""
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def size_text(size: int) -> str:
    """Bytes for people: `1.5 MB` is 1,500,000."""
    value, unit = float(size), "bytes"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{size} bytes" if unit == "bytes" else f"{value:.1f} {unit}"


def run_cli(app: typer.Typer, args: Sequence[str] | None = None) -> NoReturn:
    """Runs a command line and exits the process with its code.

    A ZooError becomes its message and hint on stderr (with `--format json` one line of JSON: `ZooError.to_dict` under
    `error`); anything else that escapes is reported as a fault of ours. Tracebacks only with `--debug`.
    """
    arguments = list(sys.argv[1:] if args is None else args)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a file name of bytes that aren't UTF-8 must not end the program
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        app(args=arguments)
    except ZooError as error:
        _report(error, error, arguments)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - the last stop: nobody above us could print it
        internal = Internal(
            f"unexpected {type(error).__name__}: {error}", hint="the same command with --debug shows where"
        )
        _report(internal, error, arguments)
    sys.exit(0)


def _report(error: ZooError, cause: Exception, arguments: Sequence[str]) -> NoReturn:
    if "--debug" in arguments:
        traceback.print_exception(cause, file=sys.stderr)
    if _asks_for_json(arguments):
        print(json.dumps({"error": error.to_dict()}, ensure_ascii=False), file=sys.stderr, flush=True)
    else:
        say(f"error: {error.message}")
        if error.hint:
            say(f"  hint: {error.hint}")
    sys.exit(1)


def _asks_for_json(arguments: Sequence[str]) -> bool:
    pairs = zip(arguments, [*arguments[1:], ""], strict=True)
    return any(a == "--format=json" or (a == "--format" and b == "json") for a, b in pairs)
