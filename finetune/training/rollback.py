"""Rollback: after a loss that is not finite, back to the last good Checkpoint, and on with a smaller rate.

Takes a NonFiniteLoss. Gives the step to go on from, or the error again when it happened too often. Next:
`finetune.training.controller`.

Where it goes back to is a function of the sequence of steps, never of time: to the newest Checkpoint of an evaluation
step, or to the one of step 0, which a run that may go back begins with. Those saved by the clock or on an interruption
are passed over, so that a run that was killed and resumed goes back to where an unbroken one does. How often it went
back, and the factor, are variables of the trainer and so in every later Checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from finetune.spec import TrainConfig
from finetune.training.best import is_evaluation_step
from finetune.training.checkpoints import Checkpoints
from finetune.training.trainer import NonFiniteLoss


class Rollback:
    """`variables`: the trainer's."""

    def __init__(
        self, *, train: TrainConfig, variables: Mapping[str, Mapping[str, Any]], checkpoints: Checkpoints
    ) -> None:
        self._train = train
        self._rule = train.on_nan
        self._variables = variables
        self._checkpoints = checkpoints

    @property
    def wanted(self) -> bool:
        return self._rule.action == "rollback"

    def go_back(self, error: NonFiniteLoss) -> tuple[int, str]:
        """The step that the variables are at now, and a sentence that says what happened.

        Raises `error`, or one like it that says how often training went back in vain.
        """
        if not self.wanted:
            raise error
        progress = self._variables["progress"]
        count, factor = (
            int(progress["rollbacks"].numpy()) + 1,
            float(progress["rate_factor"].numpy()) * self._rule.factor,
        )
        if count > self._rule.retries:
            raise NonFiniteLoss(
                f"{error.message}, after {self._rule.retries} rollbacks, the last with {factor / self._rule.factor:g} "
                "times the learning rate",
                hint="the data may be to blame: --set debug.check_numerics=true names the operation",
                **error.details,
            ) from error
        step = self._restore(error)
        progress["rollbacks"].assign(count)
        progress["rate_factor"].assign(factor)
        return step, (
            f"{error.message}: back to step {step}, on with {factor:g} times the learning rate "
            f"(rollback {count} of {self._rule.retries})"
        )

    def _restore(self, error: NonFiniteLoss) -> int:
        """Of the newest Checkpoint that may be gone back to and holds finite values; those after it are removed, which
        this run is going to write anew."""
        saved = self._checkpoints.steps()
        for step in reversed([each for each in saved if each == 0 or is_evaluation_step(each, self._train)]):
            self._checkpoints.restore(self._variables, step=step)
            if all(_is_finite(variable) for group in self._variables.values() for variable in group.values()):
                for later in saved:
                    if later > step:
                        self._checkpoints.remove(later)
                return step
        raise NonFiniteLoss(
            f"{error.message}; none of the Checkpoints in {self._checkpoints.root} holds finite values only",
            hint=error.hint,
            **error.details,
        ) from error


def _is_finite(variable: Any) -> bool:
    value = np.asarray(variable.numpy())
    return not np.issubdtype(value.dtype, np.floating) or bool(np.isfinite(value).all())
