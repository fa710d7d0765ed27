"""Saving beside the training: the variables are copied, and a thread writes the copy while the next steps run.

Takes a Trainer's variables at one step. Gives a Checkpoint a little later. Next: `finetune.training.checkpoints`.

What training stands still for is the copy. One save is under way at a time: the next one waits for it, so that at most
one more copy of the variables is in memory. The commit is still the rename: readers see complete Checkpoints only, in
the order of their steps.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from finetune.training.checkpoints import Checkpoints


class Saving:
    """Used by the chief's main thread. `step`: the Checkpoint that is being written, None for none."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints
        self._copies: dict[str, dict[str, tf.Variable]] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self.step: int | None = None

    def save(self, variables: Mapping[str, Mapping[str, Any]], *, step: int, **record: Any) -> float:
        """Begins to write a Checkpoint; returns the seconds that the caller stood still, waiting for the save before
        included. `record`: as for `Checkpoints.save`. Raises what went wrong with the save before.
        """
        begin = time.monotonic()
        self.settle()
        values = {
            group: {name: _snapshot(each) for name, each in members.items()} for group, members in variables.items()
        }
        self.step = step
        # No daemon: an interpreter that exits waits for the rename.
        self._thread = threading.Thread(target=self._write, args=(values, step, record), name=f"save-{step}")
        self._thread.start()
        return time.monotonic() - begin

    def done(self) -> bool:
        """True once for each save, when its Checkpoint is there. Raises what went wrong with it (NoSpace …)."""
        if self._thread is None or self._thread.is_alive():
            return False
        return self.settle()

    def settle(self) -> bool:
        """Waits for the save under way; as `done`."""
        if self._thread is None:
            return False
        self._thread.join()
        self._thread, self.step = None, None
        error, self._error = self._error, None
        if error is not None:
            raise error
        return True

    def abandon(self) -> None:
        """Waits while another error goes its way, which a failed save mustn't hide."""
        try:
            self.settle()
        except Exception as error:  # noqa: BLE001 - see above
            print(f"warning: a Checkpoint was not saved: {error}", file=sys.stderr, flush=True)

    def _write(self, values: Mapping[str, Mapping[str, tf.Tensor]], step: int, record: Mapping[str, Any]) -> None:
        try:
            self._checkpoints.save(self._as_variables(values), step=step, **record)
        except BaseException as error:  # noqa: BLE001 - raised again in the chief's own thread
            self._error = error

    def _as_variables(self, values: Mapping[str, Mapping[str, tf.Tensor]]) -> dict[str, dict[str, tf.Variable]]:
        """`tf.train.Checkpoint` writes variables; they are made once, and share the values' memory."""
        with tf.device("/cpu:0"):
            if not self._copies:
                self._copies = {
                    group: {name: tf.Variable(value, trainable=False) for name, value in members.items()}
                    for group, members in values.items()
                }
            else:
                for group, members in values.items():
                    for name, value in members.items():
                        self._copies[group][name].assign(value)
        return self._copies


def _snapshot(variable: Any) -> tf.Tensor:
    """The value now, in the host's memory. TensorFlow gives out a variable's buffer itself and copies it only when the
    variable is next written to, so that this costs next to nothing where variables lie in the host's memory."""
    value = (variable if isinstance(variable, tf.Variable) else variable.value).read_value()
    with tf.device("/cpu:0"):
        return tf.identity(value)
