"""Whole runs in real processes: to the end, killed at any moment, asked to stop."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune.jobs.folder import JobFolder, read_json
from finetune.training.evaluate import evaluate_version
from finetune.training.evaluate_job import NoCheckpoints, evaluate_job
from finetune.training.publish import finish
from finetune.training.run import run_chief
from tests.finetune.training.roles import Place, kill, log, until


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place.make(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def unbroken(place: Place) -> JobFolder:
    folder = place.job("unbroken")
    assert place.run(folder) == (0, 0), log(folder, "chief")[-3000:] + log(folder, "evaluator")[-3000:]
    return folder


def head_bytes(folder: JobFolder) -> bytes:
    return (folder.export / "head.safetensors").read_bytes()


def evaluations(folder: JobFolder) -> dict[int, bytes]:
    return {int(path.stem): path.read_bytes() for path in folder.evaluations.iterdir()}


def test_a_run_leaves_everything_that_is_promised(place: Place, unbroken: JobFolder) -> None:
    assert sorted(evaluations(unbroken)) == [100, 200, 300, 400]
    progress = unbroken.read_progress()
    assert progress is not None
    assert (progress["phase"], progress["step"], progress["steps"]) == ("done", 400, 400)
    assert unbroken.read_error() is None
    events = EventAccumulator(str(unbroken.events_validation), size_guidance={"tensors": 0})
    events.Reload()
    assert [event.step for event in events.Tensors("loss")] == [100, 200, 300, 400]
    losses = [(read_json(unbroken.evaluation_path(step)) or {})["metrics"]["loss"] for step in (100, 400)]
    assert losses[1] < losses[0]
    metrics = set((read_json(unbroken.evaluation_path(400)) or {})["metrics"])
    assert {"loss", "perplexity", "bleu_1", "bleu_4", "rouge_l", "cider"} <= metrics


def test_what_is_published_evaluates_as_it_did_in_training(
    place: Place, unbroken: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELZOO_CACHE", str(place.root / "cache"))
    result = finish(place.catalog, unbroken)
    evaluated = evaluate_version(place.catalog, result["reference"], split="validation")
    recorded = result["metrics"]["validation"]
    assert evaluated["num_examples"] == result["num_examples"]["validation"]
    assert set(evaluated["metrics"]) == set(recorded)
    for name, value in evaluated["metrics"].items():
        assert value == pytest.approx(recorded[name], rel=1e-4), name
    whole = evaluate_version(place.catalog, "child", split="all", settings=["data.max_bad_share=0"])
    assert whole["num_examples"] == 40


@pytest.mark.timeout(900)  # three chiefs, one after the other
def test_killed_and_interrupted_at_any_moment_it_ends_with_the_same_bits(place: Place, unbroken: JobFolder) -> None:
    # An evaluator by hand, there before the job is: it waits, and outlives its chiefs.
    evaluator = place.start_following(place.root / "jobs" / "broken")
    try:
        _broken_run(place, place.job("broken"), unbroken, evaluator)
    finally:
        kill(*place.started)


def _broken_run(place: Place, folder: JobFolder, unbroken: JobFolder, evaluator: subprocess.Popen[bytes]) -> None:
    # kill -9 while training, between the first Checkpoint and the second. No Evaluator is needed to get there.
    chief = place.start("chief", folder)
    until(lambda: (folder.checkpoints / "100").exists(), chief)
    kill(chief)

    # SIGTERM while training on: a Checkpoint is saved, in time.
    chief = place.start("chief", folder)
    until(lambda: _step_of(folder, chief) > 101, chief)
    begin = time.monotonic()
    chief.send_signal(signal.SIGTERM)
    assert chief.wait(timeout=30) == 75, log(folder, "chief")[-3000:]
    assert time.monotonic() - begin < 10
    assert "resumed at step 100" in log(folder, "chief")
    saved = max(int(path.name) for path in folder.checkpoints.iterdir() if path.name.isdigit())
    assert saved > 100

    chief = place.start("chief", folder)
    code, talk = evaluator.wait(timeout=300), (place.root / "follow.err").read_text()
    assert code == 0, talk
    assert chief.wait(timeout=60) == 0, log(folder, "chief")[-3000:]
    lines = [json.loads(line) for line in (place.root / "follow.out").read_text().splitlines()]
    assert [line["step"] for line in lines] == [100, 200, 300, 400]
    assert str(folder.root) in talk
    assert f"resumed at step {saved}" in log(folder, "chief")
    assert not list(folder.checkpoints.glob(".*")), "half-saved Checkpoints are left"
    assert head_bytes(folder) == head_bytes(unbroken)
    assert evaluations(folder) == evaluations(unbroken)
    assert read_json(folder.best_path) == read_json(unbroken.best_path)


def test_a_jobs_checkpoints_are_evaluated_once_more_as_the_run_did_it(
    place: Place, unbroken: JobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELZOO_CACHE", str(place.root / "cache"))
    before = sorted(path for path in unbroken.root.rglob("*") if path.is_file())
    found = evaluate_job(unbroken, place.catalog)
    there = sorted(int(path.name) for path in unbroken.checkpoints.iterdir() if path.name.isdigit())
    assert [entry.step for entry in found.checkpoints] == there
    for entry in found.checkpoints:
        assert entry.recorded is not None
        for name, value in entry.recorded.items():
            if isinstance(value, float):
                assert entry.metrics[name] == pytest.approx(value, rel=1e-4), name
    best = read_json(unbroken.best_path)
    assert best is not None
    assert [entry.step for entry in found.checkpoints if entry.best] == [best["step"]]
    assert (unbroken.root / best["checkpoint"] / "checkpoint.json").exists()
    assert found.best is not None
    assert found.best.step == best["step"]
    assert found.best.metric == pytest.approx(best["value"], rel=1e-4)

    tested = evaluate_job(unbroken, place.catalog, split="test", steps=there[-1:])
    assert [(entry.step, entry.recorded) for entry in tested.checkpoints] == [(there[-1], None)]
    assert (tested.split, tested.num_examples) == ("test", 2)
    assert tested.checkpoints[0].metrics["loss"] != found.checkpoints[-1].metrics["loss"]
    with pytest.raises(NoCheckpoints, match=f"no Checkpoint of step 7; there are: {there[0]}"):
        evaluate_job(unbroken, place.catalog, steps=[7])
    assert sorted(path for path in unbroken.root.rglob("*") if path.is_file()) == before, "it writes nothing"


def _step_of(folder: JobFolder, chief: subprocess.Popen[bytes]) -> int:
    """Of this chief: what a former one left behind may be ahead of it."""
    progress = folder.read_progress() or {}
    return int(progress["step"] or 0) if progress.get("pid") == chief.pid else 0


def test_an_error_is_left_for_others_to_read(
    tmp_path: Path, place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELZOO_CACHE", str(place.root / "cache"))
    data = {"location": f"flickr:{tmp_path / 'nowhere'}", "split": "hash:0.5,0.5"}
    folder = place.job("wrong", data=data, train={"deterministic": False})  # that one is for a whole process
    assert run_chief(folder, folder.request().store_url) == 1
    error = folder.read_error()
    assert error is not None
    assert error["code"] in ("NOT_FOUND", "INVALID_ARGUMENT")
    assert "nowhere" in error["message"]
    said = capsys.readouterr().err
    assert error["message"] in said
    assert "Traceback" not in said
