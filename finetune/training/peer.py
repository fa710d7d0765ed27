"""Peer: what a process does that trains beside a job's chief.

Takes a job's folder, a role and its cluster. Gives nothing: the chief writes what the job keeps. Next:
`finetune.training.all_reduce`, `finetune.training.strategies`.
"""

from __future__ import annotations

import sys
import time

from finetune.jobs.cluster import Cluster
from finetune.jobs.folder import JobFolder
from finetune.training.all_reduce import AllReduceTrainer
from finetune.training.checkpoints import Checkpoints, spec_digest
from finetune.training.configure import configure
from finetune.training.group import Group
from finetune.training.initialise import initialise
from finetune.training.inputs import training_input
from finetune.training.prepare import load_prepared
from finetune.training.stop import StopSignal
from finetune.training.strategies import serve, share_cores
from finetune.training.waiting import wait_for_prepared
from zoo.catalog import open_catalog
from zoo.errors import Internal


def follow_chief(job: JobFolder, store_url: str, stop: StopSignal, role: str, cluster: Cluster) -> None:
    """An all-reduce worker: the chief's steps, on its share of each batch.

    Raises PortTaken, NotPrepared, UnequalStart, NonFiniteLoss, PeerLost.
    """
    spec = job.request().spec
    configure(spec.train)
    group = Group.join(spec.strategy, role, cluster)
    stop.deferred = True  # the chief decides; it must be able to save before its peers go
    print(group.sentence, file=sys.stderr, flush=True)
    wait_for_prepared(job, beside_chief=True)
    catalog = open_catalog(store_url)
    prepared = load_prepared(job, spec, catalog, parts=("train",))
    start = initialise(
        folder=job,
        spec=spec,
        catalog=catalog,
        prepared=prepared,
        checkpoints=Checkpoints(job.checkpoints, digest=spec_digest(spec)),
        group=group,
        leads=False,
    )
    trainer = start.trainer
    if not isinstance(trainer, AllReduceTrainer):
        raise Internal(f"{role} of a {spec.strategy.kind} job has nobody to follow")
    trainer.begin()
    batches = training_input(spec, prepared, catalog, start.stage, share=group.share(spec.train))
    with batches(start.step) as iterator:
        steps = trainer.follow(iterator)
    print(f"did {steps} steps, from {start.step} on", file=sys.stderr, flush=True)


def serve_coordinator(job: JobFolder, role: str, cluster: Cluster) -> None:
    """A worker or ps of a parameter-server job; never returns. Raises InvalidCluster, PortTaken."""
    cluster.require_strategy(job.request().spec.strategy)
    share_cores(cluster)
    server = serve(cluster, role)
    print(f"{role} listens at {cluster.address(role)} ({server.target})", file=sys.stderr, flush=True)
    while True:  # in Python, so that a signal is heard
        time.sleep(0.5)
