"""What an evaluator in a process of its own costs the training: the trainer on one core, the evaluator on another.

One JSON object a figure. The same spec is trained in turns without an evaluator and with one beside it, each process
pinned to its core; what counts is the time from the first Checkpoint (everything is compiled by then) to the last.
`wall_ratio` and `cpu_ratio` are without / with, medians of `--runs` pairs: 1 means that the evaluator costs nothing.
On a machine that others use too, the trainer's CPU time is the steadier one. The trainer never waits here
(train.keep_checkpoints is large); `evaluation_seconds` beside `training_seconds`, both per Checkpoint, say whether it
would have to. Features are cached: what the images are has no influence.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from finetune.jobs.folder import CHECKPOINT_RECORD, JobFolder, read_json
from finetune.recipes import resolve

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
BACKBONE = SHARED / "checkpoints/efficientnet_lite0/efficientnet_lite0.safetensors"
ROLE = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
from pathlib import Path
from finetune.jobs.folder import JobFolder
from finetune.tensorflow_start import start_tensorflow
start_tensorflow()
from finetune.training import run
folder = JobFolder(Path(sys.argv[3]))
sys.exit(getattr(run, "run_" + sys.argv[2])(folder, folder.request().store_url))
"""


def figure(name: str, **values: Any) -> None:
    print(json.dumps({"figure": name, **values}), flush=True)


def start(role: str, folder: JobFolder, core: int) -> subprocess.Popen[bytes]:
    folder.logs.mkdir(parents=True, exist_ok=True)
    with folder.log_path(role).open("ab") as log:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", ROLE, str(core), role, str(folder.root)]
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def until(done: Callable[[], bool], process: subprocess.Popen[bytes], folder: JobFolder, role: str) -> float:
    """CPU seconds of the process when it is so."""
    while not done():
        if process.poll() is not None:
            sys.exit(f"the {role} ended with {process.returncode}: {folder.log_path(role).read_text()[-2000:]}")
        time.sleep(0.01)
    times = psutil.Process(process.pid).cpu_times()
    return float(times.user + times.system)


def trained(folder: JobFolder, *, steps: int, every: int, evaluated: bool, cores: list[int]) -> dict[str, float]:
    """Seconds from the first Checkpoint to the last."""

    def record(step: int) -> Path:
        return folder.checkpoints / str(step) / CHECKPOINT_RECORD

    processes = [start("chief", folder, cores[0])]
    try:
        if evaluated:
            processes.append(start("evaluator", folder, cores[1]))
        begun = until(lambda: record(every).exists(), processes[0], folder, "chief")
        ended = until(lambda: record(steps).exists(), processes[0], folder, "chief")
        wall = [float((read_json(record(step)) or {})["seconds"]) for step in (every, steps)]
        found = {"wall": wall[1] - wall[0], "cpu": ended - begun}
        if evaluated:
            first, last = folder.evaluation_path(2 * every), folder.evaluation_path(steps)
            until(last.exists, processes[1], folder, "evaluator")
            found["evaluation"] = (last.stat().st_mtime - first.stat().st_mtime) / (steps // every - 2)
        return found
    finally:
        for process in processes:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
            process.wait()


def prepared_store(home: Path) -> str:
    """A store with the backbone; the cache is filled by the first run."""
    os.environ.setdefault("MODELZOO_CACHE", str(home / "cache"))
    url = os.environ.setdefault("MODELZOO_STORE", f"file://{home / 'store'}")
    command = [Path(sys.executable).parent / "zoo", "import", "safetensors", BACKBONE, "efficientnet_lite0"]
    options = ["--architecture", "efficientnet_lite0", "--input-spec", BACKBONE.with_name("input_spec.json")]
    subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
    return url


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--images", type=int, default=150, help="made on the spot; two thirds are trained on")
    parser.add_argument("--every", type=int, default=100, help="steps from Checkpoint to Checkpoint")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        parser.error("there is one core only: the trainer and the evaluator need one each")
    if options.steps < 3 * options.every:
        parser.error("--steps must be at least three times --every")
    figure("machine", cores=len(cores), load_average=round(os.getloadavg()[0], 1))
    with tempfile.TemporaryDirectory() as scratch:
        store = prepared_store(Path(scratch))
        settings = [
            f"train.steps={options.steps}", f"train.evaluate_every={options.every}", "train.keep_checkpoints=1000",
            f"data.split=ordered:{options.images * 2 // 3},{options.images // 3}",
        ]  # fmt: skip
        data = {"location": f"scenes:count={options.images}"}
        values = {"name": "bench", "backbone": "efficientnet_lite0", "head": {"kind": "captioner"}, "data": data}
        spec = resolve(recipe=None, values=values, settings=settings)

        def run(name: str, *, evaluated: bool) -> dict[str, float]:
            folder = JobFolder.create(Path(scratch) / "jobs" / name, job=name, spec=spec, store_url=store)
            return trained(folder, steps=options.steps, every=options.every, evaluated=evaluated, cores=cores)

        run("features", evaluated=False)
        pairs = []
        for turn in range(options.runs):
            order = (False, True) if turn % 2 == 0 else (True, False)
            found = {evaluated: run(f"{turn}-{evaluated}", evaluated=evaluated) for evaluated in order}
            pairs.append((found[False], found[True]))
    each = options.steps // options.every - 1
    figure(
        "training beside an evaluator",
        runs=options.runs,
        steps=options.steps,
        wall_ratio=round(statistics.median(without["wall"] / beside["wall"] for without, beside in pairs), 3),
        cpu_ratio=round(statistics.median(without["cpu"] / beside["cpu"] for without, beside in pairs), 3),
        wall_ratios=[round(without["wall"] / beside["wall"], 3) for without, beside in pairs],
        cpu_ratios=[round(without["cpu"] / beside["cpu"], 3) for without, beside in pairs],
        training_seconds=round(statistics.median(beside["wall"] for _, beside in pairs) / each, 2),
        evaluation_seconds=round(statistics.median(beside["evaluation"] for _, beside in pairs), 2),
        load_average=round(os.getloadavg()[0], 1),
    )


if __name__ == "__main__":
    main()
