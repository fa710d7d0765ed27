"""Killed again and again at random moments, a run ends with the bits of an unbroken one."""

from __future__ import annotations

import random
import signal
import time
from typing import Any

import pytest

from finetune.jobs.folder import JobFolder
from tests.finetune.training.roles import Place, kill, log, until

# Dropout (of roles.spec), averages, accumulation, Checkpoints by the clock, and a rate that makes the second or third
# loss NaN: the run goes back to step 0 and on with 0.1, a factor that every later Checkpoint must know.
EVERYTHING: dict[str, Any] = {
    "steps": 160,
    "evaluate_every": 40,
    "summary_every": 10,
    "save_seconds": 0.2,
    "batch_size": 4,
    "on_nan": {"action": "rollback", "factor": 1e-31},
    "optimizer": {
        "name": "sgd", "learning_rate": 1e30, "warmup_steps": 20, "accumulate": 2, "ema_decay": 0.9, "clip_norm": None,
    },
}  # fmt: skip


def end_of(folder: JobFolder) -> bytes:
    return (folder.export / "head.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_kill_9_at_random_moments_changes_no_bit(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    place = Place.make(tmp_path_factory.mktemp("place"))
    unbroken, broken = (place.job(name, train=EVERYTHING) for name in ("unbroken", "broken"))
    assert place.run(unbroken, seconds=900) == (0, 0), log(unbroken, "chief")[-3000:]
    assert "back to step" in log(unbroken, "chief")

    dice, kills = random.Random(seed), 0
    evaluator = place.start("evaluator", broken)
    try:
        while kills < 5:
            chief = place.start("chief", broken)
            before = step_of(broken)
            target = before + dice.randrange(1, 40)
            deadline = time.monotonic() + 300
            while chief.poll() is None and step_of(broken) < target and time.monotonic() < deadline:
                time.sleep(dice.random() / 50)
            if chief.poll() is not None:
                assert chief.returncode == 0, log(broken, "chief")[-3000:]
                break
            kill(chief)
            kills += 1
        assert kills >= 2
        if not broken.export_path.exists():
            chief = place.start("chief", broken)
            assert chief.wait(timeout=900) == 0, log(broken, "chief")[-3000:]
        assert evaluator.wait(timeout=300) == 0, log(broken, "evaluator")[-3000:]
    finally:
        kill(evaluator)
    assert end_of(broken) == end_of(unbroken)
    assert sorted(path.name for path in broken.evaluations.iterdir()) == sorted(
        path.name for path in unbroken.evaluations.iterdir()
    )


def step_of(folder: JobFolder) -> int:
    """The newest step that the chief has told of, or 0."""
    return int((folder.read_progress() or {}).get("step") or 0)


@pytest.mark.slow
def test_sigterm_while_a_checkpoint_is_written_saves_in_time(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Checkpoints by the clock are always under way here; ten seconds are what a launcher grants."""
    place = Place.make(tmp_path_factory.mktemp("place"))
    folder = place.job("asked", train={"steps": 4000, "evaluate_every": 4000, "save_seconds": 0.001})
    chief = place.start("chief", folder)
    try:
        until(lambda: step_of(folder) > 20, chief)
        begin = time.monotonic()
        chief.send_signal(signal.SIGTERM)
        assert chief.wait(timeout=60) == 75, log(folder, "chief")[-3000:]
        assert time.monotonic() - begin < 10
    finally:
        kill(chief)
    saved = [path.name for path in folder.checkpoints.iterdir()]
    assert all(name.isdigit() for name in saved)
    assert f"interrupted at step {max(map(int, saved))};" in log(folder, "chief")
