"""`zoo lineage`: where a version came from and what came from it, as a tree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from zoo.cli.look import ReferenceArgument, fates_text
from zoo.cli.output import DebugOption, Format, FormatOption, StoreOption, print_json, printable, say, say_next
from zoo.cli.place import store_catalog

if TYPE_CHECKING:
    from zoo.catalog import ModelVersion


def lineage(
    reference: ReferenceArgument,
    depth: Annotated[int, typer.Option("--depth", min=1, max=100, help="Generations, up and down.")] = 100,
    store: StoreOption = None,
    format: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Show where a version came from and what came from it."""
    from zoo.lineage import family, lines
    from zoo.search.index import CatalogIndex

    catalog = store_catalog(store, "lineage")
    with CatalogIndex.open(catalog) as index:
        tree = family(catalog, index, reference, depth=depth)
    if format is Format.JSON:
        print_json(tree.to_json())
    else:
        for before, version in lines(tree):
            shown = f"{tree.missing}  cannot be read" if version is None else _line(version)
            here = "  (this)" if version is tree.version else ""
            print(printable(f"{before}{shown}{here}"), flush=True)
    for cut in tree.cuts:
        say(f"cut at {cut.reference}: {cut.reason}")
    if format is Format.TEXT and tree.descendants:
        say_next(f"zoo show {tree.descendants[0].version.reference}")


def _line(version: ModelVersion) -> str:
    from zoo.describe import describe

    facts = describe(version)["lineage"]
    source = facts["source"]
    made_by = f"job {facts['job']}" if facts["job"] else f"import of {source['location']}" if source else ""
    said = (version.reference, version.manifest.architecture.name, made_by, fates_text(facts["tensors"]))
    return "  ".join(part for part in said if part)
