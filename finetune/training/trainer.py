"""Trainer: our own training step, compiled once, run many times inside one tf.function call.

Takes a Network, its optimizer settings and an iterator of batches. Gives updated variables and the sums of a stretch of
steps. Next: `finetune.training.checkpoints` (what to save), `finetune.training.controller` (when).

`Model.fit` is not used: it fails under multi-worker strategies with Keras 3, and it can't resume exactly.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from finetune.models.heads.head import FollowsSteps
from finetune.models.network import Network
from finetune.spec import L2SP, TrainConfig
from finetune.training.footing import Footing
from finetune.training.loss_scale import LossScale
from finetune.training.micro_batches import summed
from finetune.training.optimizers import ema_decay, learning_rate
from finetune.training.rate_groups import RateGroups
from finetune.training.weights import averaged_name, seed_states
from zoo.errors import FailedPrecondition, InvalidArgument

_SEED_STRIDE = 1_000_003  # between the random generators of two replicas


class NothingToTrain(InvalidArgument):
    """The network has no trainable variable."""


class NonFiniteLoss(FailedPrecondition):
    """Training went numerically astray; the last good Checkpoint is kept."""


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """What a number of consecutive steps added up to. Sums, so that stretches can be added."""

    steps: int
    examples: int  # rows of positive weight
    loss_sum: float
    weight_sum: float
    metrics: Mapping[str, tuple[float, float]]  # name → (sum, weight)
    gradient_norm: float  # of the last step, before clipping
    learning_rate: float  # of the last step
    waited_seconds: float  # spent waiting for input; NaN when not measured
    left_out: int = 0  # updates, where gradients overflowed in float16

    @property
    def loss(self) -> float:
        return self.loss_sum / self.weight_sum if self.weight_sum else float("nan")

    def __add__(self, later: Stretch) -> Stretch:
        return Stretch(
            steps=self.steps + later.steps,
            examples=self.examples + later.examples,
            loss_sum=self.loss_sum + later.loss_sum,
            weight_sum=self.weight_sum + later.weight_sum,
            metrics={k: (self.metrics[k][0] + v[0], self.metrics[k][1] + v[1]) for k, v in later.metrics.items()},
            gradient_norm=later.gradient_norm,
            learning_rate=later.learning_rate,
            waited_seconds=self.waited_seconds + later.waited_seconds,
            left_out=self.left_out + later.left_out,
        )


class Trainer:
    """Owns every variable that training changes, by name, in `variables`.

    `variables` has a group for each component that is trained (`head`, and `backbone` behind the cut), with all its
    weights; `ema` (the moving averages, by `component/name`; of the head by name alone; empty without), `optimizer`,
    `seeds` (SeedGenerator states, which `tf.train.Checkpoint(layer)` leaves out) and `progress` (`global_step`; where
    train.on_nan lets a run go back, also `rollbacks`, how often it did, and `rate_factor`, what the rates are times;
    in float16 also those of the LossScale).
    `least_steps`: fewer steps a call would be wasteful. `pieces`: how many replicas of this process take a piece each
    of the batches that it is given; their rows must be a multiple of it.
    """

    least_steps = 1

    def __init__(
        self,
        *,
        network: Network,
        config: TrainConfig,
        strategy: tf.distribute.Strategy,
        pieces: int = 1,
        footing: Footing | None = None,
    ) -> None:
        """`config`: with the rate and schedule of the stage that `footing` is of."""
        if not network.trainable_variables:
            raise NothingToTrain("the head has no trainable variable, so that training would change nothing")
        self._network = network
        self._config = config
        self._strategy = strategy
        self._footing = footing or Footing()
        self._pieces = pieces
        with strategy.scope():
            # The optimizer's own count loses updates under a parameter server; this one is added to atomically.
            self.global_step = tf.Variable(
                0, dtype=tf.int64, name="global_step", aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA
            )
            self._weights = {
                averaged_name(component, name): variable
                for component, variables in network.groups.items()
                for name, variable in variables.items()
            }
            names = {id(variable): name for name, variable in self._weights.items()}
            self._names = [names[id(variable)] for variable in network.trainable_variables]
            self._optimizer = RateGroups(
                config.optimizer,
                list(network.trainable_variables),
                since=[self._footing.since.get(name, 0) for name in self._names],
                factors=[self._footing.factors.get(name, 1.0) for name in self._names],
            )
            self._ema = self._make_ema()
            self._progress = {"global_step": self.global_step}
            if config.on_nan.action == "rollback":
                first = tf.VariableAggregation.ONLY_FIRST_REPLICA
                self._progress["rollbacks"] = tf.Variable(0, dtype=tf.int64, name="rollbacks", aggregation=first)
                self._progress["rate_factor"] = tf.Variable(1.0, name="rate_factor", aggregation=first)
            self._scale = LossScale() if config.precision == "mixed_float16" else None
            if self._scale is not None:
                self._progress |= self._scale.variables
            self._anchors = {
                name: tf.Variable(value, trainable=False, name=f"anchor/{name}")
                for name, value in self._footing.anchors.items()
            }
        if isinstance(network.head, FollowsSteps):
            network.head.follow_steps(self.global_step)
        self.variables: dict[str, dict[str, Any]] = {
            **{component: dict(variables) for component, variables in network.groups.items()},
            "ema": self._ema,
            "optimizer": {f"{i:04d}": variable for i, variable in enumerate(self._optimizer.variables)},
            "seeds": seed_states(network.head),
            "progress": dict(self._progress),
        }
        self._run = tf.function(self._steps)
        self._run_one = tf.function(self._one_step)

    def _make_ema(self) -> dict[str, tf.Variable]:
        if not self._config.optimizer.ema_decay:
            return {}
        trainable = {id(variable) for variable in self._network.trainable_variables}
        return {
            name: tf.Variable(variable.value, trainable=False, name=f"ema/{name}")
            for name, variable in self._weights.items()
            if id(variable) in trainable
        }

    @property
    def strategy(self) -> tf.distribute.Strategy:
        return self._strategy

    def start_averages(self) -> None:
        """Sets the moving averages to the present weights; to be called when weights were put in from outside."""
        for name, average in self._ema.items():
            average.assign(self._weights[name].value)

    def begin(self) -> None:
        """To be called when the variables are set and before the first step."""
        self._part_seeds(first=0)

    def _part_seeds(self, *, first: int) -> None:
        """Replicas draw different random numbers: with the same ones a dropped unit would be dropped for a whole batch.

        `first`: of this process' replicas, counted over all. Those of replica 0 are as they were, and are what a
        Checkpoint keeps.
        """
        for state in self.variables["seeds"].values():
            for i, own in enumerate(self._strategy.experimental_local_results(state.value)):
                if first + i:
                    own.assign(own + tf.constant([(first + i) * _SEED_STRIDE, 0], own.dtype))

    def finish(self) -> None:
        """To be called after the last step, likewise."""

    def carry_on(self, before: Trainer) -> None:
        """Takes over everything of the stage before: the step, the weights, averages and the optimizer's slots of what
        was trained there. What is newly trained begins with its present weights, as its average, and without slots."""
        self.start_averages()
        self._optimizer.carry_on(before._optimizer)
        for group, variables in self.variables.items():
            old = before.variables.get(group, {}) if group != "optimizer" else {}
            for name, variable in variables.items():
                if name in old and old[name] is not variable:
                    variable.assign(old[name].numpy())

    def run(self, iterator: Any, num_steps: int) -> Stretch:
        """Does `num_steps` steps. Raises NonFiniteLoss naming the first step whose loss or gradient isn't finite.

        After NonFiniteLoss the variables are spoilt: go back to a Checkpoint.

        `iterator`: of a tf.data.Dataset, then all steps are one call of a graph; or a Python one, a call a step, for
        batches of images, whose steps are long.
        """
        before = int(self.global_step.numpy())
        if hasattr(iterator, "get_next"):  # TensorFlow's own, distributed ones too
            sums, metrics, last, bad_step = self._run(iterator, tf.constant(num_steps, tf.int64))
        else:
            sums, metrics, last, bad_step = self._fed_steps(iterator, num_steps)
        return self._stretch(int(self.global_step.numpy()) - before, sums.numpy(), metrics, last, int(bad_step))

    def _stretch(self, steps: int, sums: Any, metrics: Mapping[str, Any], last: Any, bad: int) -> Stretch:
        """Raises NonFiniteLoss."""
        if bad >= 0:
            raise NonFiniteLoss(
                f"the loss or its gradient was not finite at step {bad} of {self._config.steps}",
                hint="lower train.optimizer.learning_rate, set train.optimizer.clip_norm or look at the data",
                step=str(bad),
            )
        loss_sum, weight_sum, examples, waited, left_out = (float(x) for x in sums)
        return Stretch(
            steps=steps,
            examples=int(examples),
            loss_sum=loss_sum,
            weight_sum=weight_sum,
            metrics={name: (float(pair[0]), float(pair[1])) for name, pair in metrics.items()},
            gradient_norm=float(last[0]),
            learning_rate=float(last[1]),
            waited_seconds=waited,
            left_out=int(left_out),
        )

    def graph(self, iterator: Any) -> tf.Graph:
        """The graph of a step, for people: scopes `backbone`, `head`, `gradients`, `update`. As for `run`, one batch of
        `iterator` is used up; the graph is the one that runs, where there is one."""
        if hasattr(iterator, "get_next"):
            return self._run.get_concrete_function(iterator, tf.constant(1, tf.int64)).graph
        features, targets = next(iterator)
        return self._run_one.get_concrete_function(features, targets, tf.constant(0.0, tf.float64)).graph

    def _fed_steps(self, iterator: Any, num_steps: int) -> Any:
        """As `_steps`, with batches that Python hands in."""
        sums: Any = 0.0
        metrics: dict[str, Any] = {}
        last, bad_step = None, tf.constant(-1, tf.int64)
        for _ in range(num_steps):
            begin = time.monotonic()
            features, targets = next(iterator)
            waited = tf.constant(time.monotonic() - begin, tf.float64)
            more, more_metrics, last, bad = self._run_one(features, targets, waited)
            sums = sums + more
            metrics = {name: metrics[name] + pair if metrics else pair for name, pair in more_metrics.items()}
            bad_step = bad_step if int(bad_step) >= 0 else bad
        return sums, metrics, last, bad_step

    def _steps(self, iterator: Any, num_steps: tf.Tensor) -> Any:
        """`num_steps` is a tensor so that one trace serves stretches of any length; the first step runs outside the
        loop because it shows the names of the metrics that the loop carries."""
        sums, metrics, last, bad_step = self._timed_step(iterator)
        for _ in tf.range(num_steps - 1):
            more, more_metrics, last, bad = self._timed_step(iterator)
            sums += more
            metrics = {name: metrics[name] + more_metrics[name] for name in metrics}
            bad_step = tf.where(bad_step >= 0, bad_step, bad)
        return sums, metrics, last, bad_step

    def _timed_step(self, iterator: Any) -> Any:
        (features, targets), waited = self._next_batch(iterator)
        return self._one_step(features, targets, waited)

    def _one_step(self, features: Any, targets: Any, waited: tf.Tensor) -> Any:
        results = self._strategy.run(self._replica_step, args=(features, targets))
        # Everything in them is reduced: the same on every replica.
        first = tf.nest.map_structure(lambda x: self._strategy.experimental_local_results(x)[0], results)
        loss_sum, weight_sum, examples, metrics, norm, rate, bad, left_out = first
        sums = tf.stack([tf.cast(x, tf.float64) for x in (loss_sum, weight_sum, examples, waited, left_out)])
        return sums, metrics, tf.stack([norm, rate]), bad

    def _next_batch(self, iterator: Any) -> tuple[Any, Any]:
        """The batch, and the seconds it was waited for: NaN under op determinism, where TensorFlow has no clock."""
        if self._config.deterministic:
            return next(iterator), tf.constant(float("nan"), tf.float64)
        with tf.control_dependencies([self.global_step.read_value()]):  # the step before is done
            begin = tf.timestamp()
        with tf.control_dependencies([begin]):
            batch = next(iterator)
        with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)):
            return batch, tf.timestamp() - begin

    def _replica_step(self, features: Any, targets: Any) -> Any:
        """One replica's part of a step: reduce, then clip, then apply.

        Sums of losses are differentiated and summed over replicas before they are divided by the weight of the whole
        batch, so that any grouping of examples into replicas gives the update of one big batch.
        """
        config = self._config.optimizer
        if self._pieces > 1:
            features, targets = self._piece(features, targets)
        variables = list(self._network.trainable_variables)
        names: list[str] = []  # of the metrics, once the loss was traced

        def sums(features: Any, targets: Any) -> list[Any]:
            with tf.GradientTape() as tape:
                terms = self._network.loss(features, targets, training=True)
                scaled = terms.loss_sum if self._scale is None else terms.loss_sum * self._scale.factor
            with tf.name_scope("gradients"):
                gradients = tape.gradient(scaled, [v.value for v in variables], unconnected_gradients="zero")
            gradients = [tf.convert_to_tensor(g) for g in gradients]  # embeddings give IndexedSlices
            examples = tf.reduce_sum(tf.cast(targets["weight"] > 0, tf.float32))
            names[:] = sorted(terms.metrics)
            pairs = [tf.stack([tf.cast(x, tf.float32) for x in terms.metrics[name]]) for name in names]
            return [gradients, terms.loss_sum, terms.weight_sum, examples, tf.stack(pairs or [[0.0]])]

        context = tf.distribute.get_replica_context()
        gradients, loss_sum, weight_sum, examples, pairs = context.all_reduce(
            tf.distribute.ReduceOp.SUM, summed(sums, features, targets, config.accumulate)
        )
        if self._scale is not None:
            gradients = [g / self._scale.factor for g in gradients]
        gradients = [g / tf.maximum(weight_sum, 1e-12) for g in gradients]
        if config.l2_sp is not None:
            gradients = self._penalised(config.l2_sp, gradients, variables)
        norm = tf.linalg.global_norm(gradients)
        if config.clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, config.clip_norm, use_norm=norm)
        finite = tf.math.is_finite(loss_sum) & tf.math.is_finite(norm)
        left_out: Any = tf.constant(False)
        with tf.name_scope("update"):
            if self._scale is None:
                rate = self._apply(gradients)
            else:
                left_out = tf.math.is_finite(loss_sum) & ~tf.math.is_finite(norm) & ~self._scale.exhausted()
                rate = tf.cond(left_out, self._rate, lambda: self._apply(gradients))
                self._scale.adapt(finite)
        step = self.global_step.assign_add(1)
        bad = tf.where(finite | left_out, tf.constant(-1, tf.int64), step)
        means = {name: pairs[i] for i, name in enumerate(names)}
        return loss_sum, weight_sum, examples, means, norm, rate, bad, left_out

    def _rate(self) -> tf.Tensor:
        step, first = self.global_step.read_value(), self._footing.first_step
        rate = learning_rate(self._config.optimizer, steps=self._config.steps, step=step - first if first else step)
        if "rate_factor" in self._progress:
            rate *= self._progress["rate_factor"].read_value()
        return rate

    def _piece(self, features: Any, targets: Any) -> Any:
        """This replica's rows of the process' batch."""
        replica = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group, tf.int32) % self._pieces

        def rows(value: Any) -> tf.Tensor:
            value = tf.convert_to_tensor(value)
            count = value.shape[0] // self._pieces
            return tf.ensure_shape(value[replica * count : (replica + 1) * count], [count, *value.shape[1:]])

        return tf.nest.map_structure(rows, (features, targets))

    def _penalised(self, l2_sp: L2SP, gradients: list[tf.Tensor], variables: list[keras.Variable]) -> list[tf.Tensor]:
        """With the gradient of the penalty, which is a part of the objective and so is clipped with the rest; the loss
        that is reported is the data's alone. Biases and the like aren't pulled, as by weight decay."""
        result = []
        for name, gradient, variable in zip(self._names, gradients, variables, strict=True):
            if name in self._anchors:
                gradient += l2_sp.alpha * (variable.value - self._anchors[name])
            elif not name.startswith("backbone/") and len(variable.shape) >= 2:
                gradient += l2_sp.beta * variable.value
            result.append(gradient)
        return result

    def _apply(self, gradients: list[tf.Tensor]) -> tf.Tensor:
        config = self._config.optimizer
        step = self.global_step.read_value()
        rate = self._rate()
        self._optimizer.apply(gradients, rate=rate, step=step)
        decay = ema_decay(config.ema_decay, step)
        for name, average in self._ema.items():
            average.assign(decay * average + (1.0 - decay) * self._weights[name].value)
        return rate
