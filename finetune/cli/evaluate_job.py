"""`finetune evaluate --job JOB`: a job's Checkpoints once more, or as they come (`--follow`)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import typer

from finetune.cli.job_folder import folder_of, waited_for
from zoo.cli.output import Format, print_json, print_table, say

if TYPE_CHECKING:
    from finetune.training.evaluate_job import CheckpointEvaluation
    from finetune.training.evaluations import EvalResult

_COLUMNS = 6  # metrics in the table; JSON has all of them


def evaluate_job(job: str, store: str | None, *, split: str, steps: list[int], gpu: bool, output: Format) -> None:
    """Prints every Checkpoint's metrics: a table, or one JSON object."""
    if not gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    folder = folder_of(job, store)
    request = folder.request()
    from finetune.tensorflow_start import start_tensorflow
    from zoo.catalog import open_catalog

    catalog = open_catalog(store or request.store_url)
    start_tensorflow()
    from finetune.training.evaluate_job import evaluate_job as evaluate

    found = evaluate(folder, catalog, split=split, steps=steps, on_result=lambda result: say(_line(result)))
    if output is Format.JSON:
        print_json(found.to_json())
        return
    names = _shown(found.metric, [dict(entry.metrics) for entry in found.checkpoints])
    recorded = f"recorded {found.metric}"
    rows = [
        [
            entry.step,
            *(_rounded(entry.metrics.get(name)) for name in names),
            *([_rounded((entry.recorded or {}).get(found.metric))] if split == "validation" else []),
            "best of the run" if entry.best else None,
        ]
        for entry in found.checkpoints
    ]
    print_table(["step", *names, *([recorded] if split == "validation" else []), ""], rows)
    gone = f"; {len(found.gone)} were rotated away meanwhile" if found.gone else ""
    print(f"{found.split}: {found.num_examples} examples, {len(found.checkpoints)} Checkpoints{gone}")


def follow_job(job: str, store: str | None, *, timeout: float, gpu: bool, output: Format) -> None:
    """The evaluator of a job, in this process; ends with its code: 0 the final step is evaluated, 1, 75 (SIGTERM)."""
    from finetune.jobs.worker import RoleLock

    folder = waited_for(job, store, timeout)
    say(f"following {folder.root}")
    store_url = store or folder.request().store_url
    with RoleLock(folder.lock_path("evaluator"), grace=0, by_hand=True):
        from finetune.tensorflow_start import start_tensorflow
        from finetune.training.run import hide_accelerators, run_evaluator

        if not gpu:
            hide_accelerators()
        start_tensorflow()

        def show(result: EvalResult) -> None:
            if output is Format.JSON:
                print_json({"step": result.step, "num_examples": result.num_examples, "metrics": dict(result.metrics)})

        code = run_evaluator(folder, store_url, timeout=timeout, on_cpu=not gpu, on_result=show)
    raise typer.Exit(code)


def _line(result: CheckpointEvaluation) -> str:
    numbers = {name: value for name, value in result.metrics.items() if isinstance(value, int | float)}
    return f"step {result.step}: " + ", ".join(f"{name} {value:.4f}" for name, value in numbers.items())


def _shown(first: str, metrics: list[dict[str, Any]]) -> list[str]:
    names = dict.fromkeys([first, "loss", *(name for entry in metrics for name in entry)])
    numbers = [name for name in names if any(isinstance(entry.get(name), int | float) for entry in metrics)]
    return numbers[:_COLUMNS]


def _rounded(value: Any) -> float | None:
    return round(float(value), 4) if isinstance(value, int | float) else None
