"""Commands that read all the bytes: pull, verify."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

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
    say_next,
    size_text,
)
from zoo.cli.place import store_catalog


class ComponentName(StrEnum):
    BACKBONE = "backbone"
    HEAD = "head"


def pull(
    reference: ReferenceArgument,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Made when missing.", show_default=False)],
    component: Annotated[ComponentName | None, typer.Option("--component", help="Only this one.")] = None,
    store: StoreOption = None,
    format: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Copy a version's files into a directory."""
    from zoo.pull import pull as pull_files

    catalog = store_catalog(store, "pull")
    version = catalog.get(reference)
    files = pull_files(catalog, version, directory, component=component.value if component else None)
    if format is Format.JSON:
        rows = [asdict(file) | {"path": str(file.path), "name": file.path.name} for file in files]
        print_json(
            {"reference": version.reference, "digest": version.digest, "directory": str(directory), "files": rows}
        )
        return
    columns = ("file", "bytes", "digest", "")
    print_table(columns, [[f.path, f.bytes, f.digest, "was there already" if f.existing else ""] for f in files])
    say_next(f"zoo show {version.reference}")


def verify(
    reference: Annotated[
        str | None, typer.Argument(metavar="[REF]", help="Default: every version of every model.", show_default=False)
    ] = None,
    store: StoreOption = None,
    format: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Compare every stored byte with what was published."""
    from zoo.cache import CorruptBlob
    from zoo.verify import verify as verify_store

    report = verify_store(store_catalog(store, "verify"), reference)
    if format is Format.JSON:
        print_json(asdict(report) | {"ok": not report.problems})
    else:
        print_fields([("versions", report.versions), ("blobs", report.blobs), ("read", size_text(report.bytes))])
        if report.problems:
            rows = [[p.reference, p.part, p.digest, p.found] for p in report.problems]
            print_table(("version", "part", "digest", "problem"), rows)
    if report.problems:
        first = report.problems[0]
        raise CorruptBlob(
            f"{len(report.problems)} of the parts are not as published, first {first.part} of {first.reference}: "
            f"{first.found}",
            hint="publish it again from a good copy, under a new name",
            reference=first.reference,
        )
