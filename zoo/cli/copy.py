"""Commands that read all the bytes: pull, verify."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

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
from zoo.cli.progress import Progress, progress

if TYPE_CHECKING:
    from zoo.catalog import ModelVersion
    from zoo.pull import PulledFile, PulledTensors
    from zoo.verify import Watcher


class Listeners(TypedDict):
    on_total: Callable[[int], None]
    on_bytes: Callable[[int], None]


class ComponentName(StrEnum):
    BACKBONE = "backbone"
    HEAD = "head"


def pull(
    reference: ReferenceArgument,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Made when missing.", show_default=False)],
    component: Annotated[ComponentName | None, typer.Option("--component", help="Only this one.")] = None,
    tensor: Annotated[
        list[str] | None,
        typer.Option("--tensor", metavar="NAME", help="Only this tensor, or these: * and ? match. May be repeated."),
    ] = None,
    store: StoreOption = None,
    format: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Copy a version's files, or some of its tensors, into a directory."""
    from zoo.pull import pull as pull_files
    from zoo.pull import pull_tensors

    catalog = store_catalog(store, "pull")
    version = catalog.get(reference)
    part = component.value if component else None
    with progress(f"pull {version.reference}", format) as shown:
        told: Listeners = {"on_total": shown.expect, "on_bytes": shown.advance}
        if tensor:
            pulled = pull_tensors(catalog, version, directory, tensor, component=part, **told)
        else:
            files = pull_files(catalog, version, directory, component=part, **told)
    if tensor:
        _print_tensors(version, directory, pulled, format)
    else:
        _print_files(version, directory, files, format)
    if format is Format.TEXT:
        say_next(f"zoo show {version.reference}")


def _print_files(version: ModelVersion, directory: Path, files: list[PulledFile], format: Format) -> None:
    if format is Format.JSON:
        print_json(_facts(version, directory) | {"files": [_file_json(file) for file in files]})
        return
    columns = ("file", "bytes", "digest", "")
    print_table(columns, [[f.path, f.bytes, f.digest, "was there already" if f.existing else ""] for f in files])


def _print_tensors(version: ModelVersion, directory: Path, pulled: list[PulledTensors], format: Format) -> None:
    if format is Format.JSON:
        facts = [
            _file_json(each.file) | {"component": each.component, "tensors": [asdict(info) for info in each.tensors]}
            for each in pulled
        ]
        print_json(_facts(version, directory) | {"files": facts})
        return
    rows = [[each.file.path, info.name, info.dtype, list(info.shape)] for each in pulled for info in each.tensors]
    print_table(("file", "tensor", "type", "shape"), rows)


def _facts(version: ModelVersion, directory: Path) -> dict[str, Any]:
    return {"reference": version.reference, "digest": version.digest, "directory": str(directory)}


def _file_json(file: PulledFile) -> dict[str, Any]:
    return asdict(file) | {"path": str(file.path), "name": file.path.name}


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

    with progress("verify", format) as shown:
        report = verify_store(store_catalog(store, "verify"), reference, watcher=_shown_by(shown))
    if format is Format.JSON:
        print_json(asdict(report) | {"ok": not report.problems})
    else:
        print_fields(
            [
                ("versions", report.versions),
                ("logs", report.logs),
                ("blobs", report.blobs),
                ("read", size_text(report.bytes)),
            ]
        )
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


def _shown_by(shown: Progress) -> Watcher:
    from zoo.verify import Watcher

    class Shown(Watcher):
        total = 0

        def planned(self, blobs: int, size: int) -> None:
            self.total = blobs
            shown.expect(size)

        def read(self, count: int) -> None:
            shown.advance(count)

        def done(self, blobs: int) -> None:
            shown.note(f"{blobs} of {self.total} blobs")

    return Shown()
