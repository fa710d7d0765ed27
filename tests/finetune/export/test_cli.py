"""`zoo export` as it is typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import tiny_backbone_version
from zoo.catalog import open_catalog
from zoo.cli.main import app
from zoo.cli.output import run_cli


def test_export_json_is_what_the_file_says(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tiny_backbone_version(open_catalog())
    target = tmp_path / "out"
    command = [sys.executable, "-m", "zoo.cli.main", "export", "tiny", str(target), "--as", "onnx", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert value.pop("directory") == str(target)
    assert value == json.loads((target / "export.json").read_text())
    assert done.stderr == "writing onnx, then reading it in a fresh process …\n"  # no chatter of TensorFlow's

    with pytest.raises(SystemExit) as caught:
        run_cli(app, ["export", "tiny", str(target), "--as", "onnx", "--format", "json"])
    assert caught.value.code == 1
    error = json.loads(capfd.readouterr().err.splitlines()[-1])["error"]
    assert error["reason"] == "FolderTaken"
    with pytest.raises(SystemExit) as caught:
        run_cli(app, ["export", "tiny", str(tmp_path / "other"), "--as", "pickle"])
    assert caught.value.code == 2
    assert "litert" in capfd.readouterr().err
