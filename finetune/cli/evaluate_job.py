"""`finetune evaluate --job JOB`: a job's Checkpoints once more, or as they come (`--follow`)."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from finetune.cli.jobs import job_id_of
from zoo.cli.output import Format, print_json, print_table, say
from zoo.errors import NotFound, Unavailable, ZooError

if TYPE_CHECKING:
    from finetune.jobs.folder import JobFolder
    from finetune.training.evaluate_job import CheckpointEvaluation
    from finetune.training.evaluations import EvalResult

_POLL = 0.5  # seconds
_COLUMNS = 6  # metrics in the table; JSON has all of them


class FolderNotHere(NotFound):
    """The job is known, but its folder is on another machine."""


class NothingToFollow(Unavailable):
    """No job appeared where an evaluator waited for one."""


def evaluate_job(job: str, store: str | None, *, split: str, steps: list[int], gpu: bool, output: Format) -> None:
    """Prints every Checkpoint's metrics: a table, or one JSON object."""
    if not gpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    folder = _folder(job, store)
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

    folder = _waited_for(job, store, timeout)
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


def _folder(job: str, store: str | None) -> JobFolder:
    """Raises UnknownJob, FolderNotHere, NotAJobFolder."""
    from finetune.jobs.folder import JobFolder, NotAJobFolder
    from finetune.jobs.supervisor import job_folder_path
    from zoo.catalog import open_catalog

    path = Path(job)
    if path.name != job or (path / "spec.json").exists():
        folder = JobFolder(path.resolve())
        if not folder.spec_path.exists():
            raise NotAJobFolder(f"{folder.root} is no job folder: it has no spec.json", hint="finetune list")
        return folder
    job_id = job_id_of(job, store)
    folder = JobFolder(job_folder_path(open_catalog(store), job_id))
    if not folder.spec_path.exists():
        raise FolderNotHere(
            f"job {job_id} has no folder at {folder.root}: it hasn't begun, or another machine runs it",
            hint=f"finetune get {job_id}",
        )
    return folder


def _waited_for(job: str, store: str | None, timeout: float) -> JobFolder:
    """As `_folder`, for a job that may not have begun yet. Raises NothingToFollow naming where it watched."""
    from finetune.jobs.folder import NotAJobFolder
    from finetune.jobs.job import UnknownJob

    deadline, told = time.monotonic() + timeout, False
    while True:
        try:
            return _folder(job, store)
        except (UnknownJob, FolderNotHere, NotAJobFolder) as error:
            _require_time(job, store, error, deadline, timeout)
            if not told:
                say(f"waiting for it: {error.message}")
            told = True
        time.sleep(_POLL)


def _require_time(job: str, store: str | None, error: ZooError, deadline: float, timeout: float) -> None:
    if time.monotonic() <= deadline:
        return
    from zoo.store import default_store_url

    path = Path(job)
    where = str(path.resolve()) if path.name != job else f"{store or default_store_url()}/jobs"
    raise NothingToFollow(f"waited {timeout:.0f} s for job {job!r} in {where}: {error.message}", hint="finetune list")


def _line(result: CheckpointEvaluation) -> str:
    numbers = {name: value for name, value in result.metrics.items() if isinstance(value, int | float)}
    return f"step {result.step}: " + ", ".join(f"{name} {value:.4f}" for name, value in numbers.items())


def _shown(first: str, metrics: list[dict[str, Any]]) -> list[str]:
    names = dict.fromkeys([first, "loss", *(name for entry in metrics for name in entry)])
    numbers = [name for name in names if any(isinstance(entry.get(name), int | float) for entry in metrics)]
    return numbers[:_COLUMNS]


def _rounded(value: Any) -> float | None:
    return round(float(value), 4) if isinstance(value, int | float) else None
