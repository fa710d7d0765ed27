"""Runs of several stages in real processes: killed in each of them, and what is published of which."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from finetune.jobs.folder import JobFolder, read_json, write_json
from finetune.training.evaluations import EvalResult
from finetune.training.publish import finish
from tests.finetune.training.roles import Place, kill, log, until
from zoo.tensors import read_safetensors

STAGES = [
    {"train_from": "none", "steps": 10, "learning_rate": 0.01},
    {"train_from": "block_15", "steps": 10, "learning_rate": 0.003, "warmup_steps": 3},
    {"train_from": "block_14", "steps": 5, "learning_rate": 0.001},
]
TRAIN: dict[str, Any] = {
    "steps": 25,
    "stages": STAGES,
    "evaluate_every": 5,
    "batch_size": 8,
    "optimizer": {"ema_decay": 0.9, "layer_decay": 0.9, "l2_sp": {}},
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def unbroken(place: Place) -> JobFolder:
    folder = place.job("unbroken", train=TRAIN)
    assert place.run(folder, seconds=1200) == (0, 0), log(folder, "chief")[-3000:] + log(folder, "evaluator")[-3000:]
    return folder


def exported(folder: JobFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.export.glob("*.safetensors")}


def test_every_checkpoint_is_evaluated_with_the_network_that_it_is_of(unbroken: JobFolder) -> None:
    for number, (first, last) in enumerate([(1, 10), (11, 20), (21, 25)], start=1):
        assert f"stage {number} of 3, steps {first} to {last}" in log(unbroken, "chief")
    losses = [(read_json(unbroken.evaluation_path(step)) or {})["metrics"]["loss"] for step in (5, 10, 15, 20, 25)]
    assert len(set(losses)) == 5
    assert all(np.isfinite(losses))


@pytest.mark.parametrize("step", [10, 15])
def test_killed_in_any_stage_or_between_two_it_ends_with_the_same_bits(
    place: Place, unbroken: JobFolder, step: int
) -> None:
    """Killed as soon as the Checkpoint of `step` is there: 10 is a boundary."""
    folder = place.job(f"broken-{step}", train=TRAIN)
    chief = place.start("chief", folder)
    until(lambda: (folder.checkpoints / str(step)).exists(), chief, seconds=900)
    kill(chief)
    assert max(int(path.name) for path in folder.checkpoints.iterdir() if path.name.isdecimal()) == step
    assert place.run(folder, seconds=1200) == (0, 0), log(folder, "chief")[-3000:]
    assert f"resumed at step {step}" in log(folder, "chief")
    assert exported(folder) == exported(unbroken)
    manifests = [(one.export / "manifest.json").read_bytes() for one in (folder, unbroken)]
    assert len(manifests[0]) > 1000


_RESUMED = """
import json, shutil, sys
from pathlib import Path
from finetune.jobs.folder import JobFolder
from finetune.training.run import run_chief

root, found = Path(sys.argv[1]), {}
for step in (None, *map(int, sys.argv[2:])):
    folder = JobFolder(root if step is None else root.with_name(f"from-{step}"))
    if step is not None:
        shutil.copytree(root, folder.root)
        shutil.rmtree(folder.export)
        for path in folder.checkpoints.iterdir():
            if path.name.isdecimal() and int(path.name) > step:
                shutil.rmtree(path)
    assert run_chief(folder, folder.request().store_url) == 0
    found[step] = {path.name: path.read_bytes().hex() for path in sorted(folder.export.glob("*.safetensors"))}
print(json.dumps({str(step): files == found[None] for step, files in found.items()}))
print(json.dumps(sorted(found[None])))
"""


def test_resumed_from_any_checkpoint_it_ends_with_the_same_bits(place: Place) -> None:
    """Each Checkpoint of an unbroken run, the one at the boundary and that of step 0 of a stage among them, with all
    that came after it gone: what a kill leaves. The evaluations are given, so that the chief is alone."""
    stages = [{"train_from": "none", "steps": 6}, {"train_from": "top", "steps": 6, "warmup_steps": 2}]
    train = {"steps": 12, "stages": stages, "evaluate_every": 3, "keep_checkpoints": 9, "batch_size": 8}
    optimizer = {"ema_decay": 0.9, "layer_decay": 0.7, "l2_sp": {}, "learning_rate": 0.003}
    folder = place.job("whole", train={**train, "optimizer": optimizer})
    for step in (3, 6, 9, 12):
        result = EvalResult(step=step, split="validation", num_examples=3, metrics={"loss": 1 / step})
        write_json(folder.evaluation_path(step), result.__dict__)
    environment = os.environ | {"MODELZOO_CACHE": str(place.root / "cache")}
    ran = subprocess.run(
        [sys.executable, "-c", _RESUMED, str(folder.root), "3", "6", "9"],
        capture_output=True, text=True, env=environment, timeout=1200,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    equal, files = (json.loads(line) for line in ran.stdout.splitlines()[-2:])
    assert equal == dict.fromkeys(["None", "3", "6", "9"], True)
    assert files == ["backbone.safetensors", "head.safetensors"]
    assert "resumed at step 6" in ran.stderr


def test_a_best_checkpoint_of_the_head_alone_publishes_the_head_alone(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second stage whose rate spoils everything: the best is of the first."""
    monkeypatch.setenv("MODELZOO_CACHE", str(place.root / "cache"))
    stages = [STAGES[0], {"train_from": "block_15", "steps": 5, "learning_rate": 5.0}]
    folder = place.job("head", train={**TRAIN, "steps": 15, "stages": stages})
    assert place.run(folder, seconds=1200) == (0, 0), log(folder, "chief")[-3000:]
    result = finish(place.catalog, folder)
    assert result["best_step"] <= 10
    child, parent = place.catalog.get("child"), place.catalog.get("tiny")
    assert child.manifest.component("backbone") == parent.manifest.component("backbone")
    assert not (folder.export / "backbone.safetensors").exists()
    fates = child.manifest.lineage.tensors
    assert {fate for name, fate in fates.items() if name.startswith("backbone/")} == {"frozen"}


def test_a_best_checkpoint_of_a_thawed_stage_publishes_a_backbone_of_its_own(
    place: Place, unbroken: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best is made the one of step 20, of the second stage, by what the evaluations say."""
    monkeypatch.setenv("MODELZOO_CACHE", str(place.root / "cache"))
    folder = place.job("middle", train={**TRAIN, "early_stop": {"metric": "loss"}})
    for step in (5, 10, 15, 20, 25):
        written = read_json(unbroken.evaluation_path(step)) or {}
        written["metrics"]["loss"] = 0.5 if step == 20 else 9.0
        write_json(folder.evaluation_path(step), written)
    assert place.run(folder, seconds=1200) == (0, 0), log(folder, "chief")[-3000:]
    assert finish(place.catalog, folder)["best_step"] == 20
    parent = dict(read_safetensors(place.catalog.open_component(place.catalog.get("tiny"), "backbone")))
    own = dict(read_safetensors(folder.export / "backbone.safetensors"))
    moved = {name for name in own if not np.array_equal(own[name], parent[name])}
    assert moved
    assert {name.partition("/")[0] for name in moved} == {"block_15", "top"}
