"""What a user sees while bytes move: a bar on a terminal, a line now and then in a log, nothing beside JSON."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.zoo.samples import new_catalog, version
from zoo.cli.output import Format
from zoo.cli.progress import Lines, Silent, progress
from zoo.store import open_store


def test_lines(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines("pull m@1", None, every=0.0)
    lines.advance(1500)
    lines.expect(3000)
    lines.note("1 of 2 blobs")
    lines.advance(1500)
    shown = capsys.readouterr()
    assert shown.err.splitlines() == ["pull m@1: 1.5 kB", "pull m@1: 3.0 kB of 3.0 kB, 1 of 2 blobs"]
    assert shown.out == ""


def test_lines_come_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines("pull m@1", 10**6)
    for _ in range(1000):
        lines.advance(1000)
    assert capsys.readouterr().err == ""


def test_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("pull m@1", Format.JSON) as shown:
        assert isinstance(shown, Silent)
    with progress("pull m@1", Format.TEXT, total=5) as shown:
        assert isinstance(shown, Lines)
        shown.advance(5)
    assert capsys.readouterr().err == ""


def on_a_terminal(*arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout (a pipe), and what stderr, a terminal, showed."""
    master, slave = pty.openpty()
    seen: list[bytes] = []

    def watch() -> None:
        try:
            while data := os.read(master, 4096):
                seen.append(data)
        except OSError:  # EIO: the other side is closed
            return

    watcher = threading.Thread(target=watch)
    watcher.start()
    done = subprocess.run(
        [sys.executable, "-m", "zoo.cli.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=slave,
        check=False,
        timeout=60,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(slave)
    watcher.join(timeout=10)
    os.close(master)
    return done.returncode, done.stdout.decode(), b"".join(seen).decode(errors="replace")


def test_commands_on_a_terminal(tmp_path: Path) -> None:
    new_catalog(open_store(os.environ["MODELZOO_STORE"]), tmp_path).publish("m", *version(tmp_path / "files"))
    code, out, seen = on_a_terminal("verify", "--format", "json")
    assert (code, json.loads(out)["ok"]) == (0, True)
    assert "verify" in seen
    assert "3 of 3 blobs" in seen
    code, out, seen = on_a_terminal("pull", "m", str(tmp_path / "pulled"), "--format", "json")
    assert (code, len(json.loads(out)["files"])) == (0, 4)
    assert "pull m@1" in seen
    code, out, seen = on_a_terminal("push", str(tmp_path / "pulled"), "n", "--format", "json")
    assert (code, json.loads(out)["reference"]) == (0, "n@1")
    assert "push n (hash, then send)" in seen
    total = sum(path.stat().st_size for path in (tmp_path / "pulled").iterdir() if path.name != "manifest.json")
    assert f"{2 * total}/{2 * total} bytes" in seen


def test_pull_of_tensors(tmp_path: Path) -> None:
    new_catalog(open_store(os.environ["MODELZOO_STORE"]), tmp_path).publish("m", *version(tmp_path / "files"))
    tensors = ["--tensor", "head/kernel", "--tensor", "backbone/bi?s"]
    done = subprocess.run(
        [sys.executable, "-m", "zoo.cli.main", "pull", "m", str(tmp_path / "out"), *tensors, "--format", "json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    files = json.loads(done.stdout)["files"]
    assert {file["name"]: [tensor["name"] for tensor in file["tensors"]] for file in files} == {
        "backbone.tensors.safetensors": ["backbone/bias"],
        "head.tensors.safetensors": ["head/kernel"],
    }
    assert files[1]["tensors"][0] == {"name": "head/kernel", "dtype": "float32", "shape": [3, 4], "bytes": 48}
