"""The main job on object storage, in real processes: a run, a machine that is lost in the midst of one, another that
goes on with it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.test_whole_path import BIN, Home
from tests.tiny import tiny_backbone_version
from zoo.catalog import open_catalog
from zoo.store import open_store
from zoo.store.object_store import ObjectStore


class BucketHome(Home):
    """A user whose store is a bucket; `root` is the machine's disk."""

    def __init__(self, root: Path, url: str) -> None:
        super().__init__(root)
        object.__setattr__(self, "url", url)

    def environment(self) -> dict[str, str]:
        return super().environment() | {"MODELZOO_STORE": self.url}  # type: ignore[attr-defined]


@pytest.fixture
def home(s3_url: str, tmp_path: Path) -> BucketHome:
    tiny_backbone_version(open_catalog(s3_url))
    return BucketHome(tmp_path / "machine", s3_url)


def objects(store: ObjectStore, prefix: str) -> dict[str, int]:
    return {info.key.removeprefix(prefix): info.size for info in store.list(prefix)}


def whole_checkpoints(store: ObjectStore, job: str) -> list[int]:
    names = objects(store, f"jobs/{job}/checkpoints/") if job else {}
    return [int(name.partition("/")[0]) for name in names if name.endswith("/checkpoint.json")]


def kill_all(process: subprocess.Popen[Any]) -> None:
    """SIGKILL to a supervisor and its roles, as a power cut."""
    doomed = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for each in doomed:
        each.kill()
    process.wait()
    psutil.wait_procs(doomed[:-1], timeout=20)


def stop_chief(jobs: Path) -> int | None:
    """SIGSTOP to the chief as soon as it has made a Checkpoint; its pid."""
    record = next(jobs.glob("*/checkpoints/*/checkpoint.json"), None)
    if record is None:
        return None
    pid = int(json.loads((record.parents[2] / "progress.json").read_bytes())["pid"])
    os.kill(pid, signal.SIGSTOP)
    return pid


def head_digest(home: Home, name: str) -> str:
    [shown] = home.call("zoo", "show", name)
    return next(str(part["digest"]) for part in shown["components"] if part["name"] == "head")


LONG = ["--set", "train.steps=600", "--set", "train.evaluate_every=100", "--set", "train.deterministic=true"]


@pytest.mark.slow
def test_a_run_whose_machine_is_lost_goes_on_elsewhere_to_the_same_bits(
    home: BucketHome, s3_url: str, tmp_path: Path
) -> None:
    store = open_store(s3_url)
    command = home.command("finetune", [*home.run_arguments("lost"), *LONG])
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=home.environment()) as process:
        deadline, job, whole = time.monotonic() + 90, "", []
        stopped = None  # the chief, in the midst of training: it must not end before its first Checkpoint is sent
        while not whole:
            assert process.poll() is None, process.communicate()[1].decode()
            assert time.monotonic() < deadline
            time.sleep(0.02)
            if stopped is None:
                stopped = stop_chief(home.root / "home" / "jobs")
                continue
            job = next(iter(store.folders("jobs/")), "")
            whole = whole_checkpoints(store, job)
        kill_all(process)
    for lost in ("home", "cache"):
        shutil.rmtree(home.root / lost)
    whole = whole_checkpoints(store, job)

    [shown] = home.call("finetune", "get", job)  # nothing is known of it here, but in the store
    assert shown["state"] == "QUEUED"
    assert shown["progress"]["steps"] == 600
    log = subprocess.run(
        [BIN / "finetune", "logs", job], capture_output=True, text=True, check=True, env=home.environment()
    )
    assert "features: 0 from the cache, 0 from the store, 60 computed" in log.stdout

    done = subprocess.run(command, capture_output=True, text=True, check=False, env=home.environment())
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["job"] == job
    assert "from the store, 0 computed" in done.stderr
    resumed = int(done.stderr.partition("resumed at step ")[2].partition(" ")[0])
    assert resumed in whole

    elsewhere = Home(tmp_path / "local")  # uninterrupted, and on a store on this disk
    tiny_backbone_version(open_catalog(elsewhere.store.as_uri()))
    uninterrupted = elsewhere.run("lost", *LONG)
    assert uninterrupted["metrics"] == result["metrics"]
    assert head_digest(elsewhere, "lost") == head_digest(home, "lost")

    there = objects(store, f"jobs/{job}/")
    assert {"result.json", "export/export.json", "prepared/split.json", "logs/evaluator.log"} <= there.keys()
    assert any(key.startswith("events/train/") for key in there)
    local = home.root / "home" / "jobs" / job
    for name, size in there.items():
        if not name.startswith(("owner.json", "claims/")):
            assert (local / name).stat().st_size == size, name
    assert json.loads(store.read(f"jobs/{job}/result.json"))["reference"] == "lost@1"


def test_wrong_keys_are_refused_in_words(home: BucketHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    for command in (["zoo", "serve", "--address", "127.0.0.1:0"], ["finetune", *home.run_arguments("x")]):
        error = home.call(*command, code=1)
        assert error["code"] in ("PERMISSION_DENIED", "UNAUTHENTICATED"), error


def test_no_answer_is_said_in_words(home: BucketHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:1")
    started = time.monotonic()
    error = home.call("zoo", "serve", "--address", "127.0.0.1:0", code=1)
    assert error["code"] == "UNAVAILABLE"
    assert "127.0.0.1:1" in error["message"]
    assert time.monotonic() - started < 60
