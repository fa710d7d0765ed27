"""Fixtures that every test may use."""

from __future__ import annotations

import os
import signal
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import pytest

# A shell that starts us in the background lets SIGINT be ignored, here and in every child; the tests send Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real photos, captions, checkpoints and reference outputs, beside the checkout; never part of it."""
    if not SHARED.is_dir():
        pytest.skip(f"real data and checkpoints are not there: {SHARED}")
    return SHARED


@pytest.fixture(autouse=True)
def _own_homes(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the user's own store, cache or settings."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("MODELZOO_STORE", f"file://{home}/store")
    monkeypatch.setenv("MODELZOO_CACHE", f"{home}/cache")
    monkeypatch.setenv("MODELZOO_HOME", f"{home}/data")
    for name in ("MODELZOO_SERVER", "MODELZOO_TOKEN"):
        monkeypatch.delenv(name, raising=False)
