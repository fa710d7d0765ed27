"""Training shared out: real processes and devices against one process that does it all."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from finetune.data.share import Share
from finetune.jobs.cluster import CHIEF, Cluster, PortTaken, require_free
from finetune.jobs.exit_codes import EXIT_PEER_LOST
from finetune.models.network import HeadNetwork
from finetune.spec import StrategyConfig
from finetune.training.trainer import Trainer
from tests.finetune.training import replicas
from tests.finetune.training.replicas import batches_of, config, make_task, start, train_group, trained


def alone(task_name: str, batch_size: int, optimizer: str = "sgd") -> dict[str, Any]:
    task, plan = make_task(task_name), config(batch_size, optimizer)
    trainer = Trainer(network=HeadNetwork(task.head()), config=plan, strategy=tf.distribute.get_strategy())
    return trained(trainer, iter(batches_of(task, plan)))


def assert_same_training(found: dict[str, Any], wanted: dict[str, Any], *, tolerance: float = 1e-5) -> None:
    assert (found["step"], found["examples"]) == (wanted["step"], wanted["examples"])
    for name in ("weights", "averages"):
        assert found[name].keys() == wanted[name].keys()
        for key, value in wanted[name].items():
            np.testing.assert_allclose(found[name][key], value, rtol=tolerance, atol=tolerance, err_msg=key)
    np.testing.assert_allclose(found["losses"], wanted["losses"], rtol=tolerance)
    np.testing.assert_allclose(found["norms"], wanted["norms"], rtol=1e-4)


def test_two_workers_do_what_one_does_with_the_whole_batch() -> None:
    """Twenty rows in batches of 7: shares are uneven, and batches span the epochs' ends."""
    found = train_group(StrategyConfig(kind="all-reduce", workers=2), "7", "line")
    assert_same_training(found, alone("line", 7))
    assert min(found["norms"]) > 0.01
    assert found["collectives"] == 1, "gradients and sums are added up in one go, once a step"


@pytest.mark.slow
@pytest.mark.parametrize(("num_workers", "batch_size", "optimizer"), [(2, 8, "sgd"), (3, 8, "sgd"), (2, 5, "adam")])
def test_a_captioner_learns_the_same_from_any_number_of_workers(
    num_workers: int, batch_size: int, optimizer: str
) -> None:
    strategy = StrategyConfig(kind="all-reduce", workers=num_workers)
    found = train_group(strategy, str(batch_size), "captioner", optimizer)
    # Adam divides by the root of squares that are near 0 at first: rounding weighs more.
    assert_same_training(
        found, alone("captioner", batch_size, optimizer), tolerance=1e-5 if optimizer == "sgd" else 1e-3
    )


@pytest.mark.slow
def test_parameter_servers_share_the_bytes_and_workers_finish_every_batch() -> None:
    found = train_group(StrategyConfig(kind="parameter-server", workers=2, ps=2), "8", "captioner")
    assert found["step"] == sum(replicas.CALLS)
    assert found["examples"] == [8 * steps for steps in replicas.CALLS]
    assert all(0.3 < held / sum(found["placed"]) < 0.7 for held in found["placed"])
    assert found["losses"][1] < found["losses"][0]


MANY = ",".join(["40"] * 40)  # calls, so that a kill finds the group in the midst of them


class Running:
    """A group of processes that trains, to kill some of."""

    def __init__(self, strategy: StrategyConfig, batch_size: int) -> None:
        cluster = Cluster.local(strategy)
        assert cluster is not None
        self.cluster, self.arguments = cluster, (str(batch_size), "line", "sgd", MANY)
        self.processes = {role: self.start(role) for role in (*cluster.peers, CHIEF)}

    def start(self, role: str) -> subprocess.Popen[str]:
        return start(self.cluster, role, self.arguments)

    def step(self) -> int:
        """The next step that the chief says; -1 when it has nothing more to say."""
        stdout = self.processes[CHIEF].stdout
        assert stdout is not None
        line = stdout.readline()
        return int(line.removeprefix("step ")) if line.startswith("step ") else -1

    def kill(self, role: str) -> None:
        replicas.end(self.processes[role])

    def ends(self, role: str) -> tuple[int, str]:
        said = self.processes[role].communicate(timeout=240)[1]
        return self.processes[role].returncode, said

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *error: object) -> None:
        replicas.end(*self.processes.values())


@pytest.mark.slow
def test_a_dead_all_reduce_worker_ends_the_others_with_the_code_that_says_so() -> None:
    with Running(StrategyConfig(kind="all-reduce", workers=2), 8) as group:
        assert group.step() == 40
        group.kill("worker-0")
        code, said = group.ends(CHIEF)
    assert code == EXIT_PEER_LOST, said[-2000:]
    assert "a process of the cluster was lost" in said


@pytest.mark.slow
def test_training_goes_on_without_a_dead_parameter_server_worker_and_takes_it_back() -> None:
    with Running(StrategyConfig(kind="parameter-server", workers=2, ps=1), 8) as group:
        assert group.step() == 40
        group.kill("worker-0")
        assert [group.step() for _ in range(2)] == [80, 120], "the other worker goes on"
        group.processes["worker-0"] = group.start("worker-0")
        steps = list(iter(group.step, -1))
        code, said = group.ends(CHIEF)
    assert code == 0, said[-2000:]
    assert steps[-1] == 1600, "every batch was finished and none left out"


@pytest.mark.slow
def test_a_dead_parameter_server_ends_the_coordinator_with_the_code_that_says_so() -> None:
    with Running(StrategyConfig(kind="parameter-server", workers=1, ps=2), 8) as group:
        assert group.step() == 40
        group.kill("ps-1")
        code, said = group.ends(CHIEF)
    assert code == EXIT_PEER_LOST, said[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy",
    [StrategyConfig(kind="all-reduce", workers=3), StrategyConfig(kind="parameter-server", workers=1, ps=1)],
    ids=["all-reduce", "parameter-server"],
)
def test_a_worker_that_never_comes_is_named(strategy: StrategyConfig) -> None:
    cluster = replace(Cluster.local(strategy) or pytest.fail("no cluster"), join_seconds=20.0)
    absent = cluster.peers[-1]
    processes = {role: start(cluster, role, ("8", "line")) for role in (*cluster.peers[:-1], CHIEF)}
    try:
        said = processes[CHIEF].communicate(timeout=240)[1]
        assert processes[CHIEF].returncode == 1
        assert f"missing: {absent} ({cluster.address(absent)})" in said
    finally:
        replicas.end(*processes.values())


def test_a_port_that_is_taken_is_named() -> None:
    with socket.socket() as other:
        other.bind(("localhost", 0))
        other.listen()
        address = f"localhost:{other.getsockname()[1]}"
        with pytest.raises(PortTaken, match=rf"the worker-0 is to listen at {address}"):
            require_free(address, role="worker-0")


_MIRRORED = """
import json, sys
from finetune.jobs.cluster import CHIEF
from finetune.models.network import HeadNetwork
from finetune.spec import StrategyConfig
from finetune.training.group import Group
from tests.finetune.training.replicas import batches_of, config, make_task, trained
group = Group.join(StrategyConfig(kind="mirrored", workers=2), CHIEF, None)
plan = config(7)
task = make_task("line")
with group.scope():
    network = HeadNetwork(task.head())
    trainer = group.make_trainer(network=network, config=plan, strategy=group.strategy)
trainer.begin()
seeds = group.strategy.experimental_local_results(trainer.variables["seeds"]["0000"].value)
facts = trained(trainer, iter(group.share(plan).of_batches(batches_of(task, plan))))
print(json.dumps(facts | {"seeds": [seed.numpy().tolist() for seed in seeds], "said": group.sentence}))
"""


def test_two_devices_do_what_one_does_with_the_whole_batch() -> None:
    done = subprocess.run([sys.executable, "-c", _MIRRORED], capture_output=True, text=True, cwd=replicas.ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert_same_training(found, alone("line", 7))
    assert found["seeds"][0] != found["seeds"][1], "the devices would drop the same units"
    assert found["said"] == "each batch is shared out over 2 devices"


@pytest.mark.parametrize(("batch_size", "num_workers", "pieces"), [(7, 3, 1), (2, 3, 1), (5, 4, 2)])
def test_the_workers_rows_together_are_the_batch(batch_size: int, num_workers: int, pieces: int) -> None:
    """Each row once by its weight, in every step, whatever the shares; all processes have batches of one shape."""
    task = make_task("line")
    whole = list(batches_of(task, config(batch_size)).take(6))
    shares = [
        Share(batch_size=batch_size, worker=worker, num_workers=num_workers, pieces=pieces)
        for worker in range(0, num_workers, pieces)
    ]
    parts = [list(share.of_batches(batches_of(task, config(batch_size))).take(6)) for share in shares]
    for step, (_, targets) in enumerate(whole):
        given = [part[step][1] for part in parts]
        assert len({tuple(one["y"].shape) for one in given}) == 1
        assert given[0]["y"].shape[0] % pieces == 0
        rows = [float(y) for one in given for y, weight in zip(one["y"], one["weight"], strict=True) if weight == 1]
        assert rows == targets["y"].numpy().tolist()


def test_a_share_that_is_none_is_refused() -> None:
    from zoo.errors import InvalidArgument

    for worker, num_workers, pieces in ((2, 2, 1), (3, 4, 2), (-1, 2, 1)):
        with pytest.raises(InvalidArgument, match="no share"):
            Share(batch_size=8, worker=worker, num_workers=num_workers, pieces=pieces)
