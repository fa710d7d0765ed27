"""Group: how this process takes part in a job's training, alone or as one of a cluster.

Takes a StrategyConfig, this process' role and its cluster. Gives a strategy, the Trainer to make, and the share of the
input. Next: `finetune.training.initialise`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import tensorflow as tf

from finetune.data.share import Share
from finetune.jobs.cluster import Cluster
from finetune.models.network import Network
from finetune.spec import StrategyConfig, TrainConfig
from finetune.training.all_reduce import AllReduceTrainer
from finetune.training.footing import Footing
from finetune.training.parameter_server import ParameterServerTrainer
from finetune.training.strategies import (
    Placement,
    coordinate,
    join_all_reduce,
    mirrored,
    one_device,
    share_cores,
)
from finetune.training.trainer import Trainer


class MakeTrainer(Protocol):
    """Trainer, or one that works with other processes."""

    def __call__(
        self, *, network: Network, config: TrainConfig, strategy: tf.distribute.Strategy, footing: Footing | None = None
    ) -> Trainer: ...


@dataclass(frozen=True, kw_only=True)
class Group:
    """`worker` of `num_workers` has its share of each batch, cut into `pieces` for the devices that it has.
    `placement`: of variables over parameter servers."""

    strategy: tf.distribute.Strategy
    make_trainer: MakeTrainer = Trainer
    worker: int = 0
    num_workers: int = 1
    pieces: int = 1
    placement: Placement | None = None

    @classmethod
    def join(cls, config: StrategyConfig, role: str, cluster: Cluster | None) -> Group:
        """Before anything else is done with TensorFlow; returns when the others are there.

        Raises InvalidCluster, PortTaken, PeersMissing, DevicesMissing.
        """
        if config.kind == "mirrored":
            strategy = mirrored(config.workers)
            pieces = strategy.num_replicas_in_sync
            return cls(strategy=strategy, make_trainer=partial(Trainer, pieces=pieces), pieces=pieces)
        if cluster is None:
            return cls(strategy=one_device())
        cluster.require_strategy(config)
        share_cores(cluster)
        if config.kind == "parameter-server":
            strategy = coordinate(cluster)
            return cls(
                strategy=strategy,
                make_trainer=partial(ParameterServerTrainer, num_workers=config.workers),
                placement=Placement(strategy, config.ps),
            )
        worker = cluster.replica(role)
        strategy = join_all_reduce(cluster, role)
        pieces = strategy.num_replicas_in_sync // config.workers
        return cls(
            strategy=strategy,
            make_trainer=partial(AllReduceTrainer, worker=worker, pieces=pieces),
            worker=worker,
            num_workers=config.workers,
            pieces=pieces,
        )

    def share(self, config: TrainConfig) -> Share:
        """The rows of each batch that this process computes."""
        return Share(
            batch_size=config.update_size,
            worker=self.worker * self.pieces,
            num_workers=self.num_workers * self.pieces,
            pieces=self.pieces,
        )

    @contextmanager
    def scope(self) -> Iterator[None]:
        """In which variables are made."""
        with ExitStack() as stack:
            stack.enter_context(self.strategy.scope())
            if self.placement is not None:
                stack.enter_context(self.placement.scope())
            yield

    @property
    def sentence(self) -> str:
        """What a log says of it; empty for a process alone."""
        if self.placement is not None:
            total = max(1, sum(self.placement.bytes))
            held = ", ".join(f"{100 * each / total:.0f} %" for each in self.placement.bytes)
            return f"the parameter servers hold {held} of the variables' {total} bytes"
        if self.num_workers == 1:
            return "" if self.pieces == 1 else f"each batch is shared out over {self.pieces} devices"
        return f"worker {self.worker} of {self.num_workers}: its share of each batch"
