"""Progress: how far a command has come, on stderr.

Takes counts of bytes. Gives a bar on a terminal, elsewhere a line now and then, and nothing to whoever asked for JSON
and doesn't watch. Next: the commands that move or read many bytes.

    with progress("pull", format, total=size) as shown:
        pull(…, on_bytes=shown.advance)
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from zoo.cli.output import Format, say, size_text

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

LINE_SECONDS = 15.0  # between two lines where there is no terminal


class Progress(Protocol):
    """Safe to share between threads."""

    def expect(self, total: int) -> None:
        """How many bytes there will be in all, where that isn't known from the beginning."""

    def advance(self, count: int) -> None:
        """So many bytes more."""

    def note(self, text: str) -> None:
        """What else to show behind the bytes, e.g. `3 of 12 blobs`."""


@contextmanager
def progress(doing: str, format: Format, *, total: int | None = None) -> Iterator[Progress]:
    """Shows for the length of the block that `doing` goes on. `total`: bytes, None while they aren't known."""
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _bar(doing, total) as bar:
            yield bar
    elif format is Format.JSON:
        yield Silent()
    else:
        yield Lines(doing, total)


class Silent:
    """Nobody watches."""

    def expect(self, total: int) -> None:
        pass

    def advance(self, count: int) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class Lines:
    """A line every `every` seconds while something goes on: for logs."""

    def __init__(self, doing: str, total: int | None, *, every: float = LINE_SECONDS) -> None:
        self._doing = doing
        self._total = total
        self._every = every
        self._done = 0
        self._note = ""
        self._last = time.monotonic()
        self._lock = threading.Lock()

    def expect(self, total: int) -> None:
        with self._lock:
            self._total = total

    def advance(self, count: int) -> None:
        with self._lock:
            self._done += count
            if time.monotonic() - self._last < self._every:
                return
            self._last = time.monotonic()
            total = f" of {size_text(self._total)}" if self._total is not None else ""
            say(f"{self._doing}: {size_text(self._done)}{total}{', ' if self._note else ''}{self._note}")

    def note(self, text: str) -> None:
        with self._lock:
            self._note = text


class _Bar:
    def __init__(self, shown: RichProgress, task: TaskID) -> None:
        self._shown = shown
        self._task = task

    def expect(self, total: int) -> None:
        self._shown.update(self._task, total=total)

    def advance(self, count: int) -> None:
        self._shown.advance(self._task, count)

    def note(self, text: str) -> None:
        self._shown.update(self._task, note=text)


@contextmanager
def _bar(doing: str, total: int | None) -> Iterator[_Bar]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    # Only stderr is redrawn: what the command prints on stdout meanwhile isn't caught and drawn above the bar.
    with RichProgress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=True
    ) as shown:
        yield _Bar(shown, shown.add_task(doing, total=total, note=""))
