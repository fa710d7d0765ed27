"""Compares an export with its source: opened in a fresh process, asked the same.

Takes a folder and the runs of its exporter. Gives differences, or an error when one is too large. Next:
`finetune.export.export`, which writes them beside the export.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.export import reopen
from finetune.export.exporter import Run
from zoo.errors import Internal

_TIMEOUT = 1800  # seconds: a very large network on a very slow machine


class ExportUnreadable(Internal):
    """The fresh process couldn't open or call what was written."""


class ExportDiffers(Internal):
    """The export answers something else than its source."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of one output. `relative` is `absolute` divided by the source's largest value; None where they are strings.

    `equal` counts equal entries of `entries` (for strings), so that captions can be said to be the same words.
    """

    signature: str
    output: str
    shape: tuple[int, ...]
    entries: int
    equal: int
    absolute: float | None
    relative: float | None
    largest: float | None
    tolerance: float | None

    @property
    def small(self) -> bool:
        if self.relative is None or self.tolerance is None:
            return self.equal == self.entries
        return self.relative <= self.tolerance  # False for NaN


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """`process`: the runtime of the fresh process, its versions and seconds to open."""

    images: int
    differences: tuple[Difference, ...]
    process: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {
            "images": self.images,
            "process": dict(self.process),
            "outputs": [asdict(difference) for difference in self.differences],
        }

    def worst(self, measure: str) -> float | None:
        """The largest `absolute` or `relative` difference of all outputs that are numbers."""
        return max((v for d in self.differences if (v := getattr(d, measure)) is not None), default=None)


def compare(kind: str, folder: Path, runs: Sequence[Run]) -> Comparison:
    """Raises ExportUnreadable, and ExportDiffers naming every output that is too far off."""
    with tempfile.TemporaryDirectory() as name:
        outputs, answer = _reopened(kind, folder, runs, Path(name))
    if answer["own_modules"]:
        raise ExportUnreadable(f"the {kind} export was opened with the zoo's own code: {answer['own_modules']}")
    differences = tuple(
        _difference(run, output, expected, _found(outputs, number, output))
        for number, run in enumerate(runs)
        for output, expected in run.expected.items()
    )
    bad = [difference for difference in differences if not difference.small]
    if bad:
        raise ExportDiffers(
            f"the {kind} export answers something else than its source: {'; '.join(_said(d) for d in bad)}",
            hint="it was removed; nothing can be done with it",
            kind=kind,
        )
    process = {key: answer[key] for key in ("tools", "seconds_to_open")}
    return Comparison(images=max(_images(run) for run in runs), differences=differences, process=process)


def _reopened(kind: str, folder: Path, runs: Sequence[Run], work: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    _write_request(kind, runs, work)
    command = [sys.executable, "-P", str(Path(reopen.__file__)), str(folder), str(work)]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise ExportUnreadable(f"a fresh process didn't read the {kind} export in {_TIMEOUT} s") from None
    if done.returncode:
        last = "\n".join(done.stderr.strip().splitlines()[-8:])
        raise ExportUnreadable(f"a fresh process couldn't read the {kind} export (exit {done.returncode}):\n{last}")
    with np.load(work / "outputs.npz", allow_pickle=False) as stored:
        outputs = {key: stored[key] for key in stored.files}
    return outputs, json.loads((work / "answer.json").read_text(encoding="utf-8"))


def _write_request(kind: str, runs: Sequence[Run], work: Path) -> None:
    arrays: dict[str, np.ndarray] = {}
    described = []
    for number, run in enumerate(runs):
        plain, encoded = [], {}
        for name, value in run.inputs.items():
            if isinstance(value, np.ndarray):
                arrays[f"{number}/{name}"] = value
                plain.append(name)
            else:
                encoded[name] = len(value)
                for place, data in enumerate(value):
                    arrays[f"{number}/{name}/{place}"] = np.frombuffer(data, np.uint8)
        described.append({"signature": run.signature, "arrays": plain, "encoded": encoded})
    np.savez(work / "inputs.npz", **arrays)  # type: ignore[arg-type]  # its stub takes the names for options
    (work / "request.json").write_text(json.dumps({"kind": kind, "runs": described}), encoding="utf-8")


def _found(outputs: Mapping[str, np.ndarray], number: int, output: str) -> np.ndarray:
    """An output by its name, or the only one where the format has no names (hub's `__call__`)."""
    for key in (f"{number}/{output}", f"{number}/"):
        if key in outputs:
            return outputs[key]
    names = ", ".join(key.partition("/")[2] for key in outputs if key.startswith(f"{number}/"))
    raise ExportUnreadable(f"the export has no output {output!r}; it has {names}")


def _difference(run: Run, output: str, expected: np.ndarray, found: np.ndarray) -> Difference:
    if expected.shape != found.shape:
        raise ExportDiffers(
            f"output {output!r} of {run.signature} has the shape {list(found.shape)}, the source {list(expected.shape)}"
        )
    equal = int(np.sum(expected == found))
    absolute = relative = largest = tolerance = None
    if expected.dtype.kind == "f":
        finite = np.isfinite(expected)
        if not np.array_equal(expected[~finite], found[~finite]):
            absolute = relative = float("nan")
        else:
            absolute = float(np.abs(expected[finite] - found[finite]).max(initial=0))
            largest = float(np.abs(expected[finite]).max(initial=0))
            relative = absolute / largest if largest else absolute
        tolerance = run.tolerance
    return Difference(
        signature=run.signature,
        output=output,
        shape=expected.shape,
        entries=expected.size,
        equal=equal,
        absolute=absolute,
        relative=relative,
        largest=largest,
        tolerance=tolerance,
    )


def _said(difference: Difference) -> str:
    where = f"{difference.output} of {difference.signature}"
    if difference.relative is None or difference.absolute is None:
        return f"{where}: {difference.entries - difference.equal} of {difference.entries} differ"
    return (
        f"{where} is off by {difference.absolute:.3g} ({difference.relative:.3g} of its largest value, "
        f"allowed {difference.tolerance:.3g})"
    )


def _images(run: Run) -> int:
    return max(len(value) for value in run.inputs.values())
