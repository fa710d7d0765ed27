"""Commands that look at one model and change nothing: show, history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.output import (
    DebugOption,
    Format,
    FormatOption,
    ServerOption,
    StoreOption,
    TokenOption,
    chosen_server,
    print_fields,
    print_json,
    print_table,
    say_next,
    size_text,
)
from zoo.cli.place import local_catalog, store_catalog

if TYPE_CHECKING:
    pass

ReferenceArgument = Annotated[
    str, typer.Argument(metavar="REF", help="name, name@3, name@alias or name@sha256:…", show_default=False)
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A model's name.", show_default=False)]


def show(
    reference: ReferenceArgument,
    store: StoreOption = None,
    server: ServerOption = None,
    token: TokenOption = None,
    format: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Show everything about one version."""
    if address := chosen_server(server, store):
        from finetune.client import ZooClient

        with ZooClient(address, token=token) as client:
            model = client.get_version(reference)
    else:
        from zoo.describe import describe

        model = describe(local_catalog(store).get(reference))
    if format is Format.JSON:
        print_json(model)
        return
    print_version(model)
    say_next(f"zoo lineage {model['name']}@{model['version']}")


def print_version(model: dict[str, Any]) -> None:
    """The text of `zoo show` for a version in the form of `zoo.describe.describe`."""
    classes, lineage, spec = model["classes"], model["lineage"], model["input_spec"]
    source = lineage["source"]
    print_fields(
        [
            ("reference", f"{model['name']}@{model['version']}"),
            ("digest", model["digest"]),
            ("aliases", ", ".join(model["aliases"]) or None),
            ("archived", "yes" if model.get("archived") else None),
            ("architecture", model["architecture"]),
            *(
                (c["name"], f"{size_text(c['bytes'])}, {c['num_tensors']} tensors, {c['digest']}")
                for c in model["components"]
            ),
            ("input", f"{spec['height']}x{spec['width']}, {spec['fit']}, {spec['interpolation']}"),
            ("head", model["head"]),
            ("classes", f"{len(classes)}: {_first(classes)}" if classes else None),
            ("vocabulary", f"{model['vocabulary_size']} words" if model["vocabulary_size"] else None),
            ("license", model["license"]),
            ("parent", lineage["parent"]),
            ("job", lineage["job"]),
            ("source", f"{source['kind']}: {source['location']}" if source else None),
            ("tensors", fates_text(lineage["tensors"]) or None),
            ("moved", moved_text(lineage.get("moved") or {}) or None),
            *((f"metrics {split}", _metrics(values)) for split, values in sorted(model["metrics"].items())),
            ("created", model["created"]),
        ]
    )


def _first(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")


def fates_text(counts: dict[str, int]) -> str:
    """Sorted, as everything from an object is: the order of an object's keys doesn't survive a server."""
    return ", ".join(f"{count} {fate}" for fate, count in sorted(counts.items()) if count)


def moved_text(moved: dict[str, float], limit: int = 3) -> str:
    """How far trained tensors are from where they began: the middle one, and those that went furthest."""
    if not moved:
        return ""
    furthest = sorted(moved.items(), key=lambda entry: (-entry[1], entry[0]))
    middle = furthest[len(furthest) // 2][1]
    most = ", ".join(f"{name} {100 * share:.3g} %" for name, share in furthest[:limit])
    return f"{len(moved)} tensors, by {100 * middle:.3g} % in the middle, most {most}"


def _metrics(values: dict[str, Any]) -> str:
    numbers = {name: value for name, value in sorted(values.items()) if isinstance(value, int | float)}
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())


def history(
    name: NameArgument, store: StoreOption = None, format: FormatOption = Format.TEXT, debug: DebugOption = False
) -> None:
    """Show everything that ever happened to a model."""
    from zoo.describe import describe_event

    events = [describe_event(event) for event in store_catalog(store, "history").history(name)]
    if format is Format.JSON:
        print_json(events)
        return
    columns = ("seq", "time", "event", "version", "alias", "digest")
    keys = ("seq", "time", "type", "version", "alias", "digest")  # the digest is a manifest's, or a card's
    print_table(columns, [[event.get(key) for key in keys] for event in events])
    say_next(f"zoo show {name}")
