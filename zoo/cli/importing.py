"""`zoo import`: somebody else's checkpoint, from a file or from a place where it is published."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.look import print_version
from zoo.cli.output import DebugOption, Format, FormatOption, StoreOption, print_json, say, say_next
from zoo.cli.place import store_catalog

if TYPE_CHECKING:
    from pydantic import JsonValue

    from zoo.importer import ImportResult


def import_(
    arguments: Annotated[
        list[str],
        typer.Argument(
            metavar="KIND SOURCE NAME",
            help="KIND: hub, keras, safetensors, slim, tfjs or torch. SOURCE: the checkpoint. "
            "NAME: the model's. With --from-source: NAME alone.",
            show_default=False,
        ),
    ],
    from_source: Annotated[
        str | None,
        typer.Option(
            "--from-source", metavar="ARCHITECTURE", help="Published weights of it; see `zoo architectures --sources`."
        ),
    ] = None,
    architecture: Annotated[
        str | None, typer.Option("--architecture", metavar="NAME", help="See `zoo architectures`.")
    ] = None,
    classes: Annotated[
        Path | None, typer.Option("--classes", metavar="FILE", help="Class names: a JSON list, or one a line.")
    ] = None,
    license: Annotated[str | None, typer.Option("--license", metavar="SPDX", help="The weights' terms.")] = None,
    input_spec: Annotated[
        Path | None, typer.Option("--input-spec", metavar="FILE", help="JSON. Default: the architecture's usual one.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report what would be imported; store nothing.")] = False,
    exclude: Annotated[
        list[str] | None, typer.Option("--exclude", metavar="SCOPE", help="Leave these tensors out; may be repeated.")
    ] = None,
    allow_nan: Annotated[bool, typer.Option("--allow-nan", help="Take tensors that hold NaN or infinity.")] = False,
    raw_weights: Annotated[
        bool, typer.Option("--raw-weights", help="Not the moving averages that the checkpoint has beside them.")
    ] = False,
    source_url: Annotated[str | None, typer.Option("--source-url", metavar="URL", help="Where it came from.")] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option("--recipe", metavar="KEY=VALUE", help="How it was trained, e.g. label_smoothing=0.1."),
    ] = None,
    vocabulary: Annotated[
        Path | None, typer.Option("--vocabulary", metavar="FILE", help="The word_counts.txt of an im2txt checkpoint.")
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="A new version even when nothing changed.")] = False,
    store: StoreOption = None,
    format: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Import somebody else's checkpoint."""
    options: dict[str, Any] = {
        "classes": classes,
        "license": license,
        "input_spec": input_spec,
        "dry_run": dry_run,
        "exclude": tuple(exclude or ()),
        "allow_nan": allow_nan,
        "raw_weights": raw_weights,
        "source_url": source_url,
        "recipe": _recipe(recipe or ()),
        "vocabulary": vocabulary,
        "again": again,
    }
    as_json = format is Format.JSON
    if from_source is not None:
        if len(arguments) != 1 or architecture not in (None, from_source):
            raise typer.BadParameter(
                "takes the model's NAME alone, no KIND, SOURCE or --architecture", param_hint="--from-source"
            )
        _import_published(store, from_source, arguments[0], options, as_json=as_json)
        return
    if len(arguments) != 3:
        raise typer.BadParameter(
            f"takes KIND SOURCE NAME, got {len(arguments)} of them", param_hint="'KIND SOURCE NAME'"
        )
    from zoo.importer import import_checkpoint

    kind, source, name = arguments
    result = import_checkpoint(
        store_catalog(store, "import"), kind=kind, source=source, name=name, architecture=architecture, **options
    )
    _print_import(result, dry_run=dry_run, as_json=as_json)


def _import_published(
    store: str | None, architecture: str, name: str, options: dict[str, Any], *, as_json: bool
) -> None:
    from zoo.cache.blob_cache import default_cache_root
    from zoo.sources.doors import usual_doors
    from zoo.sources.known import import_from_source

    doors = usual_doors(default_cache_root() / "downloads")
    catalog = store_catalog(store, "import")
    result, tried = import_from_source(catalog, architecture=architecture, name=name, doors=doors, tell=say, **options)
    tries = [{"door": each.door, "name": each.name, "outcome": each.outcome} for each in tried]
    _print_import(result, dry_run=options["dry_run"], as_json=as_json, more={"tried": tries})


def _recipe(settings: Iterable[str]) -> dict[str, JsonValue]:
    """`label_smoothing=0.1` → {"label_smoothing": 0.1}; what isn't JSON is text."""
    recipe: dict[str, JsonValue] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not key or not equals:
            raise typer.BadParameter(f"{setting!r} is not KEY=VALUE", param_hint="--recipe")
        try:
            recipe[key] = json.loads(value)
        except ValueError:
            recipe[key] = value
    return recipe


def _print_import(result: ImportResult, *, dry_run: bool, as_json: bool, more: Mapping[str, Any] | None = None) -> None:
    from zoo.describe import describe

    report, published = result.report, result.published
    model = describe(published.version) if published else None
    if as_json:
        facts = {"existing": published.existing, "bytes_sent": published.bytes_sent} if published else {}
        notes = {"layout": result.layout, "notes": list(result.notes), "dry_run": dry_run}
        print_json((model or {}) | facts | notes | dict(more or {}) | {"restore_report": report.to_dict()})
        return
    say(
        f"{len(report.restored)} tensors read ({len(report.renamed)} renamed, {len(report.transposed)} transposed, "
        f"{len(report.dequantised)} dequantised), {len(report.unused)} not wanted"
    )
    for reason, tensors in _by_reason(report.unused).items():
        rest = f" and {len(tensors) - 3} more" if len(tensors) > 3 else ""
        say(f"  not wanted: {', '.join(tensors[:3])}{rest}: {reason}")
    if report.fresh:
        say(f"  not stored, set anew: {', '.join(report.fresh)}")
    for note in result.notes:
        say(f"note: {note}")
    if published and model:
        if published.existing:
            say("this already is the newest version; --again makes another")
        print_version(model)
        head = result.manifest.head
        if head is not None and head.kind == "captioner":
            say_next(f"finetune caption {model['reference']} PHOTO")
        else:
            say_next(f"finetune run --backbone {model['reference']} --head captioner --data DATA --name NAME")
    else:
        say("dry run: nothing was stored")


def _by_reason(unused: Mapping[str, str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for tensor, reason in unused.items():
        grouped.setdefault(reason, []).append(tensor)
    return grouped
