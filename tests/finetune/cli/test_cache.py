"""`finetune cache list | clear` as typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from finetune.cli.cache import app
from tests.finetune.data.test_features import SCENES, MeanBackbone, fill


def test_list_and_clear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELZOO_CACHE", str(tmp_path))
    monkeypatch.setenv("MODELZOO_FEATURE_CACHE_LIMIT", "2GB")
    fill(tmp_path / "features", MeanBackbone("sha256:one"), SCENES)
    fill(tmp_path / "features", MeanBackbone("sha256:two"), SCENES, dtype="float16")
    listed = json.loads(CliRunner().invoke(app, ["list", "--format", "json"]).stdout)
    assert [(each["backbone"], each["dtype"], each["view"], each["vectors"], each["in_use"]) for each in listed] == [
        ("sha256:one", "float32", 0, 11, True),
        ("sha256:two", "float16", 0, 11, True),
    ]
    shown = CliRunner().invoke(app, ["list"])
    assert "float16" in shown.stdout
    assert "of 2.0 GB" in shown.stderr
    freed = json.loads(CliRunner().invoke(app, ["clear", "--format", "json"]).stdout)
    assert freed == {"bytes_freed": sum(each["bytes"] for each in listed)}
    assert json.loads(CliRunner().invoke(app, ["list", "--format", "json"]).stdout) == []
