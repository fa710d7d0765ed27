"""Fixtures of the catalogue's tests."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """fsync shows only when the power fails, which no test here makes happen; a disk shared with other jobs takes most
    of a minute for all of them. Tests in processes of their own (races, kill -9) still fsync."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: os.fstat(descriptor))
