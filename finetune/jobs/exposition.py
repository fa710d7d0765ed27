"""Jobs as Prometheus sees them: the text format that its servers scrape, made of each job's progress.json.

Takes JobFolders. Gives text (version 0.0.4 of the exposition format). Next: `finetune metrics` prints or serves it.

A chief opens no port: its progress.json has everything already, twice a second, whole or not at all, and stays readable
when the process is gone. Counters begin at 0 again when a job goes on after an interruption, as scrapers expect of a
process that starts again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.jobs.folder import JobFolder
from zoo.errors import ZooError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
ALIVE = 60.0  # seconds since its progress was written: older jobs have ended, or hang, and are left out


@dataclass(frozen=True, kw_only=True)
class _Metric:
    name: str
    kind: str  # gauge | counter
    help: str
    path: tuple[str, ...]  # in progress.json


_METRICS = (
    _Metric(name="modelzoo_job_step", kind="gauge", help="Steps done.", path=("step",)),
    _Metric(name="modelzoo_job_steps", kind="gauge", help="Steps to do.", path=("steps",)),
    _Metric(name="modelzoo_job_loss", kind="gauge", help="Training loss since the last summary.", path=("loss",)),
    _Metric(
        name="modelzoo_job_examples_per_second",
        kind="gauge",
        help="Training rows a second.",
        path=("examples_per_second",),
    ),
    _Metric(name="modelzoo_job_eta_seconds", kind="gauge", help="Estimated time left.", path=("eta_seconds",)),
    _Metric(
        name="modelzoo_job_progress_timestamp_seconds",
        kind="gauge",
        help="When the job last told its progress.",
        path=("time",),
    ),
    _Metric(
        name="modelzoo_input_waited_ratio",
        kind="gauge",
        help="Share of the time that training waited for input, since the last summary.",
        path=("input", "waited_share"),
    ),
    _Metric(
        name="modelzoo_input_ready_fill_ratio",
        kind="gauge",
        help="Share of the queue's batches that were ready when one was asked for.",
        path=("input", "ready_fill"),
    ),
    _Metric(
        name="modelzoo_input_skipped_images",
        kind="gauge",
        help="Images that can't be used.",
        path=("input", "skipped"),
    ),
    *(
        _Metric(name=f"modelzoo_input_{name}_total", kind="counter", help=text, path=("input", "totals", key))
        for name, key, text in (
            ("waited_seconds", "waited_seconds", "Seconds that training waited for a batch."),
            ("batches", "batches", "Batches handed to training."),
            ("read_images", "read", "Images read."),
            ("read_bytes", "bytes", "Bytes of images read."),
            ("read_seconds", "read_seconds", "Seconds of all reader threads together."),
            ("decoded_images", "decoded", "Images decoded."),
            ("decode_seconds", "decode_seconds", "Seconds of all decoder threads together."),
        )
    ),
)


def running_jobs(roots: Iterable[Path]) -> Iterator[JobFolder]:
    """Jobs below folders of jobs that tell their progress now, by id."""
    seen: set[Path] = set()
    for root in roots:
        for path in sorted(root.glob("*/progress.json")):
            folder = path.parent.resolve()
            if folder not in seen and _age(path) < ALIVE:
                seen.add(folder)
                yield JobFolder(path.parent)


def exposition(folders: Iterable[JobFolder]) -> str:
    """Every metric that any of the jobs has; labels say job, model, and for `modelzoo_job_info` the phase."""
    jobs = [found for folder in folders if (found := _read(folder)) is not None]
    phases = [(labels | {"phase": str(progress.get("phase") or "")}, 1.0) for labels, progress in jobs]
    lines = _lines("modelzoo_job_info", "gauge", "Running jobs.", phases)
    for metric in _METRICS:
        samples = [(labels, value) for labels, progress in jobs if (value := _at(progress, metric.path)) is not None]
        lines += _lines(metric.name, metric.kind, metric.help, samples)
    return "".join(f"{line}\n" for line in lines)


def _read(folder: JobFolder) -> tuple[dict[str, str], Mapping[str, Any]] | None:
    """None for a job that has just gone, or whose files are damaged: `finetune get` tells of that."""
    try:
        request, progress = folder.request(), folder.read_progress()
    except ZooError:
        return None
    return None if progress is None else ({"job": request.job, "model": request.spec.name}, progress)


def _lines(name: str, kind: str, text: str, samples: list[tuple[dict[str, str], float]]) -> list[str]:
    if not samples:
        return []
    return [
        f"# HELP {name} {text}",
        f"# TYPE {name} {kind}",
        *(
            f"{name}{{{','.join(f'{key}={_quoted(label)}' for key, label in labels.items())}}} {value!r}"
            for labels, value in samples
        ),
    ]


def _at(progress: Mapping[str, Any], path: tuple[str, ...]) -> float | None:
    value: Any = progress
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_number else None


def _quoted(label: str) -> str:
    escaped = label.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'"{escaped}"'


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return math.inf
