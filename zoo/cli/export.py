"""`zoo export`: a version as the files of another tool, compared with the source before it is called done."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from zoo.cli.look import ReferenceArgument
from zoo.cli.output import (
    DebugOption,
    Format,
    FormatOption,
    StoreOption,
    print_fields,
    print_json,
    print_table,
    say,
    size_text,
)
from zoo.cli.place import store_catalog

_MEASURES = ("absolute", "relative", "tolerance")


class ExportKind(StrEnum):
    SAVED_MODEL = "saved_model"
    HUB = "hub"
    KERAS = "keras"
    ONNX = "onnx"
    LITERT = "litert"


def export(
    reference: ReferenceArgument,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Made; mustn't hold anything.", show_default=False)],
    kind: Annotated[ExportKind, typer.Option("--as", help="The format.", show_default=False)],
    quantise: Annotated[bool, typer.Option("--quantise", help="litert: weights as 8-bit integers.")] = False,
    with_head: Annotated[bool, typer.Option("--with-head", help="hub: keep a classifier's layers.")] = False,
    store: StoreOption = None,
    format: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Write a version as another tool's files, and compare them with it in a fresh process."""
    from finetune.export.export import export as export_version
    from finetune.export.exporter import ExportOptions

    catalog = store_catalog(store, "export")
    options = ExportOptions(quantise=quantise, with_head=with_head)
    say(f"writing {kind.value}, then reading it in a fresh process …")
    facts = export_version(catalog, reference, directory, kind=kind.value, options=options).facts
    if format is Format.JSON:
        print_json({"directory": str(directory), **facts})
        return
    _print_export(directory, facts)


def _print_export(directory: Path, facts: dict[str, Any]) -> None:
    total = sum(file["bytes"] for file in facts["files"])
    print_fields(
        [
            ("exported", f"{facts['reference']} as {facts['kind']}"),
            ("directory", directory),
            ("files", f"{len(facts['files'])}, {size_text(total)}"),
            ("license", facts["license"]),
        ]
    )
    rows = [
        [row["signature"], row["output"], *(_number(row[key]) for key in _MEASURES), _equal(row)]
        for row in facts["comparison"]["outputs"]
    ]
    print_table(("signature", "output", "largest difference", "relative", "allowed", "equal"), rows)
    for note in facts["notes"]:
        say(f"note: {note}")


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.2g}"


def _equal(row: dict[str, Any]) -> str | None:
    return f"{row['equal']} of {row['entries']}" if row["relative"] is None else None
