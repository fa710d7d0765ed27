"""Footing: what a stage's training stands on: since when each variable is trained, how fast, where it is pulled to.

Takes the stages of a spec and the stage's network. Gives a Footing. Next: `finetune.training.trainer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from finetune.models.cuts import first_endpoint
from finetune.models.network import Network, ThawedNetwork
from finetune.training.stages import Stage
from zoo.architectures.facts import ArchitectureFacts


@dataclass(frozen=True, kw_only=True)
class Footing:
    """Variables by `averaged_name` (`backbone/…`; the head's by name alone).

    Attributes:
        first_step: the global step from which schedules count.
        since: variable → the global step from which on it is trained, where that isn't 0. An optimizer corrects its
            moments by how many updates they have seen: those of newly trained variables have seen none.
        factors: variable → factor of its learning rate, where that isn't 1.
        anchors: variable → where `train.optimizer.l2_sp` pulls it to.
    """

    first_step: int = 0
    since: Mapping[str, int] = field(default_factory=dict)
    factors: Mapping[str, float] = field(default_factory=dict)
    anchors: Mapping[str, np.ndarray] = field(default_factory=dict)


def footing_of(stage: Stage, stages: Sequence[Stage], network: Network, facts: ArchitectureFacts) -> Footing:
    """`network`: the backbone in it as it was before step 1; its matrices and kernels are the anchors.

    The rate of a layer is train.optimizer.layer_decay ^ (endpoints from it to the head), the head's own is undiminished
    (discriminative fine-tuning, arXiv:1801.06146; layer-wise decay of BEiT, arXiv:2106.08254).
    """
    if not isinstance(network, ThawedNetwork):
        return Footing(first_step=stage.first_step)
    optimizer = stage.train.optimizer
    begun = [
        (place, each.first_step)
        for each in stages
        if (place := first_endpoint(facts, each.train_from)) is not None and each.number <= stage.number
    ]
    decayed = optimizer.layer_decay != 1.0
    places, count = network.places() if decayed or any(step for _, step in begun) else ({}, 0)
    since = {name: next(step for first, step in begun if place >= first) for name, place in places.items()}
    factors = {name: optimizer.layer_decay ** (count - place) for name, place in places.items()} if decayed else {}
    return Footing(
        first_step=stage.first_step,
        since={f"backbone/{name}": step for name, step in since.items() if step},
        factors={f"backbone/{name}": factor for name, factor in factors.items()},
        anchors={
            f"backbone/{name}": variable.numpy()
            for name, variable in network.groups["backbone"].items()
            if optimizer.l2_sp is not None and len(variable.shape) >= 2
        },
    )
