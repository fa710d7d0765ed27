"""Killed again and again at random moments, a run ends with the bits of an unbroken one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.finetune.training.roles import until

# Noise from a generator of its own, as dropout has; averages, micro-batches, Checkpoints by the clock; and a rate that
# rises until the loss is NaN, so that the run goes back and on with a smaller one.
TRAIN: dict[str, Any] = {
    "steps": 6000,
    "deterministic": True,
    "evaluate_every": 200,
    "summary_every": 50,
    "save_seconds": 0.1,
    "on_nan": {"action": "rollback", "factor": 0.25},
    "optimizer": {
        "name": "momentum", "momentum": 0.5, "learning_rate": 2.0, "warmup_steps": 3000, "clip_norm": None,
        "accumulate": 2, "ema_decay": 0.99,
    },
}  # fmt: skip
_CODE = """
import json, sys
from pathlib import Path
import tensorflow as tf
from tests.finetune.training.test_rollback import FragileTask, Run, spec
tf.config.experimental.enable_op_determinism()
run = Run(Path(sys.argv[1]), FragileTask(), spec(**json.loads(sys.argv[2])), evaluated=False)
try:
    run.stop.__enter__()
    assert run.start().steps == json.loads(sys.argv[2])["steps"]
finally:
    Path(sys.argv[1], "said.log").open("a").write(run.stderr.getvalue())
"""


class Process:
    """A chief's Controller in a process of its own."""

    def __init__(self, root: Path, train: dict[str, Any]) -> None:
        self.root = root
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "TF_CPP_MIN_LOG_LEVEL": "3"}
        with (root.parent / f"{root.name}.log").open("ab") as log:
            self.running = subprocess.Popen(
                [sys.executable, "-c", _CODE, str(root), json.dumps(train)], stdout=log, stderr=log, env=environment
            )

    @property
    def newest(self) -> int:
        """The newest Checkpoint's step."""
        folder = self.root / "checkpoints"
        return max((int(path.name) for path in folder.glob("[0-9]*")), default=0)

    def ended(self) -> int:
        code = self.running.wait(timeout=900)
        assert code == 0, (self.root.parent / f"{self.root.name}.log").read_text()[-3000:]
        return code

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.running.send_signal(number)
        self.running.wait(timeout=60)


def files(root: Path) -> dict[str, bytes]:
    """What is in the last Checkpoint, but for the seconds that it took."""
    folder = root / "checkpoints" / str(TRAIN["steps"])
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".json"}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [1, 2])
def test_kill_9_at_random_moments_changes_no_bit(tmp_path: Path, seed: int) -> None:
    whole = Process(tmp_path / "whole", TRAIN)
    whole.ended()
    assert "back to step" in (whole.root / "said.log").read_text()

    dice, kills, root = random.Random(seed), 0, tmp_path / "broken"
    for _ in range(5):
        chief = Process(root, TRAIN)
        target = chief.newest + dice.randrange(1, 1200)
        while chief.running.poll() is None and chief.newest < target:
            time.sleep(dice.random() / 100)
        if chief.running.poll() is not None:
            break
        chief.kill()
        kills += 1
    assert kills >= 3
    Process(root, TRAIN).ended()
    assert files(root) == files(whole.root)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sigterm_while_a_checkpoint_is_written_saves_in_time(tmp_path: Path) -> None:
    """Checkpoints by the clock are always under way here; ten seconds are what a launcher grants."""
    chief = Process(tmp_path / "asked", TRAIN | {"save_seconds": 1e-6, "steps": 10**6})
    until(lambda: chief.newest > 100, chief.running, seconds=900)
    begin = time.monotonic()
    chief.kill(signal.SIGTERM)
    assert time.monotonic() - begin < 10
    names = [path.name for path in (chief.root / "checkpoints").iterdir()]
    assert all(name.isdigit() for name in names)
    assert f"interrupted at step {chief.newest};" in (chief.root / "said.log").read_text()
