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

import numpy as np
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
        self._metric_names: list[str] = []  # once a step was traced
        self._remote_step = tf.function(self._step_of_worker)

    def _step_of_worker(self, features: Any, targets: Any) -> tf.Tensor:
        """Everything that a step says as one float64 vector: each tensor of its own would be one more call back and
        forth. First the sums, last norm, rate and the bad step, between them the metrics' pairs by name."""
        sums, metrics, last, bad = self._one_step(features, targets, tf.constant(0.0, tf.float64))
        self._metric_names = sorted(metrics)
        pairs = [tf.cast(metrics[name], tf.float64) for name in self._metric_names]
        end = [tf.cast(last, tf.float64), tf.cast(bad, tf.float64)[tf.newaxis]]
        return tf.concat([sums, *pairs, *end], axis=0)

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
            rows = []
            for number, result in out:
                rows.append(result.fetch())
                numbers.finish(number)
            # A batch that was done twice was counted twice.
            self.global_step.assign(numbers.num_finished)
        result_SX = np.stack(rows)
        sums, last = result_SX[:, :4].sum(axis=0), result_SX[-1, -3:-1]
        sums[3] = waited
        pairs = result_SX[:, 4:-3].sum(axis=0).reshape(-1, 2)
        bad = next((int(step) for step in result_SX[:, -1] if step >= 0), -1)
        return self._stretch(num_steps, sums, dict(zip(self._metric_names, pairs, strict=True)), last, bad)
