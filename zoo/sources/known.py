"""Imports an architecture's published weights from whichever of its known sources can be reached.

Takes the name of an architecture. Gives an ImportResult and what became of each source that was tried. Next:
`zoo.importer`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from zoo.architectures import architecture_facts
from zoo.catalog import Catalog
from zoo.errors import NotFound, Unavailable
from zoo.importer import ImportResult, import_checkpoint
from zoo.sources.doors import Doors
from zoo.sources.fetch import DamagedDownload, SourceUnavailable


class NoKnownSource(NotFound):
    """An architecture that nobody publishes weights of, as far as we know."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """`outcome`: `imported`, or why not."""

    door: str
    name: str
    outcome: str


def import_from_source(
    catalog: Catalog,
    *,
    architecture: str,
    name: str,
    doors: Doors,
    tell: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> tuple[ImportResult, tuple[Tried, ...]]:
    """Tries the sources in the order of the facts; the first that can be reached is imported.

    A source that is reached and then turns out not to fit is an error, not a reason to try the next one.

    Args:
        tell: is told of each try as it happens.
        options: as `import_checkpoint` takes them; what the source says of itself is used where they are silent.
    Raises:
        UnknownArchitecture, NoKnownSource; SourceUnavailable naming every try; what `import_checkpoint` raises.
    """
    facts = architecture_facts(architecture)
    if not facts.sources:
        raise NoKnownSource(f"no published weights of {architecture} are known", hint="zoo import KIND SOURCE NAME")
    tried: list[Tried] = []
    for source in facts.sources:
        tell(f"trying {source.door}: {source.name}")
        try:
            fetched = doors.open(source)
            given = {
                "license": options.get("license") or source.license,
                "input_spec": options.get("input_spec") or source.input_spec,
                "recipe": {**source.recipe, **(options.get("recipe") or {})},
                "source_url": options.get("source_url") or fetched.url,
            }
            result = import_checkpoint(
                catalog,
                kind=fetched.kind,
                source=fetched.source,
                name=name,
                architecture=architecture,
                **options | given,
            )
        except (SourceUnavailable, DamagedDownload, Unavailable) as error:
            tried.append(Tried(door=source.door, name=source.name, outcome=error.message))
            tell(f"  {error.message}")
            continue
        return result, (*tried, Tried(door=source.door, name=source.name, outcome="imported"))
    listed = "; ".join(f"{each.door} {each.name}: {each.outcome}" for each in tried)
    raise SourceUnavailable(
        f"none of the {len(tried)} known sources of {architecture} can be had: {listed}",
        hint="download one by hand and give the file: zoo import KIND FILE NAME",
    )
