"""A report of an evaluation: files for people, in a folder. No TensorFlow.

Takes the metrics of a split and what the head says of each example. Gives `metrics.json`, `per-class.csv`,
`confusion.csv` and `confusion.png`, `predictions.csv`, `contact-sheet.html` and `.png` (the worst and the best), as far
as the head has them. Next: somebody's eyes.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune.data.source import ExampleSource
from finetune.models.heads.head import Shown
from finetune.training.confusion_picture import write_confusion
from finetune.training.extremes import extremes, write_sheet
from finetune.training.split_data import SplitData
from zoo.atomic_file import replaced_file, storage_error


def write_report(
    folder: Path,
    *,
    title: str,
    result: Mapping[str, Any],
    split: SplitData,
    shown: Sequence[Shown] | None,
    source: ExampleSource,
) -> list[str]:
    """Writes what there is, each file atomically; the folder is made if need be.

    Args:
        title: for the contact sheet. result: what `evaluate_version` returns.
        shown: what the head says, one an example of `split`; None for a head that doesn't show predictions.
    Returns: the names of the files. Raises NoSpace, NoAccess; UnreadableImage.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(error, "make", folder) from error
    metrics = result["metrics"]
    _write(folder / "metrics.json", json.dumps(dict(result), ensure_ascii=False, indent=2) + "\n")
    written = ["metrics.json"]
    if metrics.get("per_class"):
        _write(folder / "per-class.csv", _per_class(metrics["per_class"]))
        written.append("per-class.csv")
    confusion = metrics.get("confusion")
    if confusion and confusion["matrix"] is not None:
        names = confusion["classes"]
        rows = [[name, *counts] for name, counts in zip(names, confusion["matrix"], strict=True)]
        _write(folder / "confusion.csv", _csv(["truth \\ said", *names], rows))
        write_confusion(folder / "confusion.png", confusion["matrix"], names)
        written += ["confusion.csv", "confusion.png"]
    if shown is not None:
        order = sorted(range(len(shown)), key=lambda place: shown[place].goodness)
        listed = [(split.examples[i].id, shown[i].truth, shown[i].said, f"{shown[i].goodness:.6g}") for i in order]
        _write(folder / "predictions.csv", _csv(["id", "truth", "said", "goodness"], listed))
        write_sheet(folder, extremes(split.examples, shown), split, source, title=title)
        written += ["predictions.csv", "contact-sheet.html", "contact-sheet.png"]
    return written


def _per_class(scores: Mapping[str, Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for each in scores.values() for name in each))
    rows = [[name, *(each.get(column, "") for column in columns)] for name, each in scores.items()]
    return _csv(["class", *columns], rows)


def _csv(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _write(path: Path, text: str) -> None:
    with replaced_file(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))
