"""ObservedTrainer: a Trainer of whose steps some are looked at. What is looked at is the same to the bit.

Takes a Trainer and Looks. Gives what a Trainer gives the Controller. Next: `finetune.training.controller`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import tensorflow as tf

from finetune.training.trainer import NonFiniteLoss, Stretch, Trainer

Batch = tuple[Any, Any]  # features, targets


class Look(Protocol):
    """One way to look at steps; a step is named by its number, 1 the first."""

    def due(self, step: int) -> int | None:
        """The first step from `step` on that it looks at; None for none."""

    def before(self, step: int, batch: Batch) -> None:
        """Called when the batch is there and the weights are those before the step."""

    def after(self, step: int, batch: Batch) -> None:
        """Called when the step is done."""

    def failed(self, step: int, batch: Batch, error: NonFiniteLoss) -> NonFiniteLoss:
        """Called when the step's loss or gradient was not finite; gives the error to raise, `error` or a better one."""

    def close(self) -> None:
        """Called once, when there are no more steps, however they ended."""


class ObservedTrainer:
    """Has what the Controller uses of a Trainer.

    `often`: most steps are looked at. Then those are handed over from Python, which is one trace more, but takes 20 ms
    less each: what TensorFlow needs to make and end an iterator.
    """

    def __init__(self, trainer: Trainer, looks: Sequence[Look], *, often: bool = False) -> None:
        self._trainer = trainer
        self._often = often
        self._looks = tuple(looks)

    @property
    def variables(self) -> Mapping[str, Mapping[str, Any]]:
        return self._trainer.variables

    @property
    def global_step(self) -> Any:
        return self._trainer.global_step

    @property
    def least_steps(self) -> int:
        return 1

    def begin(self) -> None:
        self._trainer.begin()

    def run(self, iterator: Any, num_steps: int) -> Stretch:
        """As `Trainer.run`."""
        step, end = int(self.global_step.numpy()) + 1, int(self.global_step.numpy()) + num_steps
        done: Stretch | None = None
        while step <= end:
            due = min((at for look in self._looks if (at := look.due(step)) is not None), default=end + 1)
            part = self._observed(step, iterator) if due == step else self._plain(iterator, min(due, end + 1) - step)
            done = part if done is None else done + part
            step += part.steps
        if done is None:
            raise ValueError(f"{num_steps} steps: expected at least 1")
        return done

    def close(self) -> None:
        for look in self._looks:
            look.close()

    def _plain(self, iterator: Any, num_steps: int) -> Stretch:
        return self._trainer.run(iterator, num_steps)

    def _observed(self, step: int, iterator: Any) -> Stretch:
        looks = [look for look in self._looks if look.due(step) == step]
        begin = time.monotonic()
        batch = next(iterator)
        waited = time.monotonic() - begin
        for look in looks:
            look.before(step, batch)
        try:
            stretch = self._trainer.run(again(batch, often=self._often), 1)
        except NonFiniteLoss as error:
            raised = error
            for look in looks:
                raised = look.failed(step, batch, raised)
            raise raised from None
        for look in looks:
            look.after(step, batch)
        known = stretch.waited_seconds == stretch.waited_seconds  # NaN: under op determinism nothing is timed
        return replace(stretch, waited_seconds=waited) if known else stretch


def again(batch: Batch, *, often: bool) -> Any:
    """An iterator over one batch; unless `often`, of the kind that gave it, so that no step is traced anew for it:
    TensorFlow's own gives tensors, a Python one arrays."""
    if not often and all(tf.is_tensor(leaf) for leaf in tf.nest.flatten(batch)):
        return iter(tf.data.Dataset.from_tensors(batch))
    return iter([batch])


class Every:
    """A Look at every n-th step; the base of those that look now and then. `first`: one step more."""

    def __init__(self, every: int, *, first: int | None = None) -> None:
        self._every = every
        self._first = first

    def due(self, step: int) -> int | None:
        if self._first is not None and step <= self._first:
            return self._first
        return -(-step // self._every) * self._every if self._every else None

    def before(self, step: int, batch: Batch) -> None:
        del step, batch

    def after(self, step: int, batch: Batch) -> None:
        del step, batch

    def failed(self, step: int, batch: Batch, error: NonFiniteLoss) -> NonFiniteLoss:
        del step, batch
        return error

    def close(self) -> None:
        pass
