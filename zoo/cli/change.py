"""Commands that change the catalogue: import, alias."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli.look import NameArgument, ReferenceArgument, print_version
from zoo.cli.output import DebugOption, Format, FormatOption, StoreOption, print_json, say, say_next
from zoo.cli.place import store_catalog

if TYPE_CHECKING:
    from pydantic import JsonValue

    from zoo.importer import ImportResult


def import_(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="keras, safetensors, tfjs or torch.", show_default=False)],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The checkpoint.", show_default=False)],
    name: NameArgument,
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
    again: Annotated[bool, typer.Option("--again", help="A new version even when nothing changed.")] = False,
    store: StoreOption = None,
    format: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Import somebody else's checkpoint."""
    from zoo.importer import import_checkpoint

    result = import_checkpoint(
        store_catalog(store, "import"),
        kind=kind,
        source=source,
        name=name,
        architecture=architecture,
        classes=classes,
        license=license,
        input_spec=input_spec,
        dry_run=dry_run,
        exclude=tuple(exclude or ()),
        allow_nan=allow_nan,
        raw_weights=raw_weights,
        source_url=source_url,
        recipe=_recipe(recipe or ()),
        again=again,
    )
    _print_import(result, dry_run=dry_run, as_json=format is Format.JSON)


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


def _print_import(result: ImportResult, *, dry_run: bool, as_json: bool) -> None:
    from zoo.describe import describe

    report, published = result.report, result.published
    model = describe(published.version) if published else None
    if as_json:
        facts = {"existing": published.existing, "bytes_sent": published.bytes_sent} if published else {}
        notes = {"layout": result.layout, "notes": list(result.notes), "dry_run": dry_run}
        print_json((model or {}) | facts | notes | {"restore_report": report.to_dict()})
        return
    say(
        f"{len(report.restored)} tensors read ({len(report.renamed)} renamed, {len(report.transposed)} transposed, "
        f"{len(report.dequantised)} dequantised), {len(report.unused)} not wanted"
    )
    for reason, tensors in _by_reason(report.unused).items():
        rest = f" and {len(tensors) - 3} more" if len(tensors) > 3 else ""
        say(f"  not wanted: {', '.join(tensors[:3])}{rest}: {reason}")
    for note in result.notes:
        say(f"note: {note}")
    if published and model:
        if published.existing:
            say("this already is the newest version; --again makes another")
        print_version(model)
        say_next(f"finetune run --backbone {model['reference']} --head captioner --data DATA --name NAME")
    else:
        say("dry run: nothing was stored")


def _by_reason(unused: Mapping[str, str]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for tensor, reason in unused.items():
        grouped.setdefault(reason, []).append(tensor)
    return grouped


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
