"""Overfitting one batch: whether the network can learn a handful of examples by heart. If it can't, it learns nothing.

Takes a Network and one batch. Gives a verdict, and leaves every variable as it was. Next: the run itself.

A head whose loss doesn't reach what its metrics ask for, labels that don't belong to their images, a gradient that is
cut somewhere: all of them show here within seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from finetune.models.network import Network
from finetune.spec import TrainConfig
from finetune.training.observed import Batch
from finetune.training.trainer import Trainer
from finetune.training.weights import seed_states
from zoo.errors import FailedPrecondition

_LEARNT = 0.1  # of the first loss is "about 0": two captions of one photo in a batch leave a rest
_LOOKS = 10  # times that the loss is taken


class BatchNotLearnt(FailedPrecondition):
    """A network that can't learn a single batch by heart."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`losses`: step → the batch's mean loss as evaluation has it (no dropout, no smoothing)."""

    losses: dict[int, float]
    learnt: bool

    def __str__(self) -> str:
        first, (step, last) = self.losses[0], max(self.losses.items())
        said = f"one batch, again and again: loss {first:.4g} → {last:.4g} after {step} steps"
        return f"{said}, learnt by heart" if self.learnt else f"{said}, which is not about 0 (a tenth of the first)"

    def require(self) -> None:
        """Raises BatchNotLearnt."""
        if not self.learnt:
            raise BatchNotLearnt(
                str(self),
                hint="look at the labels, the head's loss and train.optimizer.learning_rate; more debug.overfit_steps "
                "where it was still falling",
            )


def overfit(
    network: Network, config: TrainConfig, batch: Batch, *, steps: int, strategy: tf.distribute.Strategy
) -> Verdict:
    """Trains on `batch` for up to `steps` steps, with the optimizer of the run at a constant rate.

    Raises NonFiniteLoss; then too every variable is as it was.
    """
    optimizer = config.optimizer.model_copy(
        update={"schedule": "constant", "warmup_steps": 0, "weight_decay": 0.0, "ema_decay": 0.0, "l2_sp": None}
    )
    plan = config.model_copy(update={"steps": steps, "optimizer": optimizer})
    owned = [variable for variables in network.groups.values() for variable in variables.values()]
    owned += list(seed_states(network.head).values())
    before = [variable.numpy() for variable in owned]
    try:
        trainer = Trainer(network=network, config=plan, strategy=strategy)
        iterator = iter(tf.data.Dataset.from_tensors(batch).repeat())
        loss = tf.function(lambda features, targets: _mean_loss(network, features, targets))
        losses = {0: float(loss(*batch))}
        each = max(1, steps // _LOOKS)
        done = 0
        while done < steps and losses[done] > _LEARNT * losses[0] / 2:
            count = min(each, steps - done)
            trainer.run(iterator, count)
            done += count
            losses[done] = float(loss(*batch))
    finally:
        for variable, value in zip(owned, before, strict=True):
            variable.assign(value)
    return Verdict(losses=losses, learnt=losses[done] <= _LEARNT * losses[0])


def _mean_loss(network: Network, features: Any, targets: Any) -> tf.Tensor:
    terms = network.loss(features, targets, training=False)
    return terms.loss_sum / tf.maximum(terms.weight_sum, 1e-12)
