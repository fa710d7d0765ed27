"""`finetune tensorboard`: a real TensorBoard on a job's event files, here and from a store elsewhere."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune.jobs.event_files import EventFiles, NoEvents
from finetune.jobs.folder import JobFolder
from finetune.jobs.queue import JobQueue
from finetune.jobs.tables import default_queue_url
from finetune.training.summaries import Summaries
from tests.finetune.jobs.conftest import make_spec
from zoo.store import open_store
from zoo.store.memory import MemoryStore

FINETUNE = Path(sys.executable).parent / "finetune"


def make_job(store_url: str) -> str:
    queue = JobQueue(default_queue_url(store_url))
    try:
        return queue.create(make_spec()).id
    finally:
        queue.close()


def write(folder: Path, *losses: float) -> None:
    summaries = Summaries(folder)
    for step, loss in enumerate(losses):
        summaries.scalars(step, {"loss": loss})
    summaries.close()


@contextmanager
def board(*arguments: str) -> Iterator[dict[str, Any]]:
    """The command as typed, until it has said where it listens; then Ctrl-C, after which it must end at once, well."""
    process = subprocess.Popen(
        [FINETUNE, "tensorboard", *arguments, "--format", "json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            pytest.fail(process.communicate()[1])
        yield json.loads(line)
        process.send_signal(signal.SIGINT)
        begin = time.monotonic()
        out, error = process.communicate(timeout=20)
        assert (process.returncode, out) == (0, ""), error
        assert time.monotonic() - begin < 10
        assert "Traceback" not in error
    finally:
        process.kill()
        process.wait()


def asked(url: str, path: str) -> Any:
    with urllib.request.urlopen(f"{url.rstrip('/')}/data/{path}", timeout=20) as answer:
        return json.load(answer)


def until_runs(url: str, runs: set[str]) -> None:
    deadline = time.monotonic() + 40
    while set(asked(url, "runs")) != runs:
        assert time.monotonic() < deadline, asked(url, "runs")
        time.sleep(0.2)


def test_a_job_of_this_machine_until_ctrl_c(tmp_path: Path) -> None:
    store_url = (tmp_path / "store").as_uri()
    job_id = make_job(store_url)
    folder = JobFolder(tmp_path / "store" / "jobs" / job_id)
    write(folder.events_train, 2.0, 1.0)
    write(folder.events_validation, 3.0)
    with board("cap", "--store", store_url, "--port", "0") as said:  # the model's name stands for its newest job
        assert (said["job"], said["folder"]) == (job_id, str(folder.events))
        until_runs(said["url"], {"train", "validation"})
        scalars = asked(said["url"], "plugin/scalars/scalars?run=train&tag=loss")
        assert [value for _, _, value in scalars] == [2.0, 1.0]


def test_a_port_that_is_taken_and_a_job_without_events(tmp_path: Path) -> None:
    store_url = (tmp_path / "store").as_uri()
    job_id = make_job(store_url)

    def refused(*more: str) -> str:
        done = subprocess.run(
            [FINETUNE, "tensorboard", job_id, "--store", store_url, *more], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    assert "has written nothing for TensorBoard yet" in refused()
    write(JobFolder(tmp_path / "store" / "jobs" / job_id).events_train, 1.0)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert f"can't listen at 127.0.0.1:{taken.getsockname()[1]}" in refused("--port", str(taken.getsockname()[1]))


def test_what_is_new_is_appended_to_what_is_open(tmp_path: Path) -> None:
    store = MemoryStore()
    write(tmp_path / "there", 1.0, 2.0, 3.0)
    (source,) = (tmp_path / "there").iterdir()
    data, key = source.read_bytes(), f"jobs/j1/events/train/{source.name}"
    files = EventFiles(store, "j1", tmp_path / "here")
    assert files.sync().files == 0
    with pytest.raises(NoEvents):
        files.require_any()
    store.put(key, data[:100])
    assert files.sync().bytes == 100
    copy = tmp_path / "here" / "train" / source.name
    inode = copy.stat().st_ino
    store.put(key, data)
    assert (files.sync().bytes, files.sync().files) == (len(data) - 100, 0)
    assert (copy.read_bytes(), copy.stat().st_ino) == (data, inode)
    files.require_any()
    events = EventAccumulator(str(copy.parent)).Reload()
    assert [float(tf.make_ndarray(event.tensor_proto)) for event in events.Tensors("loss")] == [1.0, 2.0, 3.0]
    store.put(key, data[:50])  # begun anew
    files.sync()
    assert copy.read_bytes() == data[:50]


@pytest.mark.slow
def test_a_job_of_a_store_elsewhere(s3_url: str, tmp_path: Path) -> None:
    job_id = make_job(s3_url)
    write(tmp_path / "there", 1.5)
    (source,) = (tmp_path / "there").iterdir()
    open_store(s3_url).put(f"jobs/{job_id}/events/train/{source.name}", source.read_bytes())
    with board(job_id, "--store", s3_url, "--port", "0") as said:
        until_runs(said["url"], {"train"})
        assert [value for _, _, value in asked(said["url"], "plugin/scalars/scalars?run=train&tag=loss")] == [1.5]
