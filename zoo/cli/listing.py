"""`zoo list`: the versions that match a filter, from the local index of a store or through a server."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from zoo.cli.output import (
    DebugOption,
    Format,
    FormatOption,
    ServerOption,
    StoreOption,
    TokenOption,
    chosen_server,
    print_json,
    print_table,
    say,
    say_next,
    size_text,
)
from zoo.cli.place import local_catalog

_SHOWN_PROBLEMS = 20
_PAGE = 1000  # versions asked for at once where all are wanted

FilterOption = Annotated[
    str,
    typer.Option(
        "--filter",
        metavar="EXPR",
        help="For example: architecture = inception_v3 AND metrics.test.accuracy > 0.7 AND NOT license:gpl, or "
        'name = "team/*" created >= 2026-01-31. Fields: name, namespace, version, digest, architecture, head, license, '
        "parent, job, created, archived, latest, alias, input_size, height, width, num_classes, bytes, "
        "metrics.SPLIT.METRIC. OR binds tighter than AND.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class _Shown:
    models: list[dict[str, Any]]
    next_page_token: str
    problems: list[str]


def list_(
    filter: FilterOption = "",
    order_by: Annotated[
        str, typer.Option("--order-by", metavar="FIELD [desc], …", help="Default: name, version.")
    ] = "",
    page_size: Annotated[
        int | None, typer.Option("--page-size", min=1, max=1000, help="Stop after so many. Default: list all.")
    ] = None,
    page_token: Annotated[str, typer.Option("--page-token", help="Go on after the page that said it.")] = "",
    all_versions: Annotated[
        bool,
        typer.Option("--all-versions", help="Every version, archived ones included, not only each model's newest."),
    ] = False,
    store: StoreOption = None,
    server: ServerOption = None,
    token: TokenOption = None,
    format: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """List the newest version of every model that isn't archived, or what matches a filter.

    A filter that names version, digest, alias, latest or archived looks at every version.
    """
    asked = {"filter": filter, "order_by": order_by, "all_versions": all_versions}
    address = chosen_server(server, store)
    if address:
        from finetune.client import ZooClient

        where = address
        with ZooClient(address, token=token) as client:
            shown = _pages(
                lambda size, at: _through_server(client, size, at, asked), size=page_size, page_token=page_token
            )
    else:
        from zoo.search.index import CatalogIndex

        catalog = local_catalog(store)
        where = catalog.store.url
        with CatalogIndex.open(catalog) as index:
            shown = _pages(lambda size, at: _from_index(index, size, at, asked), size=page_size, page_token=page_token)
    if format is Format.JSON:
        print_json(shown.models)
    elif shown.models:
        columns = ("model", "version", "architecture", "head", "bytes", "aliases", "parent", "created")
        print_table(columns, [_row(model) for model in shown.models])
    _say_problems(shown.problems)
    if shown.next_page_token:
        again = _again(filter, order_by, page_size, all_versions, store, server)
        say_next(f"{again} --page-token {shown.next_page_token}")
    elif format is Format.TEXT:
        _say_what_next(shown.models, where, filtered=bool(filter or page_token))


def _say_what_next(models: list[dict[str, Any]], where: str, *, filtered: bool) -> None:
    if models:
        say_next(f"zoo show {models[0]['name']}")
    elif filtered:
        say(f"nothing in the catalogue at {where} matches")
        say_next("zoo list")
    else:
        say(f"the catalogue at {where} is empty")
        say_next("zoo import KIND SOURCE NAME")


def _pages(page: Callable[[int, str], _Shown], *, size: int | None, page_token: str) -> _Shown:
    """One page of `size`; all of them where it is None."""
    if size is not None:
        return page(size, page_token)
    models: list[dict[str, Any]] = []
    problems: dict[str, None] = {}  # each once, in order: every page has those of the whole store
    while True:
        shown = page(_PAGE, page_token)
        models += shown.models
        problems |= dict.fromkeys(shown.problems)
        page_token = shown.next_page_token
        if not page_token:
            return _Shown(models=models, next_page_token="", problems=list(problems))


def _from_index(index: Any, size: int, page_token: str, asked: dict[str, Any]) -> _Shown:
    from zoo.describe import describe

    page = index.search(page_size=size, page_token=page_token, **asked)
    return _Shown(
        models=[describe(version) for version in page.versions],
        next_page_token=page.next_page_token,
        problems=[_problem_text(problem.name, problem.version, problem.message) for problem in page.problems],
    )


def _through_server(client: Any, size: int, page_token: str, asked: dict[str, Any]) -> _Shown:
    page = client.list_page(page_size=size, page_token=page_token, **asked)
    return _Shown(
        models=page.models,
        next_page_token=page.next_page_token,
        problems=[_problem_text(problem.name, problem.version, problem.message) for problem in page.problems],
    )


def _problem_text(name: str, version: int | None, message: str) -> str:
    reference = f"{name}@{version}" if version else name
    return message if not reference or reference in message else f"{reference}: {message}"


def _say_problems(problems: Iterable[str]) -> None:
    found = list(problems)
    if not found:
        return
    say(f"{len(found)} problem{'s' if len(found) > 1 else ''} in the catalogue, what they concern is left out here:")
    for text in found[:_SHOWN_PROBLEMS]:
        say(f"  {text}")
    if len(found) > _SHOWN_PROBLEMS:
        say(f"  and {len(found) - _SHOWN_PROBLEMS} more: zoo verify")


def _again(
    filter: str, order_by: str, page_size: int | None, all_versions: bool, store: str | None, server: str | None
) -> str:
    """The command that this one was."""
    words = ["zoo", "list"]
    for option, value in (
        ("--filter", filter),
        ("--order-by", order_by),
        ("--page-size", page_size),
        ("--store", store),
        ("--server", server),
    ):
        if value:
            words += [option, str(value)]
    return shlex.join([*words, *(["--all-versions"] if all_versions else [])])


def _row(model: dict[str, Any]) -> list[Any]:
    size = size_text(sum(component["bytes"] for component in model["components"]))
    head, aliases = model["head"] or "-", ", ".join([*model["aliases"], *(["(archived)"] if model["archived"] else [])])
    parent, created = model["lineage"]["parent"], model["created"][:19] + "Z"
    return [model["name"], model["version"], model["architecture"], head, size, aliases, parent, created]
