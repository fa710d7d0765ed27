"""Histograms: weights, gradients and updates by layer group, and the graph of a step.

Takes some of a Trainer's steps. Gives histograms `weights/GROUP`, `gradients/GROUP`, scalars `gradient_norm/GROUP`,
`update_norm/GROUP`, `weight_norm/GROUP`, and the graph. Next: TensorBoard.

A layer group is a component and the first part of its tensors' names: `head/logits`, `backbone/Mixed_7a`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np

from finetune.models.network import Network
from finetune.training.observed import Batch, Every
from finetune.training.probe import Probe
from finetune.training.summaries import Summaries

_SPARING = 200  # times the duration of a look that lie between two


class Histograms(Every):
    """A Look. Each costs a step more (forward and backward, copies of the trained weights) and some 30 ms.

    `sparing_until`: the run's last step, where the looks may cost half a percent of the time at most. Then those of the
    first two of `every` so many steps and that of the last are taken, and others when enough time has gone by.
    """

    def __init__(
        self, network: Network, probe: Probe, summaries: Summaries, *, every: int, sparing_until: int | None = None
    ) -> None:
        super().__init__(every)
        self._last = sparing_until
        self._not_before = -math.inf
        self._taken = 0
        self._began = 0.0
        self._probe = probe
        self._summaries = summaries
        self._trainable = network.trainable_variables
        self._groups = layer_groups(network)
        self._weights: list[np.ndarray] = []
        self._gradients: list[np.ndarray] = []

    def due(self, step: int) -> int | None:
        at = super().due(step)
        if self._last is None or at is None:
            return at
        if step > self._last:
            return None
        return min(at, self._last) if time.monotonic() >= self._not_before else self._last

    def before(self, step: int, batch: Batch) -> None:
        self._began = time.monotonic()
        self._gradients = self._probe.gradients(*batch)
        self._weights = [variable.numpy() for variable in self._trainable]

    def after(self, step: int, batch: Batch) -> None:
        weights = [variable.numpy() for variable in self._trainable]
        scalars: dict[str, float] = {}
        histograms: dict[str, np.ndarray] = {}
        for group, places in self._groups.items():
            now, before = _flat(weights, places), _flat(self._weights, places)
            gradient = _flat(self._gradients, places)
            histograms |= {f"weights/{group}": now, f"gradients/{group}": gradient}
            scalars |= {
                f"weight_norm/{group}": float(np.linalg.norm(now)),
                f"gradient_norm/{group}": float(np.linalg.norm(gradient)),
                f"update_norm/{group}": float(np.linalg.norm(now - before)),
            }
        self._weights, self._gradients = [], []
        self._summaries.histograms(step, histograms)
        self._summaries.scalars(step, scalars)
        self._taken += 1
        if self._taken > 1:  # the first one's time was spent on tracing
            ended = time.monotonic()
            self._not_before = ended + _SPARING * (ended - self._began)


def layer_groups(network: Network) -> dict[str, list[int]]:
    """Group → places of its variables in `network.trainable_variables`."""
    names = {
        id(variable): f"{component}/{name.partition('/')[0]}"
        for component, variables in network.groups.items()
        for name, variable in variables.items()
    }
    groups: dict[str, list[int]] = {}
    for place, variable in enumerate(network.trainable_variables):
        groups.setdefault(names[id(variable)], []).append(place)
    return groups


def _flat(arrays: Sequence[np.ndarray], places: Sequence[int]) -> np.ndarray:
    return np.concatenate([arrays[place].ravel() for place in places])
