"""The main job through the command line, in real processes: train, publish, evaluate, caption, interrupt, resume."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import tiny_backbone_version
from zoo.catalog import open_catalog

BIN = Path(sys.executable).parent
DATA = "scenes:count=60,size=32"
QUICK = ["--set", "train.steps=40", "--set", "train.evaluate_every=20", "--set", "train.batch_size=16"]
SMALL = ["--set", "head.arguments.units=16", "--set", "head.arguments.embedding=16"]


@dataclass(frozen=True)
class Home:
    """A user's own store, cache and settings."""

    root: Path

    @property
    def store(self) -> Path:
        return self.root / "store"

    def environment(self) -> dict[str, str]:
        own = {
            "MODELZOO_STORE": self.store.as_uri(),
            "MODELZOO_CACHE": str(self.root / "cache"),
            "MODELZOO_HOME": str(self.root / "home"),
        }
        return {name: value for name, value in os.environ.items() if not name.startswith("MODELZOO_")} | own

    def command(self, tool: str, arguments: Sequence[str]) -> list[str]:
        return [str(BIN / tool), *arguments, "--format", "json"]

    def call(self, tool: str, *arguments: str, code: int = 0) -> Any:
        """The JSON lines of a command; of its error, when another code than 0 is expected."""
        done = subprocess.run(
            self.command(tool, arguments), capture_output=True, text=True, check=False, env=self.environment()
        )
        assert done.returncode == code, done.stderr
        if code:
            return json.loads(done.stderr.splitlines()[-1])["error"]
        return [json.loads(line) for line in done.stdout.splitlines()]

    def run(self, name: str, *more: str, code: int = 0) -> Any:
        found = self.call("finetune", *self.run_arguments(name), *more, code=code)
        return found if code else found[-1]

    @staticmethod
    def run_arguments(name: str) -> list[str]:
        return ["run", "--backbone", "tiny", "--head", "captioner", "--data", DATA, "--name", name, *QUICK, *SMALL]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("user"))
    tiny_backbone_version(open_catalog(home.store.as_uri()))
    return home


@pytest.fixture(scope="module")
def first(home: Home) -> dict[str, Any]:
    """The result of one whole run."""
    return home.run("captions")


def test_a_run_ends_with_what_was_promised(home: Home, first: dict[str, Any]) -> None:
    assert first["reference"] == "captions@1"
    assert first["steps"] == 40
    assert {"job", "digest", "seconds", "restore_report", "bytes_published"} <= first.keys()
    assert {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider", "perplexity", "loss"} <= first["metrics"][
        "validation"
    ].keys()


def test_the_child_adds_its_head_and_some_json(home: Home, first: dict[str, Any]) -> None:
    [child], [parent] = home.call("zoo", "show", "captions"), home.call("zoo", "show", "tiny")
    components = {c["name"]: c for c in child["components"]}
    assert components["backbone"] == next(c for c in parent["components"] if c["name"] == "backbone")
    head = components["head"]["bytes"]
    assets = sum(asset["bytes"] for asset in child["assets"])
    assert first["bytes_published"] == head + assets
    assert child["lineage"]["parent"] == "tiny@1"
    assert child["lineage"]["job"] == first["job"]
    counts = child["lineage"]["tensors"]
    assert counts["frozen"] == components["backbone"]["num_tensors"]
    assert counts["trained"] + counts["fresh"] == components["head"]["num_tensors"]


def test_evaluate_of_the_job_has_a_line_for_each_checkpoint(home: Home, first: dict[str, Any]) -> None:
    [found] = home.call("finetune", "evaluate", "--job", "captions")
    assert (found["job"], found["split"], found["gone"]) == (first["job"], "validation", [])
    assert [entry["step"] for entry in found["checkpoints"]] == [20, 40]
    [best] = [entry for entry in found["checkpoints"] if entry["best"]]
    named = found["best"]["metric"]
    assert found["best"] == {"step": best["step"], "metric": named, "value": best["metrics"][named]}
    assert best["recorded"] == pytest.approx(first["metrics"]["validation"], abs=1e-5)
    error = home.call("finetune", "evaluate", "--job", "nobody", "--follow", "--timeout", "0", code=1)
    assert f"{home.store.as_uri()}/jobs" in error["message"]


def test_evaluate_repeats_the_runs_own_metrics(home: Home, first: dict[str, Any]) -> None:
    [found] = home.call("finetune", "evaluate", "captions", "--split", "validation")
    assert found["reference"] == "captions@1"
    assert found["num_examples"] == first["num_examples"]["validation"]
    for name, value in first["metrics"]["validation"].items():
        if isinstance(value, float):
            assert found["metrics"][name] == pytest.approx(value, abs=1e-5), name


def test_a_caption_a_line_for_every_image(home: Home, first: dict[str, Any], tmp_path: Path) -> None:
    from finetune.data.sources import open_source

    source = open_source(DATA)
    paths = []
    for index in (0, 1):
        paths.append(tmp_path / f"{index}.png")
        paths[-1].write_bytes(source.read(index))
    lines = home.call("finetune", "caption", "captions", *map(str, paths), "--beam-size", "2")
    assert [line["image"] for line in lines] == [str(path) for path in paths]
    for line in lines:
        assert line["milliseconds"] > 0
        probabilities = [caption["log_prob"] for caption in line["captions"]]
        assert 1 <= len(probabilities) <= 2
        assert all(value < 0 for value in probabilities)


def test_the_same_run_again_is_not_run_again(home: Home, first: dict[str, Any]) -> None:
    assert home.run("captions") == first
    again = home.run("captions", "--again")
    assert again["reference"] == "captions@2"
    assert again["job"] != first["job"]


def test_a_version_goes_on_from_another(home: Home, first: dict[str, Any]) -> None:
    more = home.run("further", "--from", "captions@1")
    assert more["reference"] == "further@1"
    before, after = (result["metrics"]["validation"]["loss"] for result in (first, more))
    assert after < before


def test_ctrl_c_saves_and_the_same_command_goes_on(home: Home) -> None:
    more = ["--set", "train.steps=20000", "--set", "train.evaluate_every=500"]
    command = home.command("finetune", [*home.run_arguments("long"), *more])
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=home.environment()
    )
    try:
        job = _wait_for_step(home, "long", 20)
        process.send_signal(signal.SIGINT)
        _, talk = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, talk
    assert "the same command goes on" in talk
    stopped = home.call("finetune", "get", job["id"])[0]
    assert stopped["state"] == "QUEUED"
    assert home.call("zoo", "show", "long", code=1)["reason"] == "UnknownModel"

    other = home.run("long", *more, "--set", "train.seed=5", code=1)
    assert other["reason"] == "UnfinishedWithAnotherSpec"
    assert "train.seed: 1 → 5" in other["message"]

    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=home.environment()
    )
    try:
        resumed = _wait_for_step(home, "long", int(stopped["progress"]["step"]) + 1)
        assert resumed["id"] == job["id"]
        refused = home.run("long", *more, code=1)
        assert refused["reason"] == "JobHeld"
        home.call("finetune", "cancel", job["id"])
        process.communicate(timeout=60)
    finally:
        process.kill()
    assert home.call("finetune", "get", job["id"])[0]["state"] == "CANCELLED"


def _wait_for_step(home: Home, name: str, step: int) -> dict[str, Any]:
    """The running job of a model once it has come to `step`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        jobs = home.call("finetune", "list", "--name", name)[0]
        if jobs and jobs[0]["state"] == "RUNNING" and (jobs[0]["progress"] or {}).get("step", 0) >= step:
            return dict(jobs[0])
        time.sleep(0.3)
    raise AssertionError(f"the job of {name} never came to step {step}")


def test_an_unknown_backbone_says_what_there_is(home: Home) -> None:
    error = home.call("finetune", *Home.run_arguments("x"), "--backbone", "tinny", code=1)
    assert error["reason"] == "UnknownModel"
    assert "tiny" in error["message"]
    assert home.call("finetune", "list", "--name", "x") == [[]]


@pytest.mark.slow
def test_eight_photos_are_memorised(shared: Path, home: Home, tmp_path: Path) -> None:
    """Real weights, real photos, one caption each: a captioner that can't say these words back can't learn any."""
    weights = shared / "checkpoints/efficientnet_lite0/efficientnet_lite0.safetensors"
    home.call("zoo", "import", "safetensors", str(weights), "efficientnet_lite0")
    photos = tmp_path / "photos"
    (photos / "images").mkdir(parents=True)
    lines, truth = ["image,caption"], {}
    for line in (shared / "data/flickr1k/captions.txt").read_text().splitlines()[1:]:
        name, caption = line.split(",", 1)
        if name not in truth and '"' not in caption:
            truth[name] = " ".join(word for word in caption.lower().split() if word.isalpha())
            lines.append(f"{name},{truth[name]}")
            shutil.copy(shared / "data/flickr1k/images" / name, photos / "images")
        if len(truth) == 9:
            break
    (photos / "captions.txt").write_text("\n".join(lines) + "\n")
    settings = [
        "data.split=ordered:8,1", "train.steps=300", "train.batch_size=8", "train.evaluate_every=300",
        "train.optimizer.learning_rate=0.005", "train.optimizer.ema_decay=0", "head.arguments.min_count=1",
    ]  # fmt: skip
    arguments = ["run", "--backbone", "efficientnet_lite0", "--head", "captioner", "--name", "memory"]
    for setting in settings:
        arguments += ["--set", setting]
    home.call("finetune", *arguments, "--data", f"flickr:{photos}")
    learnt = sorted(truth)[:8]  # the ninth is the validation split
    said = home.call("finetune", "caption", "memory", *(str(photos / "images" / name) for name in learnt))
    assert {Path(line["image"]).name: line["captions"][0]["text"] for line in said} == {n: truth[n] for n in learnt}
