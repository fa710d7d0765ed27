"""A queue in a file, and a clock that tests can turn."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from finetune.jobs.queue import JobQueue
from finetune.spec import JobSpec


class Clock:
    def __init__(self) -> None:
        self.seconds = 1_700_000_000.0

    def __call__(self) -> float:
        return self.seconds


def make_spec(name: str = "cap", **train: object) -> JobSpec:
    return JobSpec.parse(
        {
            "name": name,
            "backbone": "tiny",
            "head": {"kind": "captioner"},
            "data": {"location": "scenes:"},
            "train": train,
        }
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "postgresql"])
def queue_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/jobs.sqlite"
    return request.getfixturevalue("postgres").new_database()


@pytest.fixture
def queue(queue_url: str, clock: Clock) -> Iterator[JobQueue]:
    queue = JobQueue(queue_url, now=clock)
    yield queue
    queue.close()
