"""Rate groups: one Keras optimizer for the variables that share a learning rate and a first step.

Takes variables with the factor of their rate and the step since which each is trained. Gives one thing to apply
gradients with. Next: `finetune.training.trainer`.

Keras has one rate and one count of updates an optimizer. A factor on the gradient instead would do nothing under Adam,
which divides by the gradient's size; and the moments of a variable that joins at step 1000 would be taken for settled
ones, so that its first updates were up to six times too large.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from finetune.spec import OptimizerConfig
from finetune.training.optimizers import make_optimizer
from zoo.errors import Internal

_OWN = 2  # variables of a Keras optimizer that are no slots: its count of updates and its rate


class RateGroups:
    """`variables`: of every optimizer, in a fixed order. With one group it is the optimizer alone, to the bit."""

    def __init__(
        self, config: OptimizerConfig, variables: Sequence[Any], *, since: Sequence[int], factors: Sequence[float]
    ) -> None:
        """Each of `variables` with its step and its factor."""
        self._places: dict[tuple[int, float], list[int]] = {}
        for place, key in enumerate(zip(since, factors, strict=True)):
            self._places.setdefault(key, []).append(place)
        self._optimizers = {
            key: make_optimizer(config, [variables[place] for place in places]) for key, places in self._places.items()
        }
        self._trained = list(variables)
        self.variables: list[Any] = [each for one in self._optimizers.values() for each in one.variables]

    def apply(self, gradients: Sequence[tf.Tensor], *, rate: tf.Tensor, step: tf.Tensor) -> None:
        """The update that takes the global step from `step` to `step` + 1. `gradients`: one a variable."""
        for key, optimizer in self._optimizers.items():
            since, factor = key
            optimizer.learning_rate.assign(rate if factor == 1.0 else rate * factor)
            optimizer.iterations.assign(step - since if since else step)  # Adam's correction reads it
            places = self._places[key]
            optimizer.apply([gradients[place] for place in places], [self._trained[place] for place in places])

    def carry_on(self, before: RateGroups) -> None:
        """Takes over the slots (momentum and the like) of variables that were trained before; those of new ones stay
        zero."""
        slots, old = self._slots(), before._slots()
        lost = sorted(old.keys() - slots.keys())
        if lost:
            raise Internal(f"{len(lost)} slots of the stage before have no place, among them {lost[0]}")
        for name, slot in old.items():
            slots[name].assign(slot.value)

    def _slots(self) -> dict[str, Any]:
        """By the names that Keras makes of the variable's path and the kind of slot."""
        found = [slot for one in self._optimizers.values() for slot in one.variables[_OWN:]]
        named = {str(slot.name): slot for slot in found}
        if len(named) != len(found):
            raise Internal("two of the optimizer's slots have one name")
        return named
