"""`zoo architectures`: the networks that can be built, and who publishes weights of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from zoo.cli.output import DebugOption, Format, FormatOption, print_json, print_table, say_next

if TYPE_CHECKING:
    from zoo.architectures.facts import ArchitectureFacts


def architectures(
    sources: Annotated[bool, typer.Option("--sources", help="A line for each known source of weights.")] = False,
    format: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """List the networks that can be built."""
    from zoo.architectures import ARCHITECTURES

    known = [facts for _, facts in sorted(ARCHITECTURES.items())]
    if format is Format.JSON:
        print_json([_facts(facts) for facts in known])
        return
    if sources:
        print_table(("architecture", "door", "source", "top-1 %", "classes", "license"), _source_rows(known))
        say_next("zoo import --from-source ARCHITECTURE NAME")
        return
    columns = ("architecture", "parameters", "GFLOP", "features", "input", "top-1 %", "sources", "paper")
    rows = [
        [
            facts.name,
            facts.parameters or None,  # a module that is kept as it came may have any number of them
            round(facts.flops / 1e9, 2) or None,
            facts.feature_dim(facts.defaults) or None,
            f"{facts.input_spec.height}x{facts.input_spec.width}",
            max((source.top_1 for source in facts.sources if source.top_1 is not None), default=None),
            len(facts.sources),
            facts.paper,
        ]
        for facts in known
    ]
    print_table(columns, rows)
    say_next("zoo architectures --sources")


def _source_rows(known: list[ArchitectureFacts]) -> list[list[Any]]:
    return [
        [facts.name, source.door, source.name, source.top_1, source.classes, source.license]
        for facts in known
        for source in facts.sources
    ]


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
        "sources": [
            {
                "door": source.door,
                "name": source.name,
                "top_1": source.top_1,
                "classes": source.classes,
                "license": source.license,
                "recipe": dict(source.recipe),
            }
            for source in facts.sources
        ],
    }
