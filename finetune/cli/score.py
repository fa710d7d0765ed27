"""`finetune score`: the metrics of a file of captions against the references of DATA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from finetune.cli.evaluate import SplitName
from finetune.cli.request import absolute_data
from zoo.cli.output import DebugOption, Format, FormatOption, print_json, say


def score(
    results: Annotated[Path, typer.Argument(metavar="RESULTS", help='JSON: [{"image_id", "caption"}], as COCO has it')],
    data: Annotated[str, typer.Option("--data", metavar="DATA", help="kind:location of the references")],
    split: Annotated[SplitName, typer.Option("--split")] = SplitName.test,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="data.… only")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="of the split")] = 1,
    frequencies: Annotated[
        str | None,
        typer.Option(
            "--frequencies",
            metavar="FILE|train",
            help="document frequencies for CIDEr; default: those of the references that are scored",
        ),
    ] = None,
    write_frequencies: Annotated[
        Path | None, typer.Option("--write-frequencies", metavar="FILE", help="keep those that were used; .json or .gz")
    ] = None,
    also: Annotated[
        list[str] | None, typer.Option("--also", metavar="METRIC", help="meteor, spice: need Java; may be repeated")
    ] = None,
    output: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Score captions that are in a file already, whoever made them. Needs neither a model nor the images' bytes."""
    from finetune.score import score_results

    found = score_results(
        results,
        location=absolute_data(data),
        split=split.value,
        settings=settings or [],
        seed=seed,
        frequencies=frequencies,
        also=also or [],
        save_frequencies=write_frequencies,
    )
    for warning in found["warnings"]:
        say(f"warning: {warning}")
    if output is Format.JSON:
        print_json(found)
        return
    print(f"{found['results']} on {found['split']} of {found['data']}: {found['num_examples']} captions")
    for name, value in found["metrics"].items():
        print(f"  {name:20} " + (f"{value:.4f}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)))
