"""Strategies: how the processes of a cluster become one TensorFlow strategy, and what happens when one of them is lost.

Takes a StrategyConfig, this process' role and the cluster. Gives a tf.distribute strategy, and for a parameter server a
scope that places variables by size. Next: `finetune.training.initialise`, `all_reduce`, `parameter_server`.

A strategy of several processes must be made before TensorFlow does anything else.
"""

from __future__ import annotations

import faulthandler
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from finetune.jobs.cluster import CHIEF, Cluster, PeerLost, require_free
from zoo.errors import FailedPrecondition, Unavailable

_LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError, tf.errors.DeadlineExceededError)


class PeersMissing(Unavailable):
    """Processes of the cluster that never came."""


class DevicesMissing(FailedPrecondition):
    """More devices are asked for than the machine has."""


@contextmanager
def peers_watched() -> Iterator[None]:
    """Turns the ways in which TensorFlow says that a peer has gone into PeerLost."""
    try:
        yield
    except _LOST as error:
        first = str(error).strip().partition("\n")[0]
        raise PeerLost(f"a process of the cluster was lost: {type(error).__name__}: {first}") from error


def one_device() -> tf.distribute.Strategy:
    return tf.distribute.OneDeviceStrategy("/gpu:0" if tf.config.list_logical_devices("GPU") else "/cpu:0")


def mirrored(num_devices: int) -> tf.distribute.MirroredStrategy:
    """Over `num_devices` devices of this machine: its GPUs (1: all of them), or where it has none its CPU in so many
    parts. Raises DevicesMissing."""
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * num_devices)
        return tf.distribute.MirroredStrategy([f"/cpu:{i}" for i in range(num_devices)])
    wanted = len(gpus) if num_devices == 1 else num_devices
    if wanted > len(gpus):
        raise DevicesMissing(
            f"strategy.workers is {wanted}, and this machine has {len(gpus)} GPUs",
            hint=f"--workers {len(gpus)}; --strategy all-reduce joins several machines",
        )
    return tf.distribute.MirroredStrategy([f"/gpu:{i}" for i in range(wanted)])


def share_cores(cluster: Cluster) -> None:
    """Processes of one machine share its cores; more threads than cores would only get in each other's way."""
    if cluster.here:
        working = len(cluster.workers) + (0 if cluster.ps else 1)
        tf.config.threading.set_intra_op_parallelism_threads(max(1, (os.cpu_count() or 1) // working))


def join_all_reduce(cluster: Cluster, role: str) -> tf.distribute.MultiWorkerMirroredStrategy:
    """MultiWorkerMirroredStrategy over gRPC rings; returns when every worker is there.

    The call of TensorFlow that waits for the others holds Python's lock and can't be broken off: no thread of ours runs
    meanwhile. So the chief enters it when all the others listen, which they do as soon as they have entered it; and the
    others are ended by whoever has started them when the chief gives up.

    Raises PortTaken, and in the chief PeersMissing.
    """
    require_free(cluster.address(role), role=role)
    if role == CHIEF:
        wait_for_servers(cluster)
    os.environ["TF_CONFIG"] = cluster.tf_config(role)
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=tf.distribute.experimental.CommunicationImplementation.RING
    )
    # One that listens and then hangs: this clock needs no lock. It ends the process with 1 and its traceback.
    faulthandler.dump_traceback_later(cluster.join_seconds, exit=True)
    try:
        return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    finally:
        faulthandler.cancel_dump_traceback_later()


def peers_missing(cluster: Cluster, roles: Sequence[str], seconds: float) -> PeersMissing:
    absent = cluster.missing(roles)
    who = ", ".join(absent) or f"nobody by their ports, but one of {', '.join(roles)} didn't join"
    return PeersMissing(
        f"waited {seconds:.0f} s for the cluster; missing: {who}",
        hint="start `finetune worker` for each of them, or look at its log; addresses must be the same everywhere",
    )


def wait_for_servers(cluster: Cluster) -> None:
    """Until every worker and ps listens. Raises PeersMissing naming those that don't."""
    deadline = time.monotonic() + cluster.join_seconds
    while cluster.missing(cluster.peers):
        if time.monotonic() > deadline:
            raise peers_missing(cluster, cluster.peers, cluster.join_seconds)
        time.sleep(0.1)


def coordinate(cluster: Cluster) -> tf.distribute.ParameterServerStrategy:
    """ParameterServerStrategy, in the coordinator. Raises PeersMissing, PortTaken."""
    require_free(cluster.chief, role=CHIEF)
    wait_for_servers(cluster)
    os.environ["TF_CONFIG"] = cluster.tf_config(CHIEF)
    return tf.distribute.ParameterServerStrategy(tf.distribute.cluster_resolver.TFConfigClusterResolver())


def serve(cluster: Cluster, role: str) -> Any:
    """A TensorFlow server in which the coordinator puts variables (ps) or runs steps (worker). Raises PortTaken."""
    require_free(cluster.address(role), role=role)
    os.environ["TF_CONFIG"] = cluster.tf_config(role)
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    return tf.distribute.Server(
        resolver.cluster_spec(), job_name=resolver.task_type, task_index=resolver.task_id, protocol="grpc", start=True
    )


class Placement:
    """Variables over parameter servers, each on the one that holds the fewest bytes so far.

    TensorFlow's own round robin counts variables, not bytes. A variable stays whole: one that alone is most of the
    model makes its server hold that much (Keras 3 variables can't be sharded).
    """

    def __init__(self, strategy: tf.distribute.Strategy, num_ps: int) -> None:
        self.bytes = [0] * num_ps
        with strategy.scope():  # one on each server, in turn
            self._anchors = [tf.Variable(0.0, trainable=False, name=f"anchor_{i}") for i in range(num_ps)]

    def scope(self) -> AbstractContextManager[None]:
        """To be entered inside the strategy's scope."""
        return tf.variable_creator_scope(self._create)

    def _create(self, next_creator: Callable[..., Any], **arguments: Any) -> Any:
        least = self.bytes.index(min(self.bytes))
        variable = next_creator(**{**arguments, "colocate_with": self._anchors[least]})
        self.bytes[least] += int(np.prod(variable.shape)) * variable.dtype.size
        return variable
