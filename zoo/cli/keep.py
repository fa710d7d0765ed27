"""Commands that keep the catalogue in order: archive, delete, undelete, gc, card, diff, push."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from zoo.cli.look import NameArgument, ReferenceArgument, print_version
from zoo.cli.output import (
    DebugOption,
    Format,
    FormatOption,
    StoreOption,
    print_fields,
    print_json,
    print_table,
    say,
    say_next,
    size_text,
)
from zoo.cli.place import store_catalog
from zoo.cli.progress import progress

_MAX_CARD_READ = 2_000_000  # bytes: more than any card may have, so that its own limit can say so


def archive(
    reference: ReferenceArgument,
    undo: Annotated[bool, typer.Option("--undo", help="Take it out of the archive.")] = False,
    store: StoreOption = None,
    format: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Keep and serve a version, but not for new work."""
    from zoo.describe import describe

    version = store_catalog(store, "archive").archive(reference, undo=undo)
    if format is Format.JSON:
        print_json(describe(version))
        return
    typer.echo(f"{version.reference} is {'archived' if version.archived else 'not archived'}")
    say_next(f"zoo show {version.reference}")


def delete(
    name: NameArgument,
    store: StoreOption = None,
    format: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Hide a model with all its versions; for 30 days it can be undeleted."""
    from zoo.describe import rfc3339
    from zoo.log import UNDELETE_DAYS

    state = store_catalog(store, "delete").delete(name)
    assert state.deleted is not None
    until = rfc3339(state.deleted + timedelta(days=UNDELETE_DAYS))
    if format is Format.JSON:
        print_json({"name": name, "deleted": rfc3339(state.deleted), "undelete_until": until})
        return
    typer.echo(f"{name} is deleted, with its {len(state.versions)} versions; it can be undeleted until {until}")
    say_next(f"zoo undelete {name}")


def undelete(
    name: NameArgument,
    store: StoreOption = None,
    format: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Bring a deleted model back as it was."""
    state = store_catalog(store, "undelete").undelete(name)
    if format is Format.JSON:
        print_json({"name": name, "deleted": None, "versions": len(state.versions)})
        return
    typer.echo(f"{name} is back, with its {len(state.versions)} versions")
    say_next(f"zoo show {name}")


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be removed; remove nothing.")] = False,
    grace: Annotated[float, typer.Option("--grace", metavar="HOURS", min=0, help="Younger bytes are kept.")] = 24.0,
    keep_features: Annotated[
        float, typer.Option("--keep-features", metavar="DAYS", min=0, help="Shared features used since are kept.")
    ] = 30.0,
    store: StoreOption = None,
    format: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Remove bytes that no version names, what interrupted writes left behind, and features that nobody uses."""
    from zoo.describe import rfc3339
    from zoo.gc import gc as collect

    catalog = store_catalog(store, "gc")
    kept = timedelta(days=keep_features)
    report = collect(catalog, dry_run=dry_run, grace=timedelta(hours=grace), features_kept=kept)
    if format is Format.JSON:
        features = [asdict(unused) | {"last_use": rfc3339(unused.last_use)} for unused in report.feature_sets]
        print_json(asdict(report) | {"bytes": report.bytes, "feature_sets": features})
    else:
        print_table(
            ("would remove" if dry_run else "removed", "objects", "bytes"),
            [[kind, tally.count, tally.bytes] for kind, tally in sorted(report.removed.items())],
        )
        if report.feature_sets:
            rows = [[f.name, f.objects, f.bytes, rfc3339(f.last_use)] for f in report.feature_sets]
            print_table(("unused features", "objects", "bytes", "last used"), rows)
        print_fields([("in all", size_text(report.bytes)), *((f"kept: {why}", n) for why, n in report.kept.items())])
    for problem in report.problems:
        say(f"problem: {problem}")
    if report.problems:
        raise typer.Exit(1)


def card(
    reference: ReferenceArgument,
    edit: Annotated[
        str | None, typer.Option("--edit", metavar="FILE", help="Markdown to become the card; - is stdin.")
    ] = None,
    at: Annotated[int | None, typer.Option("--at", metavar="SEQ", help="The card as it was in this revision.")] = None,
    store: StoreOption = None,
    format: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Show or edit a model's card."""
    from zoo.card import edit_card, show_card

    if edit is not None and at is not None:
        raise typer.BadParameter("--edit makes a new revision, --at shows an old one: drop one of them")
    catalog = store_catalog(store, "card")
    version = catalog.get(reference)
    shown = edit_card(catalog, version, _card_text(edit)) if edit is not None else show_card(catalog, version, at=at)
    for note in shown.notes:
        say(f"note: {note}")
    if edit is not None:
        say(
            "this is the card already" if shown.existing else f"the card of {version.name} is revision {shown.revision}"
        )
    if format is Format.JSON:
        print_json(shown.to_dict())
    elif edit is None:
        sys.stdout.write(shown.text)


def _card_text(edit: str) -> bytes:
    from zoo.atomic_file import storage_error

    if edit == "-":
        return sys.stdin.buffer.read(_MAX_CARD_READ)
    try:
        with Path(edit).open("rb") as file:
            return file.read(_MAX_CARD_READ)
    except OSError as error:
        raise storage_error(error, "read", Path(edit)) from error


def diff(
    a: Annotated[str, typer.Argument(metavar="REF", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="REF", show_default=False)],
    store: StoreOption = None,
    format: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Compare two versions, tensor by tensor."""
    from zoo.diff import diff as compare

    catalog = store_catalog(store, "diff")
    found = compare(catalog, catalog.get(a), catalog.get(b))
    if format is Format.JSON:
        print_json(found.to_dict())
        return
    columns = ("component", "equal", "changed", "added", "removed")
    print_table(columns, [[c.name, c.equal, len(c.changed), len(c.added), len(c.removed)] for c in found.components])
    changed = [(c.name, tensor) for c in found.components for tensor in c.changed]
    changed.sort(key=lambda row: -(row[1].relative_norm or 0.0))
    if changed:
        rows = [[name, t.name, t.relative_norm, t.max_abs] for name, t in changed[:20]]
        print_table(("component", "tensor", "relative norm", "largest difference"), rows)
        if len(changed) > len(rows):
            say(f"and {len(changed) - len(rows)} more changed tensors; --format json has all")
    if found.manifest:
        say(f"the manifests differ in: {', '.join(sorted(found.manifest))}")


def push(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="As `zoo pull` writes it.", show_default=False)],
    name: NameArgument,
    again: Annotated[bool, typer.Option("--again", help="A new version even when nothing changed.")] = False,
    store: StoreOption = None,
    format: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Publish a directory that was pulled."""
    from zoo.describe import describe
    from zoo.push import bytes_to_push
    from zoo.push import push as push_directory

    catalog = store_catalog(store, "push")
    with progress(f"push {name} (hash, then send)", format, total=bytes_to_push(directory)) as shown:
        pushed = push_directory(catalog, directory, name, again=again, on_bytes=shown.advance)
    published = pushed.published
    if pushed.absent:
        say(f"not in {directory}, and in the store already: {', '.join(pushed.absent)}")
    if pushed.unknown:
        say(f"{len(pushed.unknown)} files that the manifest does not name were left out: {', '.join(pushed.unknown)}")
    model = describe(published.version)
    if format is Format.JSON:
        print_json(model | {"existing": published.existing, "bytes_sent": published.bytes_sent})
        return
    if published.existing:
        say("this already is the newest version; --again makes another")
    print_version(model)
    say_next(f"zoo show {model['reference']}")
