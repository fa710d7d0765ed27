"""Debugging: the Looks that `debug` of a spec asks for (docs/debugging.md).

Takes a DebugConfig. Gives Looks for `finetune.training.observed`, which change no weight. Next: stderr, the job's logs,
TensorBoard's profiler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf

from finetune.models.network import Network
from finetune.spec import DebugConfig
from finetune.training.observed import Batch, Every, Look
from finetune.training.probe import Probe, bad_values
from finetune.training.trainer import NonFiniteLoss, Trainer


class NonFiniteOperation(NonFiniteLoss):
    """A NonFiniteLoss of which the first operation that gave NaN or Inf is known."""


def debug_looks(
    debug: DebugConfig, *, trainer: Trainer, network: Network, probe: Probe, logs: Path, profile_to: Path,
    say: Callable[[str], None],
) -> list[Look]:  # fmt: skip
    """The Looks of a spec. Raises UnknownTensor."""
    looks: list[Look] = []
    if debug.print:
        looks.append(Prints(probe, debug.print, every=debug.print_every, file=logs / "prints.log", say=say))
    if debug.check_numerics:
        looks.append(Numerics(trainer, network, probe))
    if debug.profile is not None:
        first, last = (int(part) for part in debug.profile.split(":"))
        looks.append(Profile(first, last, folder=profile_to, say=say))
    return looks


class Prints(Every):
    """Tensors by name, at step 1 and every so many steps, with the weights and the batch that the step begins with.

    They are printed inside the graph, into a file, and said from there: TensorFlow prints past Python's stderr, which
    a job shows and logs.
    """

    def __init__(
        self, probe: Probe, names: Sequence[str], *, every: int, file: Path, say: Callable[[str], None]
    ) -> None:
        super().__init__(every, first=1)
        file.parent.mkdir(parents=True, exist_ok=True)
        self._file = file
        self._look = probe.printer(names, file=str(file))
        self._say = say

    def before(self, step: int, batch: Batch) -> None:
        seen = self._file.stat().st_size if self._file.exists() else 0
        self._look(step, *batch)
        with self._file.open("rb") as file:
            file.seek(seen)
            for line in file.read().decode("utf-8", "replace").splitlines():
                self._say(line)


class Numerics(Every):
    """Looks at every step. Keeps the state before it, and does a step that went astray once more, checked.

    The check is TensorFlow's own (`tf.debugging.enable_check_numerics`), in a graph apart: inside the step it would
    keep operations from being fused, and so change its last bits.
    """

    def __init__(self, trainer: Trainer, network: Network, probe: Probe) -> None:
        super().__init__(1)
        self._variables = [variable for group in trainer.variables.values() for variable in group.values()]
        self._weights = {
            f"{component}/{name}": variable
            for component, variables in network.groups.items()
            for name, variable in variables.items()
        }
        self._probe = probe
        self._before: list[Any] = []

    def before(self, step: int, batch: Batch) -> None:
        self._before = [tf.identity(tf.convert_to_tensor(variable)) for variable in self._variables]

    def failed(self, step: int, batch: Batch, error: NonFiniteLoss) -> NonFiniteLoss:
        for variable, value in zip(self._variables, self._before, strict=True):
            variable.assign(value)
        features, targets = batch
        inputs = bad_values({**features, **targets})
        weights = bad_values({name: variable.numpy() for name, variable in self._weights.items()})
        found = self._probe.first_non_finite(features, targets)
        said = [
            f"the batch has NaN or Inf in {', '.join(inputs)}" if inputs else "",
            f"the step before had left NaN or Inf in {', '.join(weights[:5])}" if weights else "",
            f"the first operation is {found}"
            if found
            else "none of the operations of loss and gradient is to blame: "
            "their sums overflow, or the norm of the gradients does",
        ]
        details = {"op": found.op, "scope": found.scope} if found else {}
        return NonFiniteOperation(
            f"{error.message}: " + "; ".join(filter(None, said)), hint=error.hint, **error.details, **details
        )


class Profile:
    """Looks at the steps FIRST to LAST through TensorFlow's profiler, each with its own mark in the trace."""

    def __init__(self, first: int, last: int, *, folder: Path, say: Callable[[str], None]) -> None:
        self._first, self._last = first, last
        self._folder = folder
        self._say = say
        self._running = False
        self._mark: Any = None

    def due(self, step: int) -> int | None:
        return max(step, self._first) if step <= self._last else None

    def before(self, step: int, batch: Batch) -> None:
        if not self._running:
            tf.profiler.experimental.start(str(self._folder))
            self._running = True
        self._mark = tf.profiler.experimental.Trace("train", step_num=step, _r=1)
        self._mark.__enter__()

    def after(self, step: int, batch: Batch) -> None:
        self._leave_mark()
        if step == self._last:
            self.close()

    def failed(self, step: int, batch: Batch, error: NonFiniteLoss) -> NonFiniteLoss:
        self._leave_mark()
        return error

    def close(self) -> None:
        if self._running:
            self._running = False
            tf.profiler.experimental.stop()
            self._say(f"a trace of steps {self._first} to {self._last} is in {self._folder}/plugins/profile")

    def _leave_mark(self) -> None:
        if self._mark is not None:
            self._mark.__exit__(None, None, None)
            self._mark = None
