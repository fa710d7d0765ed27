"""How a role ends: exit codes, error.json, signals, the bar."""

from __future__ import annotations

import errno
import io
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tensorflow as tf

from finetune.jobs.folder import JobFolder
from finetune.training import run
from finetune.training.progress import Progress, Pulse, PulseWatch, progress_line
from finetune.training.stop import Interrupted, StopSignal
from zoo.errors import NotFound


class Missing(NotFound):
    """A leaf."""


def raising(error: BaseException) -> Callable[[StopSignal], None]:
    def body(stop: StopSignal) -> None:
        raise error

    return body


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (Missing("no such thing", hint="look elsewhere"), "NOT_FOUND", "Missing"),
        (OSError(errno.ENOSPC, "No space left on device", "/x"), "RESOURCE_EXHAUSTED", "NoSpace"),
        (
            tf.errors.UnknownError(None, None, "events.v2; No space left on device"),
            "RESOURCE_EXHAUSTED",
            "NoSpace",
        ),
        (tf.errors.ResourceExhaustedError(None, None, "OOM when allocating"), "RESOURCE_EXHAUSTED", "OutOfMemory"),
        (ZeroDivisionError("a bug"), "INTERNAL", "Internal"),
    ],
)
def test_every_error_ends_in_error_json_and_exit_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Exception, code: str, reason: str
) -> None:
    folder = JobFolder(tmp_path)
    assert run._guarded(folder, raising(error), clear_error=True) == 1
    written = folder.read_error()
    assert written is not None
    assert (written["code"], written["reason"]) == (code, reason)
    log = capsys.readouterr().err
    assert written["message"] in log
    assert ("Traceback" in log) == (code == "INTERNAL")


def test_an_interruption_is_75_and_no_error(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    assert run._guarded(folder, raising(Interrupted()), clear_error=True) == 75
    assert folder.read_error() is None
    assert run._guarded(folder, lambda stop: None, clear_error=True) == 0


def test_the_first_error_is_the_cause_until_the_chief_starts_again(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    run._guarded(folder, raising(Missing("the cause")), clear_error=False)
    run._guarded(folder, raising(Missing("what came of it")), clear_error=False)
    assert (folder.read_error() or {})["message"] == "the cause"
    run._guarded(folder, lambda stop: None, clear_error=True)
    assert folder.read_error() is None


def test_sigterm_interrupts_at_once_unless_there_are_steps_to_save(tmp_path: Path) -> None:
    def body(stop: StopSignal) -> None:
        stop.deferred = True
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
        assert stop.requested

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    assert run._guarded(JobFolder(tmp_path), body, clear_error=True) == 0

    def careless(stop: StopSignal) -> None:
        os.kill(os.getpid(), signal.SIGINT)  # the supervisor's matter
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    begin = time.monotonic()
    assert run._guarded(JobFolder(tmp_path), careless, clear_error=True) == 75
    assert time.monotonic() - begin < 4
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_the_bar_shows_loss_speed_and_time_left() -> None:
    line = progress_line(
        {"phase": "training", "step": 50, "steps": 200, "loss": 1.25, "examples_per_second": 99.6, "eta_seconds": 3725}
    )
    assert line.startswith("training    [██████··················] 50/200")
    assert line.endswith("loss 1.2500  100 examples/s  1:02:05 left")
    assert progress_line({"phase": "features of train", "done": 3, "total": 4}).endswith("3/4")


def test_progress_is_written_at_least_once_a_second_also_when_nothing_happens(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    stream = io.StringIO()
    with Progress(folder, steps=10, stream=stream) as progress:
        progress.update(phase="training", step=3, loss=2.0)
        time.sleep(1.2)
        first = (folder.read_progress() or {})["time"]
        time.sleep(1.2)
        assert (folder.read_progress() or {})["time"] > first
        progress.update(phase="training", step=4, loss=float("nan"))
    last = folder.read_progress()
    assert last is not None
    assert (last["phase"], last["step"], last["steps"], last["loss"]) == ("training", 4, 10, None)
    assert stream.getvalue().count("\n") == 1  # the second line would have come after seconds


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
def test_a_clock_that_jumps_by_an_hour_makes_no_living_process_look_dead(tmp_path: Path, jump: float) -> None:
    """Files as they are after the jump: their times are an hour off, and they change as long as somebody lives."""
    path = tmp_path / "pulse.json"
    pulse = Pulse(path)
    pulse.write()
    os.utime(path, (time.time() + jump, time.time() + jump))
    watch = PulseWatch(path)
    assert watch.silent() < 60
    time.sleep(0.3)
    silent = watch.silent()
    assert 0.3 <= silent < 60  # nothing has changed since the watch began, whatever the file's time says
    pulse.write()
    os.utime(path, (time.time() + 2 * jump, time.time() + 2 * jump))
    assert watch.silent() < silent


def test_a_pulse_that_never_comes_is_silent_since_the_watch_began(tmp_path: Path) -> None:
    watch = PulseWatch(tmp_path / "none")
    time.sleep(0.05)
    assert watch.silent() >= 0.05


def test_a_pulse_that_cannot_be_written_says_so_once_and_stops_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    pulse = Pulse(tmp_path / "file" / "pulse.json")
    pulse.write()
    pulse.write()
    assert capsys.readouterr().err.count("warning: cannot write") == 1
