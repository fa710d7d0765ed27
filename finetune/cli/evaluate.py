"""`finetune evaluate`: the metrics of a published version on a split of DATA."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from finetune.cli.request import absolute_data
from zoo.cli.output import (
    DebugOption,
    Format,
    FormatOption,
    ServerOption,
    StoreOption,
    TokenOption,
    chosen_server,
    print_json,
    say,
    say_next,
)


class SplitName(StrEnum):
    train = "train"
    validation = "validation"
    test = "test"
    all = "all"


def evaluate(
    reference: Annotated[str, typer.Argument(metavar="REF")],
    data: Annotated[str | None, typer.Option("--data", metavar="DATA", help="default: what it was trained on")] = None,
    split: Annotated[SplitName, typer.Option("--split")] = SplitName.test,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="data.… only")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="of the split; default: the run's")] = None,
    results: Annotated[
        Path | None, typer.Option("--results", metavar="FILE", help="keep a captioner's captions, as COCO has results")
    ] = None,
    store: StoreOption = None,
    server: ServerOption = None,
    token: TokenOption = None,
    output: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Score a version on every example of a split, each once. Data options default to those of the version's run."""
    address = chosen_server(server, store)
    given = settings or []
    if address and results is not None:
        raise typer.BadParameter("a server writes no files here; evaluate with --store", param_hint="--results")
    if address:
        from finetune.cli.request import settings_map
        from finetune.client import ZooClient

        with ZooClient(address, token=token) as client:
            result = client.evaluate(
                reference, data=data or "", split=split.value, settings=settings_map(given), seed=seed
            )
    else:
        result = _here(reference, store, data=data, split=split.value, settings=given, seed=seed, results=results)
    if results is not None:
        say(f"captions in {results}")
        say_next(f"finetune score {results} --data DATA --split {split.value}")
    if output is Format.JSON:
        print_json(result)
        return
    print(f"{result['reference']} on {result['split']}: {result['num_examples']} examples")
    for name, value in result["metrics"].items():
        print(f"  {name:20} " + (f"{value:.4f}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)))


def _here(
    reference: str,
    store: str | None,
    *,
    data: str | None,
    split: str,
    settings: list[str],
    seed: int | None,
    results: Path | None,
) -> dict[str, Any]:
    from finetune.tensorflow_start import start_tensorflow
    from zoo.catalog import open_catalog

    catalog = open_catalog(store)
    catalog.get(reference)  # an unknown one is said before TensorFlow comes up
    start_tensorflow()
    from finetune.training.evaluate import evaluate_version

    return evaluate_version(
        catalog,
        reference,
        location=absolute_data(data) if data else None,
        split=split,
        settings=settings,
        seed=seed,
        results=results,
    )
