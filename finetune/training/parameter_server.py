"""ParameterServerTrainer: batches handed out to workers, which apply their updates to shared variables as they come.

Takes what a Trainer takes, in the coordinator of a cluster. Gives a Trainer for the Controller. Next:
`finetune.training.controller`.

Asynchronous within a call of `run`; at its end every batch that was handed out is finished. So a Checkpoint is of one
moment, and of a whole number of batches: the lowest unfinished batch is its global step, and none above it is done.
A batch whose worker died is done again by another one (its update may then have been applied twice).
"""

from __future__ import annotations

import time
from typing import Any

import tensorflow as tf

from finetune.data.batch_numbers import BatchNumbers
from finetune.models.network import Network
from finetune.spec import TrainConfig
from finetune.training.footing import Footing
from finetune.training.strategies import peers_watched
from finetune.training.trainer import Stretch, Trainer

_ROUND = 4  # batches a worker and call, so that waiting for the last one costs little


class ParameterServerTrainer(Trainer):
    """`num_workers`: of the cluster."""

    def __init__(
        self,
        *,
        network: Network,
        config: TrainConfig,
        strategy: tf.distribute.Strategy,
        num_workers: int,
        footing: Footing | None = None,
    ) -> None:
        super().__init__(network=network, config=config, strategy=strategy, footing=footing)
        self.least_steps = _ROUND * num_workers
        self._coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
        self._remote_step = tf.function(self._step_of_worker)

    def _step_of_worker(self, features: Any, targets: Any) -> Any:
        return self._one_step(features, targets, tf.constant(0.0, tf.float64))

    def run(self, iterator: Any, num_steps: int) -> Stretch:
        """As Trainer.run; the order in which updates are applied is the workers'. Raises PeerLost (a parameter server
        has gone) too. The norm of the gradient and the rate are those of the last batch handed out."""
        before = int(self.global_step.numpy())
        numbers = BatchNumbers(before)
        out: list[tuple[int, Any]] = []
        waited = 0.0
        with peers_watched():
            for _ in range(num_steps):
                number = numbers.take()
                begin = time.monotonic()
                features, targets = next(iterator)
                waited += time.monotonic() - begin
                out.append((number, self._coordinator.schedule(self._remote_step, args=(features, targets))))
            self._coordinator.join()
            results = []
            for number, result in out:
                results.append(result.fetch())
                numbers.finish(number)
            # A batch that was done twice was counted twice.
            self.global_step.assign(numbers.num_finished)
        sums = sum(result[0] for result in results)
        sums[3] = waited
        metrics = {name: sum(result[1][name] for result in results) for name in results[0][1]}
        bad = next((int(result[3]) for result in results if int(result[3]) >= 0), -1)
        return self._stretch(num_steps, sums, metrics, results[-1][2], bad)
