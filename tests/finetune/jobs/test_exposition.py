"""Running jobs as Prometheus reads them: printed and served."""

from __future__ import annotations

import os
import re
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from finetune.cli.main import app
from finetune.cli.metrics import AddressTaken, NoAddress, serving
from finetune.jobs.exposition import exposition, running_jobs
from finetune.jobs.folder import JobFolder, write_json
from finetune.spec import JobSpec

SAMPLE = re.compile(r'([a-z_]+)\{job="((?:[^"\\]|\\.)*)",model="((?:[^"\\]|\\.)*)"(?:,phase="([^"]*)")?\} (\S+)')
INPUT = {
    "waited_share": 0.25,
    "ready_fill": 0.5,
    "skipped": 2,
    "totals": {"waited_seconds": 1.5, "batches": 10, "read": 320, "bytes": 123456, "read_seconds": 2.0, "decoded": 318,
               "decode_seconds": 8.25},
}  # fmt: skip


def a_job(root: Path, job: str, **progress: Any) -> JobFolder:
    spec = JobSpec.parse(
        {"name": "birds", "backbone": "b", "head": {"kind": "classifier"}, "data": {"location": "folder:x"}}
    )
    folder = JobFolder.create(root / job, job=job, spec=spec, store_url="memory://x")
    write_json(folder.progress_path, {"phase": "training", "step": 7, "steps": 100, "time": time.time(), **progress})
    return folder


def samples(text: str) -> dict[tuple[str, str], float]:
    """(metric, job) → value; every line is one of the format's three kinds, and each metric has its two lines above."""
    found = {}
    told: dict[str, set[str]] = {}
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# "):
            _, kind, name, _ = line.split(" ", 3)
            told.setdefault(name, set()).add(kind)
            continue
        match = SAMPLE.fullmatch(line)
        assert match, line
        assert told[match[1]] == {"HELP", "TYPE"}
        assert (match[1], match[2]) not in found
        found[match[1], match[2]] = float(match[5])
    return found


def test_what_a_job_tells_is_in_the_text(tmp_path: Path) -> None:
    a_job(tmp_path, "one", loss=0.5, examples_per_second=99.5, input=INPUT)
    a_job(tmp_path, "two", loss=None, input={"waited_share": 0.0})
    text = exposition(running_jobs([tmp_path]))
    found = samples(text)
    assert found["modelzoo_job_step", "one"] == 7
    assert found["modelzoo_job_loss", "one"] == 0.5
    assert found["modelzoo_input_waited_ratio", "one"] == 0.25
    assert found["modelzoo_input_waited_ratio", "two"] == 0
    assert found["modelzoo_input_read_bytes_total", "one"] == 123456
    assert found["modelzoo_input_decode_seconds_total", "one"] == 8.25
    assert found["modelzoo_input_skipped_images", "one"] == 2
    assert ("modelzoo_job_loss", "two") not in found
    assert "# TYPE modelzoo_input_read_bytes_total counter" in text
    assert 'modelzoo_job_info{job="one",model="birds",phase="training"} 1.0' in text


def test_only_jobs_that_run_are_told_of(tmp_path: Path) -> None:
    old = a_job(tmp_path / "a", "old")
    os.utime(old.progress_path, (time.time() - 3600,) * 2)
    a_job(tmp_path / "a", "new")
    damaged = a_job(tmp_path / "b", "damaged")
    damaged.spec_path.write_text("{")
    (tmp_path / "same").symlink_to(tmp_path / "a")
    roots = [tmp_path / "a", tmp_path / "b", tmp_path / "none", tmp_path / "same"]
    assert {job for _, job in samples(exposition(running_jobs(roots)))} == {"new"}
    assert exposition([]) == ""


def test_names_are_quoted(tmp_path: Path) -> None:
    a_job(tmp_path, 'a "b"\\c\nd')
    ((_, job), *_) = samples(exposition(running_jobs([tmp_path])))
    assert job == r"a \"b\"\\c\nd"


def test_served_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELZOO_STORE", f"file://{tmp_path / 'store'}")
    monkeypatch.setenv("MODELZOO_HOME", str(tmp_path / "home"))
    a_job(tmp_path / "store" / "jobs", "here", input=INPUT)
    a_job(tmp_path / "home" / "jobs", "mirrored", input=INPUT)
    printed = CliRunner().invoke(app, ["metrics"])
    assert printed.exit_code == 0, printed.output
    assert {job for _, job in samples(printed.stdout)} == {"here", "mirrored"}
    server = serving("127.0.0.1:0", lambda: [tmp_path / "store" / "jobs", tmp_path / "home" / "jobs"])
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        with urllib.request.urlopen(f"{url}/metrics", timeout=60) as answer:
            assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
            assert answer.read().decode() == printed.stdout
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/etc/passwd", timeout=60)
        with pytest.raises(AddressTaken, match="cannot listen at"):
            serving(f"127.0.0.1:{server.server_address[1]}", list)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    for address in ("9464", "host:", "127.0.0.1:70000", "127.0.0.1:http"):
        with pytest.raises(NoAddress, match="expected HOST:PORT"):
            serving(address, list)
