"""Commands that look and change nothing: list, show, history, lineage, architectures."""

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
    say,
    say_next,
    size_text,
)
from zoo.cli.place import local_catalog, store_catalog

if TYPE_CHECKING:
    from zoo.architectures.facts import ArchitectureFacts
    from zoo.catalog import ModelVersion

ReferenceArgument = Annotated[
    str, typer.Argument(metavar="REF", help="name, name@3, name@alias or name@sha256:…", show_default=False)
]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="A model's name.", show_default=False)]


def list_(
    store: StoreOption = None,
    server: ServerOption = None,
    token: TokenOption = None,
    format: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """List the newest version of every model."""
    address = chosen_server(server, store)
    if address:
        from finetune.client import ZooClient

        with ZooClient(address, token=token) as client:
            models = client.list_models()
    else:
        from zoo.describe import describe

        models = [describe(version) for version in local_catalog(store).list()]
    if format is Format.JSON:
        print_json(models)
        return
    if not models:
        say(f"the catalogue at {address or local_catalog(store).store.url} is empty")
        say_next("zoo import KIND SOURCE NAME")
        return
    columns = ("model", "version", "architecture", "head", "bytes", "aliases", "parent", "created")
    print_table(columns, [_row(model) for model in models])
    say_next(f"zoo show {models[0]['name']}")


def _row(model: dict[str, Any]) -> list[Any]:
    size = size_text(sum(component["bytes"] for component in model["components"]))
    head, aliases = model["head"] or "-", ", ".join(model["aliases"])
    parent, created = model["lineage"]["parent"], model["created"][:19] + "Z"
    return [model["name"], model["version"], model["architecture"], head, size, aliases, parent, created]


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
            ("tensors", _fates(lineage["tensors"]) or None),
            *((f"metrics {split}", _metrics(values)) for split, values in sorted(model["metrics"].items())),
            ("created", model["created"]),
        ]
    )


def _first(names: list[str], limit: int = 5) -> str:
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")


def _fates(counts: dict[str, int]) -> str:
    """Sorted, as everything from an object is: the order of an object's keys doesn't survive a server."""
    return ", ".join(f"{count} {fate}" for fate, count in sorted(counts.items()) if count)


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
    keys = ("seq", "time", "type", "version", "alias", "digest")
    print_table(columns, [[event.get(key) for key in keys] for event in events])
    say_next(f"zoo show {name}")


def lineage(
    reference: ReferenceArgument,
    store: StoreOption = None,
    format: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Show where a version came from and led to."""
    catalog = store_catalog(store, "lineage")
    version = catalog.get(reference)
    ancestors, missing = catalog.ancestors(version.reference)
    children = catalog.children(version.reference)
    if format is Format.JSON:
        value = _lineage(version) | {
            "ancestors": [_lineage(ancestor) for ancestor in ancestors],
            "missing_parent": missing,
            "children": [_lineage(child) for child in children],
        }
        print_json(value)
        return
    rows: list[list[Any]] = [["ancestor", *_lineage_row(ancestor)] for ancestor in reversed(ancestors)]
    if missing:
        rows.insert(0, ["ancestor", missing, "not in this catalogue", None, None])
    rows.append(["this", *_lineage_row(version)])
    rows += [["child", *_lineage_row(child)] for child in children]
    print_table(("", "reference", "architecture", "made by", "tensors"), rows)
    if children:
        say_next(f"zoo show {children[0].reference}")


def _lineage(version: ModelVersion) -> dict[str, Any]:
    from zoo.describe import describe

    model = describe(version)
    return {key: model[key] for key in ("reference", "digest", "architecture", "lineage", "created")}


def _lineage_row(version: ModelVersion) -> list[Any]:
    facts = _lineage(version)["lineage"]
    source = facts["source"]
    made_by = f"job {facts['job']}" if facts["job"] else f"import of {source['location']}" if source else None
    return [version.reference, version.manifest.architecture.name, made_by, _fates(facts["tensors"])]


def architectures(format: FormatOption = Format.TEXT, debug: DebugOption = False) -> None:
    """List the networks that can be built."""
    from zoo.architectures import ARCHITECTURES

    known = [facts for _, facts in sorted(ARCHITECTURES.items())]
    if format is Format.JSON:
        print_json([_facts(facts) for facts in known])
        return
    columns = ("architecture", "parameters", "GFLOP", "features", "input", "paper")
    rows = [
        [
            facts.name,
            facts.parameters,
            round(facts.flops / 1e9, 2),
            facts.feature_dim(facts.defaults),
            f"{facts.input_spec.height}x{facts.input_spec.width}",
            facts.paper,
        ]
        for facts in known
    ]
    print_table(columns, rows)
    say_next("zoo import KIND SOURCE NAME --architecture NAME")


def _facts(facts: ArchitectureFacts) -> dict[str, Any]:
    return {
        "name": facts.name,
        "paper": facts.paper,
        "parameters": facts.parameters,
        "flops": facts.flops,
        "feature_dim": facts.feature_dim(facts.defaults),
        "arguments": dict(facts.defaults),
        "endpoints": [{"name": e.name, "stride": e.stride, "channels": e.channels} for e in facts.endpoints],
        "input_spec": facts.input_spec.model_dump(mode="json"),
        "min_size": facts.min_size,
        "name_maps": sorted(facts.name_maps),
    }
