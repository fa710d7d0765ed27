"""Fixtures that every test may use."""

from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import pytest

from tests.postgres import Postgres, PostgresMissing, running_postgres
from tests.seaweed import BUCKET, Seaweed, SeaweedMissing, running_seaweed

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


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """A real S3 server with the bucket `zoo`. A test that kills it starts it again, or better starts its own."""
    try:
        with running_seaweed(tmp_path_factory.mktemp("seaweed")) as server:
            yield server
    except SeaweedMissing as error:
        pytest.skip(str(error))


@pytest.fixture
def s3_url(seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store's URL that nobody has used yet; the environment, also that of child processes, has what boto3 needs."""
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    for name, value in seaweed.environment().items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{secrets.token_hex(6)}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A real PostgreSQL. A test that kills it starts its own."""
    try:
        with running_postgres() as server:
            yield server
    except PostgresMissing as error:
        pytest.skip(str(error))
