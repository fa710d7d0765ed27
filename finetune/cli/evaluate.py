"""`finetune evaluate`: the metrics of a published version on a split of DATA, or of every Checkpoint of a job."""

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
    reference: Annotated[str | None, typer.Argument(metavar="[REF]", help="a version; or --job")] = None,
    data: Annotated[str | None, typer.Option("--data", metavar="DATA", help="default: what it was trained on")] = None,
    split: Annotated[SplitName | None, typer.Option("--split", help="default: test; with --job validation")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="data.… only")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="of the split; default: the run's")] = None,
    results: Annotated[
        Path | None, typer.Option("--results", metavar="FILE", help="keep a captioner's captions, as COCO has results")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option("--report", metavar="DIR", help="classes, confusions, predictions, contact sheet"),
    ] = None,
    job: Annotated[
        str | None, typer.Option("--job", metavar="JOB", help="a job's id, its model's name, or its folder")
    ] = None,
    step: Annotated[
        list[int] | None, typer.Option("--step", help="with --job: only this Checkpoint; repeatable")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="with --job: be its evaluator, up to the final step")
    ] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0, help="with --follow: seconds without a sign of life of the chief")
    ] = 600.0,
    gpu: Annotated[bool, typer.Option("--gpu", help="with --job: don't leave the accelerator to the training")] = False,
    store: StoreOption = None,
    server: ServerOption = None,
    token: TokenOption = None,
    output: FormatOption = Format.TEXT,
    debug: DebugOption = False,
) -> None:
    """Score a version on every example of a split, each once. Data options default to those of the version's run.

    With --job instead of REF: every Checkpoint of the job that is still there, in order, the run going on or not.
    """
    if job is not None:
        of_version = [
            flag
            for flag, value in (
                ("REF", reference), ("--data", data), ("--set", settings), ("--seed", seed), ("--server", server),
                ("--report", report),
            )
            if value is not None
        ]  # fmt: skip
        if of_version:
            raise typer.BadParameter(f"goes with a version, not with --job: {', '.join(of_version)}")
        if split is SplitName.all:
            raise typer.BadParameter("a job's splits are train, validation and test", param_hint="--split")
        from finetune.cli.evaluate_job import evaluate_job, follow_job

        if follow:
            if step or split not in (None, SplitName.validation):
                raise typer.BadParameter("--follow evaluates every Checkpoint, on the validation split")
            follow_job(job, store, timeout=timeout, gpu=gpu, output=output)
        else:
            evaluate_job(job, store, split=split or SplitName.validation, steps=step or [], gpu=gpu, output=output)
        return
    if reference is None or follow or step or gpu:
        raise typer.BadParameter("give a version REF, or --job JOB (which --follow, --step and --gpu go with)")
    split = split or SplitName.test
    address = chosen_server(server, store)
    given = settings or []
    for flag, path in (("--results", results), ("--report", report)):
        if address and path is not None:
            raise typer.BadParameter("a server writes no files here; evaluate with --store", param_hint=flag)
    if address:
        from finetune.cli.request import settings_map
        from finetune.client import ZooClient

        with ZooClient(address, token=token) as client:
            result = client.evaluate(
                reference, data=data or "", split=split.value, settings=settings_map(given), seed=seed
            )
    else:
        result = _here(
            reference, store, data=data, split=split.value, settings=given, seed=seed, results=results, report=report
        )
    if results is not None:
        say(f"captions in {results}")
        say_next(f"finetune score {results} --data DATA --split {split.value}")
    if report is not None:
        say(f"report in {report}")
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
    report: Path | None,
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
        report=report,
    )
