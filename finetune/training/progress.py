"""Progress: a small file for watchers and a line for people. No TensorFlow.

Takes where a run is. Gives progress.json (replaced atomically) and a bar on stderr. Next: `finetune.jobs` shows it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from finetune.jobs.folder import JobFolder, write_json
from zoo.errors import ZooError

# Besides, `news`: what the chief has to tell since its start, which the supervisor makes events of; and `warnings`.
FIELDS = ("phase", "step", "steps", "loss", "examples_per_second", "eta_seconds", "done", "total", "input")
_PULSE = 0.5  # seconds; watchers are promised one a second
_LINE_EVERY = 5.0  # seconds between lines where stderr is no terminal
_BAR = 24  # characters
_WAITED_SHARE = 0.01  # of the time, from which on a line says so


class Pulse:
    """Rewrites a small file from a thread of its own, so that others can tell a long step from a death.

    A disk that is full or gone stops no training: the pulse says so once on stderr and goes on trying.
    """

    def __init__(self, path: Path, state: dict[str, Any] | None = None) -> None:
        self._path = path
        self._state = dict(state or {})
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._failed = False
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def set(self, **values: Any) -> None:
        with self._lock:
            self._state |= values

    def write(self) -> None:
        """Writes the present state now."""
        with self._lock:
            try:
                write_json(self._path, self._state | {"time": time.time(), "pid": os.getpid()})
                self._failed = False
            except ZooError as error:
                if not self._failed:
                    print(f"warning: {error}", file=sys.stderr)
                self._failed = True

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread; the file keeps the last state."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _beat(self) -> None:
        while not self._ended.is_set():
            self.write()
            self._ended.wait(_PULSE)


class Progress:
    """The chief's progress.json and its bar. `update` is cheap: a thread writes the file, twice a second."""

    def __init__(self, folder: JobFolder, *, steps: int, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._terminal = self._stream.isatty()
        self._shown = 0.0
        first = {"phase": "starting", "step": 0, "steps": steps, "warnings": []}
        self._state: dict[str, Any] = dict.fromkeys(FIELDS) | first
        self._pulse = Pulse(folder.progress_path, self._state)

    def __enter__(self) -> Progress:
        self._pulse.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pulse.stop()
        self._pulse.write()
        if self._terminal:
            self._stream.write("\n")

    def update(self, *, phase: str, **values: Any) -> None:
        """`values` are among FIELDS; `done` and `total` count things within the phase; `input`: see
        `finetune.training.input_watch`."""
        turned = phase != self._state["phase"]
        if turned:
            self._state |= {"done": None, "total": None}
        self._state |= {"phase": phase, **values}
        self._pulse.set(**self._state)
        now = time.monotonic()
        if turned or now - self._shown >= (_PULSE if self._terminal else _LINE_EVERY):
            self._shown = now
            line = progress_line(self._state)
            self._stream.write(f"\r\x1b[K{line}" if self._terminal else f"{line}\n")
            self._stream.flush()

    def announce(self, text: str) -> None:
        """A line of talk that is worth an event of the job, too."""
        self.say(text)
        self._state["news"] = [*self._state.get("news", []), text]
        self._pulse.set(**self._state)

    def warn(self, text: str) -> None:
        """What is likely wrong, with its remedy: announced, and kept for whoever looks at the job's progress later.
        Each is said once."""
        if text in self._state["warnings"]:
            return
        self._state["warnings"] = [*self._state["warnings"], text]
        self.announce(f"warning: {text}")

    def say(self, text: str) -> None:
        """A line of talk that doesn't tear the bar."""
        self._stream.write(f"\r\x1b[K{text}\n" if self._terminal else f"{text}\n")
        self._stream.flush()


def progress_line(state: dict[str, Any]) -> str:
    """One line from the contents of progress.json: phase, bar, loss, examples/s, waiting for input, time left."""
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
    if state.get("phase") == "training":
        parts += _input_parts(state.get("input") or {})
    if state.get("eta_seconds"):
        parts.append(f"{_clock(state['eta_seconds'])} left")
    return "  ".join(parts).rstrip()


def _input_parts(values: dict[str, Any]) -> list[str]:
    """What there is to say of the input: waiting from one percent on, and images that can't be used."""
    parts = []
    if (values.get("waited_share") or 0.0) >= _WAITED_SHARE:
        parts.append(f"waits for input {values['waited_share']:.0%}")
    if values.get("skipped"):
        parts.append(f"{values['skipped']:.0f} images skipped")
    return parts


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


class PulseWatch:
    """Whether somebody still rewrites a file, told by this process's own monotonic clock.

    Neither a wall clock that jumps nor another machine's that is wrong makes a live process look dead: what counts is
    that the file changes, not the time it bears.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mark = self._look()
        self._changed = time.monotonic()

    def silent(self) -> float:
        """Seconds since the file was last seen to change; since the watch began, where it never did or isn't there."""
        mark = self._look()
        if mark != self._mark and mark is not None:
            self._mark, self._changed = mark, time.monotonic()
        return time.monotonic() - self._changed

    def _look(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_ino
