"""Two processes that train together beside two that train apart: what the exchange of gradients costs.

One JSON object a figure. Each process has one thread and a core of its own (parameter servers and the coordinator share
the workers' cores). The sides take turns, `--runs` times; a figure has the medians of examples a second of wall time
and of CPU time, and their ratios to two independent processes. A process that waits for another uses no CPU time: the
ratio of CPU times is what the exchange itself costs, and the steadier one on a machine that others use too.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import psutil

from finetune.jobs.cluster import CHIEF, Cluster
from finetune.spec import OptimizerConfig, StrategyConfig, TrainConfig

ROOT = Path(__file__).resolve().parent.parent
SIDES = ("apart", "all-reduce", "parameter-server")
WORKERS = 2


def figure(name: str, **values: Any) -> None:
    print(json.dumps({"figure": name, **values}), flush=True)


def strategy_of(side: str) -> StrategyConfig:
    if side == "apart":
        return StrategyConfig()
    return StrategyConfig(kind=side, workers=WORKERS, ps=1 if side == "parameter-server" else 0)  # type: ignore[arg-type]


# -- one process


def make_network(model: str, batch_size: int) -> tuple[Any, Any]:
    """(network, a batch). `backbone`: all of EfficientNet-Lite0 at 128 × 128; `captioner`: a head on features."""
    import numpy as np

    from finetune.data.source import Example
    from finetune.models.heads import head_kind
    from finetune.models.network import HeadNetwork, ThawedNetwork
    from zoo.input_spec import InputSpec
    from zoo.manifest import Architecture

    random = np.random.default_rng(0)
    kind = head_kind("captioner" if model == "captioner" else "classifier")
    words = [f"word{i}" for i in range(3000)]
    examples = [
        Example(id=str(i), label=f"class {i % 10}", captions=(" ".join(random.choice(words, 10)) + ".",))
        for i in range(1000)
    ]
    arguments = kind.Arguments.model_validate({"min_count": 1} if model == "captioner" else {})
    assets = kind.learn_assets(examples, arguments)
    head = kind.build(arguments=arguments, feature_dim=1280, assets=assets, seed=1)
    table = kind.targets(examples, arguments, assets)
    targets = {name: array[:batch_size] for name, array in table.arrays.items()}
    targets["weight"] = np.ones(batch_size, np.float32)
    if model == "captioner":
        return HeadNetwork(head), ({"feature_vector": random.random((batch_size, 1280), np.float32)}, targets)
    size = InputSpec(height=128, width=128)
    network = ThawedNetwork(
        head=head, architecture=Architecture(name="efficientnet_lite0"), input_spec=size, train_from="all"
    )
    return network, ({"image": random.random((batch_size, 128, 128, 3), np.float32)}, targets)


def train(side: str, role: str, cluster: Cluster | None, model: str, batch_size: int, seconds: float) -> None:
    """Prints {"examples", "seconds", "cpu"} of the steps between two moments."""
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    from finetune.training.group import Group
    from finetune.training.strategies import serve

    if cluster is not None and cluster.ps and role != CHIEF:
        serve(cluster, role).join()
    tf.random.set_seed(1)
    group = Group.join(strategy_of(side), role, cluster)
    plan = TrainConfig(
        steps=10**6, batch_size=batch_size, optimizer=OptimizerConfig(name="momentum", learning_rate=1e-4)
    )
    with group.scope():
        network, batch = make_network(model, batch_size)
        trainer = group.make_trainer(network=network, config=plan, strategy=group.strategy)
    iterator = iter(tf.data.Dataset.from_tensors(batch).repeat())
    trainer.begin()
    if role != CHIEF and side == "all-reduce":
        trainer.follow(iterator)  # type: ignore[attr-defined]
        return
    each = max(2, trainer.least_steps)
    trainer.run(iterator, each)
    print("ready", flush=True)
    sys.stdin.readline()  # all begin together
    print(json.dumps(measured(trainer, iterator, each, seconds)), flush=True)
    sys.stdin.readline()  # and end together
    os._exit(0)


def measured(trainer: Any, iterator: Any, each: int, seconds: float) -> dict[str, float]:
    begin = time.perf_counter()
    examples = steps = 0
    while time.perf_counter() - begin < seconds:
        stretch = trainer.run(iterator, each)
        examples += stretch.examples
        steps += stretch.steps
        each = max(each, min(50, int(each * 0.4 / max(1e-3, (time.perf_counter() - begin) / steps * each))))
    return {"examples": examples, "steps": steps, "seconds": time.perf_counter() - begin}


# -- all of them


def start(side: str, role: str, core: int | None, cluster: Cluster | None, options: Any) -> subprocess.Popen[str]:
    where = [] if core is None else ["taskset", "-c", str(core)]
    value = "" if cluster is None else json.dumps(asdict(cluster))
    return subprocess.Popen(
        [*where, sys.executable, __file__, "--side", side, "--role", role, "--cluster", value, "--model", options.model,
         "--batch", str(options.batch), "--seconds", str(options.seconds)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def once(side: str, options: Any) -> dict[str, float]:
    """Examples a second of wall time and of CPU time, over all processes of the side."""
    cluster = Cluster.local(strategy_of(side))
    if cluster is None:
        roles: list[tuple[str, int | None]] = [(CHIEF, 0), (CHIEF, 1)]
    elif cluster.ps:
        roles = [("worker-0", 0), ("worker-1", 1), ("ps-0", None), (CHIEF, None)]
    else:
        roles = [(CHIEF, 0), ("worker-0", 1)]
    processes = [(role, start(side, role, core, cluster, options)) for role, core in roles]
    try:
        leaders = [process for role, process in processes if role == CHIEF]
        for leader in leaders:
            assert leader.stdout is not None
            if leader.stdout.readline() != "ready\n":
                raise SystemExit(f"{side}: a process ended early, see its complaint above")
        before = [cpu_seconds(process) for _, process in processes]
        for leader in leaders:
            print("go", file=leader.stdin, flush=True)
        said = [json.loads(leader.stdout.readline()) for leader in leaders if leader.stdout is not None]
        spent = sum(cpu_seconds(process) - was for (_, process), was in zip(processes, before, strict=True))
    finally:
        for _, process in processes:
            process.kill()
            process.communicate()
    # All workers' examples are in the sums of an all-reduce; processes apart count their own.
    examples = sum(each["examples"] for each in said)
    return {
        "per_second": sum(each["examples"] / each["seconds"] for each in said),
        "per_cpu_second": examples / spent,
        "steps": sum(each["steps"] for each in said),
    }


def cpu_seconds(process: subprocess.Popen[str]) -> float:
    times = psutil.Process(process.pid).cpu_times()
    return float(times.user + times.system)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="that a side trains in a run")
    parser.add_argument("--models", nargs="*", default=["backbone:8", "captioner:32"], help="MODEL:BATCH of a worker")
    parser.add_argument("--sides", nargs="*", choices=SIDES, default=SIDES)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--role", help=argparse.SUPPRESS)
    parser.add_argument("--cluster", help=argparse.SUPPRESS)
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side is not None:
        value = json.loads(options.cluster) if options.cluster else None
        cluster = value and Cluster(**(value | {"workers": tuple(value["workers"]), "ps": tuple(value["ps"])}))
        train(options.side, options.role, cluster, options.model, options.batch, options.seconds)
        return
    for each in options.models:
        model, _, batch = each.partition(":")
        options.model, options.batch = model, int(batch)
        runs = [{side: once(side, options) for side in options.sides} for _ in range(options.runs)]
        for side in options.sides:
            ratios = {
                f"{kind}_ratio": round(statistics.median(run[side][key] / run["apart"][key] for run in runs), 3)
                for kind, key in (("wall", "per_second"), ("cpu", "per_cpu_second"))
                if side != "apart" and "apart" in options.sides
            }
            rates = {
                key: round(statistics.median(run[side][key] for run in runs), 2)
                for key in ("per_second", "per_cpu_second")
            }
            load = round(os.getloadavg()[0], 1)
            figure(f"distributed {model} {side}", batch=int(batch), runs=len(runs), load=load, **rates, **ratios)


if __name__ == "__main__":
    main()
