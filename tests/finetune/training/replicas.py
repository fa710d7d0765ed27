"""One process of a group that trains a small head, started by tests: `python -m tests.finetune.training.replicas …`.

Takes a role, the cluster as JSON, and what to train. Prints, as the chief, a line for every call of the trainer and at
last JSON: the weights and sums. Exits as the product's processes do when another one is lost.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from finetune.jobs.cluster import CHIEF, Cluster, PeerLost
from finetune.jobs.exit_codes import EXIT_PEER_LOST
from finetune.spec import OptimizerConfig, StrategyConfig, TrainConfig

ROOT = Path(__file__).parents[3]
CALLS = (7, 13)  # steps


def config(batch_size: int, name: str = "sgd") -> TrainConfig:
    """Clipping bites at every step."""
    optimizer = OptimizerConfig(name=name, learning_rate=0.1, clip_norm=0.5, ema_decay=0.9)  # type: ignore[arg-type]
    return TrainConfig(steps=100, batch_size=batch_size, optimizer=optimizer)


def start(cluster: Cluster, role: str, arguments: Sequence[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.finetune.training.replicas", role, json.dumps(asdict(cluster)), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def end(*processes: subprocess.Popen[str]) -> None:
    """Kills them and closes what they wrote into."""
    for process in processes:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def train_group(strategy: StrategyConfig, *arguments: str) -> dict[str, Any]:
    """What the chief of such a group says, started as real processes."""
    cluster = Cluster.local(strategy)
    assert cluster is not None
    processes = {role: start(cluster, role, arguments) for role in (*cluster.peers, CHIEF)}
    try:
        said, complained = processes[CHIEF].communicate(timeout=300)
        assert processes[CHIEF].returncode == 0, complained[-3000:]
        return dict(json.loads(said.splitlines()[-1]))
    finally:
        end(*processes.values())


def trained(trainer: Any, iterator: Any, calls: Sequence[int] = CALLS) -> dict[str, Any]:
    stretches = []
    for steps in calls:
        stretches.append(trainer.run(iterator, steps))
        print(f"step {int(trainer.global_step.numpy())}", flush=True)
    return {
        "weights": {name: variable.numpy().tolist() for name, variable in trainer.variables["head"].items()},
        "averages": {name: variable.numpy().tolist() for name, variable in trainer.variables["ema"].items()},
        "losses": [stretch.loss for stretch in stretches],
        "examples": [stretch.examples for stretch in stretches],
        "norms": [stretch.gradient_norm for stretch in stretches],
        "step": int(trainer.global_step.numpy()),
    }


def main(role: str, cluster_json: str, *arguments: str) -> None:
    try:
        take_part(role, cluster_json, *arguments)
    except PeerLost as error:
        print(error.message, file=sys.stderr, flush=True)
        os._exit(EXIT_PEER_LOST)


def take_part(
    role: str, cluster_json: str, batch_size: str, task_name: str, optimizer: str = "sgd", calls: str = ""
) -> None:
    from finetune.models.network import HeadNetwork
    from finetune.training.group import Group
    from finetune.training.strategies import serve

    value = json.loads(cluster_json)
    cluster = Cluster(**(value | {"workers": tuple(value["workers"]), "ps": tuple(value["ps"])}))
    num_workers = len(cluster.workers) + (0 if cluster.ps else 1)
    strategy = StrategyConfig(kind=cluster.strategy, workers=num_workers, ps=len(cluster.ps))  # type: ignore[arg-type]
    if cluster.ps and role != CHIEF:
        serve(cluster, role).join()
    group = Group.join(strategy, role, cluster)
    task = make_task(task_name)
    plan = config(int(batch_size), optimizer)
    with group.scope():
        network = HeadNetwork(task.head())
        trainer = group.make_trainer(network=network, config=plan, strategy=group.strategy)
    iterator = iter(group.share(plan).of_batches(batches_of(task, plan)))
    facts: dict[str, Any] = {}
    if not cluster.ps:  # every process traces in the same order
        names = [operation.type for operation in trainer.graph(iterator).get_operations()]
        facts["collectives"] = names.count("CollectiveReduceV2")
        iterator = iter(group.share(plan).of_batches(batches_of(task, plan)))
    trainer.begin()
    if role != CHIEF:
        trainer.follow(iterator)  # type: ignore[attr-defined]
        return
    facts |= trained(trainer, iterator, [int(steps) for steps in calls.split(",")] if calls else CALLS)
    trainer.finish()
    if group.placement is not None:
        facts["placed"] = group.placement.bytes
    print(json.dumps(facts), flush=True)
    os._exit(0)


def make_task(name: str) -> Any:
    """Heads that draw no random numbers, so that shares of a batch are the batch."""
    from tests.finetune.training.conftest import make_captioner_task
    from tests.finetune.training.line import LineTask

    return LineTask(wild=0.0) if name == "line" else make_captioner_task()


def batches_of(task: Any, plan: TrainConfig) -> Any:
    from finetune.data.queue import training_batches

    return training_batches(table=task.data.table, features=task.data.features_NVD, batch_size=plan.batch_size, seed=1)


if __name__ == "__main__":
    main(*sys.argv[1:])
