"""Checkpoints as TensorFlow 1 trainings leave them, written by its own Saver in its own graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

OPTIMIZERS: Mapping[str, Callable[[Any], Any]] = {
    "adadelta": lambda train: train.AdadeltaOptimizer(0.1),
    "adagrad": lambda train: train.AdagradOptimizer(0.1),
    "adam": lambda train: train.AdamOptimizer(0.1),
    "ftrl": lambda train: train.FtrlOptimizer(0.1),
    "momentum": lambda train: train.MomentumOptimizer(0.1, 0.9),
    "rmsprop": lambda train: train.RMSPropOptimizer(0.1, momentum=0.9, centered=True),
}


def save_training(
    folder: Path,
    *,
    version: int = 2,
    sharded: bool = False,
    optimizers: Iterable[str] = (),
    averages: bool = False,
    slices: int = 1,
    step: int = 7,
) -> dict[str, np.ndarray]:
    """Trains `Net/layer/weights` and `Net/layer/biases` for a step and saves everything as `model.ckpt-<step>`.

    Args:
        averages: keeps exponential moving averages of the two.
        slices: parts that the weights are made of.
    Returns:
        Every saved value but optimizer slots: name → value.
    """
    import tensorflow as tf

    v1 = tf.compat.v1
    folder.mkdir(parents=True, exist_ok=True)
    with tf.Graph().as_default(), v1.Session() as session:
        v1.set_random_seed(3)
        # Variables as TensorFlow 1 had them; the newer ones can't be saved in shards of V1.
        with v1.variable_scope("Net/layer", use_resource=False):
            partitioner = v1.fixed_size_partitioner(slices) if slices > 1 else None
            weights = v1.get_variable("weights", shape=(6, 4), partitioner=partitioner)
            with tf.device("/cpu:0"):  # a shard holds what has one device: weights have none
                biases = v1.get_variable("biases", initializer=np.arange(4, dtype=np.float32))
        whole = tf.convert_to_tensor(weights)
        loss = tf.reduce_sum(tf.square(whole)) + tf.reduce_sum(biases)
        counter = v1.train.get_or_create_global_step()
        steps = [OPTIMIZERS[name](v1.train).minimize(loss, global_step=counter) for name in optimizers]
        if averages:
            kept = v1.train.ExponentialMovingAverage(0.9)
            with tf.control_dependencies(steps):
                steps.append(kept.apply([weights, biases]))
        form = v1.train.SaverDef.V2 if version == 2 else v1.train.SaverDef.V1
        saver = v1.train.Saver(write_version=form, sharded=sharded)
        trained = v1.trainable_variables()  # averages begin with their values
        session.run(v1.variables_initializer(trained))
        session.run(v1.variables_initializer([each for each in v1.global_variables() if each not in trained]))
        session.run(steps)
        saver.save(session, str(folder / "model.ckpt"), global_step=step, write_meta_graph=True)
        values = {"Net/layer/weights": session.run(whole), "Net/layer/biases": session.run(biases)}
        if averages:
            values |= {
                f"{name}/ExponentialMovingAverage": session.run(kept.average(variable))
                for name, variable in (("Net/layer/weights", weights), ("Net/layer/biases", biases))
            }
        return {**values, "global_step": session.run(counter)}
