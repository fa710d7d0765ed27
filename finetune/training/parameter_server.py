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
        self._said: Any = None  # the shapes of what a step says, once it was traced
        self._remote_step = tf.function(self._step_of_worker)

    def _step_of_worker(self, features: Any, targets: Any, waited: tf.Tensor) -> tf.Tensor:
        """Everything that a step says as one float64 vector: each tensor of its own would be one more call back and
        forth."""
        said = self._one_step(features, targets, waited)
        self._said = tf.nest.map_structure(lambda value: tf.TensorSpec(value.shape, value.dtype), said)
        return tf.concat([tf.reshape(tf.cast(value, tf.float64), [-1]) for value in tf.nest.flatten(said)], axis=0)

    def _taken_apart(self, vector: np.ndarray) -> Any:
        """What `_one_step` gave: sums, metrics, norm and rate, bad step."""
        specs = tf.nest.flatten(self._said)
        ends = np.cumsum([spec.shape.num_elements() for spec in specs])
        parts = [part.reshape(spec.shape) for part, spec in zip(np.split(vector, ends[:-1]), specs, strict=True)]
        return tf.nest.pack_sequence_as(self._said, parts)

    def run(self, iterator: Any, num_steps: int) -> Stretch:
        """As Trainer.run; the order in which updates are applied is the workers'. Raises PeerLost (a parameter server
        has gone) too. The norm of the gradient and the rate are those of the last batch handed out."""
        before = int(self.global_step.numpy())
        numbers = BatchNumbers(before)
        out: list[tuple[int, Any]] = []
        with peers_watched():
            for _ in range(num_steps):
                number = numbers.take()
                begin = time.monotonic()
                features, targets = next(iterator)
                waited = tf.constant(time.monotonic() - begin, tf.float64)
                out.append((number, self._coordinator.schedule(self._remote_step, args=(features, targets, waited))))
            self._coordinator.join()
            said = []
            for number, result in out:
                said.append(self._taken_apart(result.fetch()))
                numbers.finish(number)
            # A batch that was done twice was counted twice.
            self.global_step.assign(numbers.num_finished)
        sums = sum(each[0] for each in said)
        metrics = {name: sum(each[1][name] for each in said) for name in said[0][1]}
        bad = next((int(each[3]) for each in said if int(each[3]) >= 0), -1)
        return self._stretch(num_steps, sums, metrics, said[-1][2], bad)
