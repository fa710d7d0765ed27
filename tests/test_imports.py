"""What must come up without TensorFlow, and fast: the command lines and everything that the server's front uses."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent

LIGHT = """
import sys
import finetune.client, finetune.jobs.queue, finetune.jobs.supervisor, finetune.recipes, server.serve, zoo.catalog
from finetune.models.heads import HEADS, head_kind
for kind in HEADS:
    head_kind(kind).Arguments()
print([name for name in ("tensorflow", "keras", "h5py") if name in sys.modules])
"""


def test_the_servers_front_and_the_heads_arguments_need_no_tensorflow() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("tool", ["zoo", "finetune"])
def test_help_comes_within_four_tenths_of_a_second(tool: str) -> None:
    seconds = []
    for _ in range(7):  # the fastest of several: the machine may be busy
        started = time.perf_counter()
        done = subprocess.run([BIN / tool, "--help"], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - started)
    assert "Usage" in done.stdout
    assert min(seconds) < 0.4
    trace = subprocess.run(
        [sys.executable, "-X", "importtime", BIN / tool, "--help"], capture_output=True, text=True, check=True
    )
    assert "typer" in trace.stderr
    assert "tensorflow" not in trace.stderr
