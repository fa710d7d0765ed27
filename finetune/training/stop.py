"""StopSignal: SIGTERM as a wish that is granted where nothing is lost. No TensorFlow.

Takes SIGTERM. Gives Interrupted, at once or at the next safe place. Next: `finetune.training.run` exits with 75.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Interrupted(BaseException):
    """Asked to stop; everything worth keeping is on disk and the same command resumes. Not an error."""


class StopSignal:
    """While `deferred` is False, SIGTERM raises Interrupted wherever the main thread is: the work until the next
    Checkpoint is lost, as with a kill. While it is True the holder looks at `requested` and saves first.

    SIGINT is ignored: Ctrl-C reaches the whole process group, and the supervisor, which has it too, decides.
    Handlers can be set in the main thread only; elsewhere the value works without them.
    """

    def __init__(self) -> None:
        self.requested = False
        self.deferred = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._before = {
                signal.SIGTERM: signal.signal(signal.SIGTERM, self._handle),
                signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
            }
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self.requested = self.requested, True
        if not self.deferred and not again:  # a second SIGTERM must not tear what the first one set going
            raise Interrupted
