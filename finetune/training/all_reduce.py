"""AllReduceTrainer: the same step in several processes, which share out each batch and add up their gradients.

Takes what a Trainer takes. Gives a Trainer for the chief, whose Controller decides, and `follow` for the other workers.
Next: `finetune.training.controller` (chief), `finetune.training.peer` (workers).

The processes run the same collectives in the same order. What isn't in the graph – how many steps a call does, and when
it is over – the chief says to the others by one more collective before each call.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from finetune.models.network import Network
from finetune.spec import TrainConfig
from finetune.training.footing import Footing
from finetune.training.strategies import peers_watched
from finetune.training.trainer import Stretch, Trainer
from zoo.errors import FailedPrecondition


class UnequalStart(FailedPrecondition):
    """The processes of a group would go on from different Checkpoints."""


class AllReduceTrainer(Trainer):
    """`worker`: 0 for the chief. Only the chief's `run` is called by a Controller; the others `follow`."""

    def __init__(
        self,
        *,
        network: Network,
        config: TrainConfig,
        strategy: tf.distribute.Strategy,
        worker: int,
        pieces: int = 1,
        footing: Footing | None = None,
    ) -> None:
        super().__init__(network=network, config=config, strategy=strategy, pieces=pieces, footing=footing)
        self._worker = worker
        self._sum = tf.function(self._summed)

    def begin(self) -> None:
        """On every process. Raises UnequalStart, PeerLost."""
        step = int(self.global_step.numpy())
        with peers_watched():
            chiefs = self._agree(step)
        if chiefs != step:
            raise UnequalStart(
                f"worker {self._worker} is at step {step}, the chief at step {chiefs}: is the job's folder shared?"
            )
        self._part_seeds(first=self._worker * self._pieces)

    def run(self, iterator: Any, num_steps: int) -> Stretch:
        """As Trainer.run, in step with the other processes. Raises PeerLost too."""
        with peers_watched():
            self._agree(num_steps)
            return super().run(iterator, num_steps)

    def follow(self, iterator: Any) -> int:
        """What another worker than the chief does: the steps that the chief says, until it says that it is over.

        Returns how many steps were done. Raises NonFiniteLoss, PeerLost.
        """
        done = 0
        with peers_watched():
            while num_steps := self._agree(0):
                done += super().run(iterator, num_steps).steps
        return done

    def finish(self) -> None:
        """The chief lets the others go."""
        with peers_watched():
            self._agree(0)

    def _agree(self, number: int) -> int:
        """The chief's number, on every process."""
        return int(self._sum(tf.constant(number, tf.int64)))

    def _summed(self, number: tf.Tensor) -> tf.Tensor:
        """The sum of the first replica's number and zeros."""

        def replica_sum() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            here = tf.where(tf.equal(context.replica_id_in_sync_group, 0), number, tf.zeros_like(number))
            return context.all_reduce(tf.distribute.ReduceOp.SUM, here)

        return self._strategy.experimental_local_results(self._strategy.run(replica_sum))[0]
