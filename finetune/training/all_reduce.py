"""AllReduceTrainer: the same step in several processes, which share out each batch and add up their gradients.

Takes what a Trainer takes. Gives a Trainer for the chief, whose Controller decides, and `follow` for the other workers.
Next: `finetune.training.controller` (chief), `finetune.training.run` (workers).

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

_SEED_STRIDE = 1_000_003  # between the random generators of two replicas


class UnequalStart(FailedPrecondition):
    """The processes of a group would go on from different Checkpoints."""


class AllReduceTrainer(Trainer):
    """`replica`: 0 for the chief. Only the chief's `run` is called by a Controller; the others `follow`."""

    def __init__(
        self,
        *,
        network: Network,
        config: TrainConfig,
        strategy: tf.distribute.Strategy,
        replica: int,
        footing: Footing | None = None,
    ) -> None:
        super().__init__(network=network, config=config, strategy=strategy, footing=footing)
        self._replica = replica
        self._sum = tf.function(self._summed)

    def begin(self) -> None:
        """To be called on every process when its variables are set, and before the first step.

        Replicas draw different random numbers: with the same ones a dropped unit would be dropped for a whole batch.
        Raises UnequalStart, PeerLost.
        """
        step = int(self.global_step.numpy())
        with peers_watched():
            chiefs = self._agree(step)
        if chiefs != step:
            raise UnequalStart(
                f"replica {self._replica} is at step {step}, the chief at step {chiefs}: is the job's folder shared?"
            )
        for state in self.variables["seeds"].values():
            state.assign(state.value + tf.constant([self._replica * _SEED_STRIDE, 0], state.value.dtype))

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
        return int(self._sum(tf.constant(number if self._replica == 0 else 0, tf.int64)))

    def _summed(self, number: tf.Tensor) -> tf.Tensor:
        def replica_sum() -> tf.Tensor:
            here = tf.identity(number)  # a collective goes by the device of what it is given
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, here)

        return self._strategy.experimental_local_results(self._strategy.run(replica_sum))[0]
