"""Progress: a small file for watchers and a line for people. No TensorFlow.

Takes where a run is. Gives progress.json (replaced atomically) and a bar on stderr. Next: `finetune.jobs` shows it.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from finetune.jobs.folder import JobFolder, write_json

_WRITE_EVERY = 0.5  # seconds; watchers are promised one a second
_LINE_EVERY = 5.0  # seconds between lines where stderr is no terminal
_BAR = 24  # characters


class Progress:
    """One process' progress. `update` is cheap: it writes at most twice a second, unless the phase changes."""

    def __init__(self, folder: JobFolder, *, steps: int, stream: TextIO | None = None) -> None:
        self._folder = folder
        self._stream = stream if stream is not None else sys.stderr
        self._terminal = self._stream.isatty()
        self._written = 0.0
        self._shown = 0.0
        self._state: dict[str, Any] = {
            "phase": "starting",
            "step": 0,
            "steps": steps,
            "loss": None,
            "examples_per_second": None,
            "eta_seconds": None,
            "done": None,
            "total": None,
        }

    def update(self, *, phase: str, **values: Any) -> None:
        """`values`: step, loss, examples_per_second, eta_seconds; done and total count things within the phase."""
        turned = phase != self._state["phase"]
        if turned:
            self._state |= {"done": None, "total": None}
        self._state |= {"phase": phase, **values}
        now = time.monotonic()
        if turned or now - self._written >= _WRITE_EVERY:
            self._write(now)
        if turned or now - self._shown >= (_WRITE_EVERY if self._terminal else _LINE_EVERY):
            self._show(now)

    def finish(self, phase: str) -> None:
        """The last word: written whatever the time, and the bar's line ended."""
        self._state |= {"phase": phase, "eta_seconds": 0.0 if phase == "done" else None}
        self._write(time.monotonic())
        self._show(time.monotonic())
        if self._terminal:
            self._stream.write("\n")

    def say(self, text: str) -> None:
        """A line of talk that doesn't tear the bar."""
        self._stream.write(f"\r\x1b[K{text}\n" if self._terminal else f"{text}\n")
        self._stream.flush()

    def _write(self, now: float) -> None:
        self._written = now
        write_json(self._folder.progress_path, self._state | {"time": time.time()}, durable=False)

    def _show(self, now: float) -> None:
        self._shown = now
        line = progress_line(self._state)
        self._stream.write(f"\r\x1b[K{line}" if self._terminal else f"{line}\n")
        self._stream.flush()


def progress_line(state: dict[str, Any]) -> str:
    """One line from the contents of progress.json: phase, bar, loss, examples/s, time left."""
    done, total = state.get("done"), state.get("total")
    if total is None and state.get("phase") in ("training", "evaluating", "done"):
        done, total = state.get("step"), state.get("steps")
    parts = [f"{state.get('phase', ''):<10}"]
    if total:
        filled = min(_BAR, _BAR * int(done or 0) // int(total))
        parts.append(f"[{'█' * filled}{'·' * (_BAR - filled)}] {done}/{total}")
    if state.get("loss") is not None:
        parts.append(f"loss {state['loss']:.4f}")
    if state.get("examples_per_second") is not None:
        parts.append(f"{state['examples_per_second']:.0f} examples/s")
    if state.get("eta_seconds"):
        parts.append(f"{_clock(state['eta_seconds'])} left")
    return "  ".join(parts).rstrip()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


class Pulse:
    """Writes a small file every second from a thread of its own, so that others can tell a long step from a death."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._step: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def at(self, step: int | None) -> None:
        self._step = step

    def __enter__(self) -> Pulse:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _beat(self) -> None:
        while True:
            write_json(self._path, {"time": time.time(), "step": self._step}, durable=False)
            if self._stop.wait(1.0):
                return


def pulse_age(path: Path) -> float:
    """Seconds since a pulse or progress file was last replaced; infinity where there is none."""
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except FileNotFoundError:
        return float("inf")
