"""The variables of a head by name: weights, and the states of random generators.

Takes a HeadLayer. Gives ordered dictionaries. Next: `finetune.training.trainer`, `finetune.training.checkpoints`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from finetune.models.heads.head import HeadLayer
from finetune.models.restore import named_variables


def head_weights(head: HeadLayer) -> dict[str, Any]:
    """The tensors of the head component: name → Keras variable, sorted by name."""
    return dict(sorted(named_variables(head).items()))


def seed_states(head: HeadLayer) -> dict[str, Any]:
    """The states of every SeedGenerator, numbered in the order in which the layers hold them.

    Keras names generators by a count over the whole process, so that their own names aren't stable.
    """
    weights = {id(variable) for variable in named_variables(head).values()}
    states = [variable for variable in head.variables if id(variable) not in weights]
    return {f"{i:04d}": state for i, state in enumerate(states)}


def as_arrays(weights: dict[str, Any]) -> dict[str, np.ndarray]:
    """The present values."""
    return {name: np.asarray(variable.numpy()) for name, variable in weights.items()}


def averaged_name(component: str, name: str) -> str:
    """What a variable's moving average is called: the head's as they always were."""
    return name if component == "head" else f"{component}/{name}"
