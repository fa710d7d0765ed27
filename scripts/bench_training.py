"""What training costs beside bare loops, and what features that are computed once save.

One JSON object a figure. Every side is a process of its own; the sides take turns, `--runs` times each. Ratios are of
medians, bare / ours (above 1 we are faster): of wall time, and of CPU time, which is the steadier one on a machine that
others use too.

- `full`: a step of all of EfficientNet-Lite0, images in memory: the Controller with its summaries and progress, beside
  a `tf.function` called with the same arrays.
- `head`: a step of a classifier on features in memory, likewise.
- `once`: a multi-label head on `scenes:` for 20 epochs by `finetune run`, beside the same with the backbone run in
  every epoch (one is measured, times 20). With fewer than 5,000 images both are also said for 5,000, by a straight
  line through two sizes of ours.
- `stall`: how long training stands still for a Checkpoint of all of EfficientNet-Lite0 with Adam: saved in the main
  thread, and beside the training.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from itertools import cycle
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv" / "bin"
WEIGHTS = ROOT.parent / "shared/checkpoints/efficientnet_lite0/efficientnet_lite0.safetensors"
SIDE, CLASSES, FEATURES = 224, 10, 1280
EPOCHS = 20


def figure(name: str, **values: Any) -> None:
    print(json.dumps({"figure": name, **values}), flush=True)


# -- the sides, each in a process of its own


def _network() -> Any:
    """All of EfficientNet-Lite0 and a classifier. Weights are drawn so that activations neither die nor explode: tiny
    numbers would take other times than those of a trained network."""
    import numpy as np

    from finetune.models.network import ThawedNetwork
    from zoo.input_spec import InputSpec
    from zoo.manifest import Architecture

    network = ThawedNetwork(
        head=_head(),
        architecture=Architecture(name="efficientnet_lite0"),
        input_spec=InputSpec(height=SIDE, width=SIDE),
        train_from="all",
    )
    random = np.random.default_rng(0)
    for name, variable in network.groups["backbone"].items():
        shape = tuple(variable.shape)
        if len(shape) == 4:
            fan_in = shape[0] * shape[1] * (1 if "depthwise" in name else shape[2])
            variable.assign(random.standard_normal(shape) * (2 / fan_in) ** 0.5)
    return network


def _head() -> Any:
    from finetune.data.source import Example
    from finetune.models.heads import head_kind

    kind = head_kind("classifier")
    arguments = kind.Arguments.model_validate({})
    examples = [Example(id=str(n), label=f"class {n % CLASSES}") for n in range(2 * CLASSES)]
    return kind.build(arguments=arguments, feature_dim=FEATURES, assets=kind.learn_assets(examples, arguments), seed=1)


def _image_batches(batch: int) -> Any:
    import numpy as np

    random = np.random.default_rng(0)
    made = [
        (
            {"image": random.random((batch, SIDE, SIDE, 3), np.float32)},
            {"label": random.integers(0, CLASSES, batch).astype(np.int32), "weight": np.ones(batch, np.float32)},
        )
        for _ in range(4)
    ]
    return cycle(made)


def _spec(batch: int, optimizer: str) -> Any:
    from finetune.spec import JobSpec

    return JobSpec.parse(
        {
            "name": "bench", "backbone": "efficientnet_lite0", "head": {"kind": "classifier"},
            "data": {"location": "scenes:"},
            "train": {
                "steps": 1_000_000, "evaluate_every": 500_000, "batch_size": batch,
                "optimizer": {"name": optimizer, "learning_rate": 1e-3},
            },
        }
    )  # fmt: skip


def _ours(
    make: Callable[[], Any], batches: Callable[[int], Any], *, batch: int, warm: int, steps: int
) -> dict[str, float]:
    """`steps` steps after `warm` ones, as a job's chief does them."""
    import tensorflow as tf

    from finetune.jobs.folder import JobFolder
    from finetune.training.checkpoints import Checkpoints
    from finetune.training.controller import Controller
    from finetune.training.progress import Progress
    from finetune.training.stop import Interrupted, StopSignal
    from finetune.training.summaries import Summaries
    from finetune.training.trainer import Trainer
    from finetune.training.watching import watched

    spec = _spec(batch, "momentum")
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        network = make()
    trainer = Trainer(network=network, config=spec.train, strategy=strategy)
    stop = StopSignal()
    clocks: dict[int, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = JobFolder.create(Path(scratch), job="bench", spec=spec, store_url="memory://")
        summaries = Summaries(folder.events_train)
        with (
            Progress(folder, steps=spec.train.steps) as progress,
            watched(
                folder, spec, trainer=trainer, network=network, batches=batches, summaries=summaries, say=progress.say
            ) as observed,
        ):
            run = observed.run

            def timed(iterator: Any, num_steps: int) -> Any:
                done = int(observed.global_step.numpy())
                if done >= warm:
                    clocks[done] = time.perf_counter(), time.process_time()
                stretch = run(iterator, num_steps)
                stop.requested = done + stretch.steps >= warm + steps
                return stretch

            observed.run = timed  # type: ignore[method-assign,union-attr]
            with suppress(Interrupted):
                Controller(
                    folder=folder, spec=spec, trainer=observed, batches=batches, progress=progress,
                    checkpoints=Checkpoints(folder.checkpoints, digest="bench"), summaries=summaries, stop=stop,
                    evaluated=False,
                ).run()  # fmt: skip
        summaries.close()
    first, last = min(clocks), max(clocks)
    each = last - first
    return {
        "wall_ms": 1000 * (clocks[last][0] - clocks[first][0]) / each,
        "cpu_ms": 1000 * (clocks[last][1] - clocks[first][1]) / each,
        "steps": each,
    }


def _bare(network: Any, batches: Any, *, warm: int, steps: int) -> dict[str, float]:
    """The least that trains the same: loss, gradient, clipping, update; a call a step."""
    import keras
    import tensorflow as tf

    optimizer = keras.optimizers.SGD(1e-3, momentum=0.9)
    optimizer.build(list(network.trainable_variables))

    @tf.function
    def step(features: Any, targets: Any) -> Any:
        variables = list(network.trainable_variables)
        with tf.GradientTape() as tape:
            terms = network.loss(features, targets, training=True)
            loss = terms.loss_sum / terms.weight_sum
        gradients, _ = tf.clip_by_global_norm(tape.gradient(loss, [v.value for v in variables]), 5.0)
        optimizer.apply(gradients, variables)
        return loss

    for _ in range(warm):
        float(step(*next(batches)))
    wall, cpu = time.perf_counter(), time.process_time()
    for number in range(steps):
        loss = step(*next(batches))
        if number % 20 == 19:
            float(loss)  # as often as a loss is shown
    float(loss)
    return {
        "wall_ms": 1000 * (time.perf_counter() - wall) / steps,
        "cpu_ms": 1000 * (time.process_time() - cpu) / steps,
        "steps": steps,
    }


def _features(rows: int) -> tuple[Any, Any]:
    import numpy as np

    random = np.random.default_rng(0)
    return random.random((rows, FEATURES), np.float32), random.integers(0, CLASSES, rows).astype(np.int32)


def side_full_ours(options: Any) -> dict[str, float]:
    batches = _image_batches(options.batch)
    return _ours(_network, lambda step: nullcontext(batches), batch=options.batch, warm=4, steps=options.steps)


def side_full_bare(options: Any) -> dict[str, float]:
    return _bare(_network(), _image_batches(options.batch), warm=4, steps=options.steps)


def side_head_ours(options: Any) -> dict[str, float]:
    import numpy as np

    from finetune.data.queue import training_batches
    from finetune.models.heads.head import TargetTable
    from finetune.models.network import HeadNetwork

    feature_ND, label_N = _features(options.rows)
    table = TargetTable(image_index=np.arange(options.rows, dtype=np.int32), arrays={"label": label_N})

    def batches(step: int) -> Any:
        return nullcontext(
            iter(training_batches(table=table, features=feature_ND[:, None], batch_size=64, seed=1, start_step=step))
        )

    return _ours(lambda: HeadNetwork(_head()), batches, batch=64, warm=500, steps=options.head_steps)


def side_head_bare(options: Any) -> dict[str, float]:
    """Shuffled by NumPy once an epoch."""
    import numpy as np

    from finetune.models.network import HeadNetwork

    feature_ND, label_N = _features(options.rows)

    def batches() -> Any:
        random, weight_B = np.random.default_rng(1), np.ones(64, np.float32)
        while True:
            order = random.permutation(options.rows)
            for at in range(0, options.rows - 63, 64):
                rows = order[at : at + 64]
                yield {"feature_vector": feature_ND[rows]}, {"label": label_N[rows], "weight": weight_B}

    return _bare(HeadNetwork(_head()), batches(), warm=500, steps=options.head_steps)


def side_stall(options: Any) -> dict[str, float]:
    """Milliseconds for one Checkpoint: in the main thread, and what is left of it beside the training."""
    import tensorflow as tf

    from finetune.training.checkpoints import Checkpoints
    from finetune.training.saving import Saving
    from finetune.training.trainer import Trainer

    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        network = _network()
    trainer = Trainer(network=network, config=_spec(options.batch, "adam").train, strategy=strategy)
    batches = _image_batches(options.batch)
    trainer.run(batches, 1)
    record: dict[str, Any] = {"train_loss": None, "seconds": 0.0}
    size = sum(v.numpy().nbytes for group in trainer.variables.values() for v in group.values())
    with tempfile.TemporaryDirectory() as scratch:
        checkpoints = Checkpoints(Path(scratch), digest="bench")
        times: dict[str, list[float]] = {"waiting": [], "beside": [], "step_after": []}
        saving = Saving(checkpoints)
        for step in range(4):
            begin = time.perf_counter()
            checkpoints.save(trainer.variables, step=2 * step, **record)
            times["waiting"].append(time.perf_counter() - begin)
            times["beside"].append(saving.save(trainer.variables, step=2 * step + 1, **record))
            trainer.run(batches, 1)
            saving.settle()
    return {
        "megabytes": size / 1e6,
        "waiting_ms": 1000 * statistics.median(times["waiting"][1:]),
        "beside_ms": 1000 * statistics.median(times["beside"][1:]),
    }


def side_recompute(options: Any) -> dict[str, float]:
    """One epoch of a head on a frozen backbone that is run for every batch; images are decoded on all cores."""
    from concurrent.futures import ThreadPoolExecutor

    import keras
    import numpy as np
    import tensorflow as tf

    from finetune.data.preprocess import load_views, normalise
    from finetune.data.sources import open_source
    from finetune.models.backbone import Backbone
    from zoo.catalog import open_catalog

    backbone = Backbone.from_version(open_catalog(), "efficientnet_lite0")
    source = open_source(f"scenes:count={options.images}")
    head, spec = _head(), backbone.input_spec
    optimizer = keras.optimizers.SGD(1e-3, momentum=0.9)
    optimizer.build(list(head.trainable_variables))

    @tf.function
    def step(feature_BD: Any, label_B: Any) -> Any:
        targets = {"label": label_B, "weight": tf.ones(tf.shape(label_B)[0])}
        with tf.GradientTape() as tape:
            terms = head.loss({"feature_vector": feature_BD}, targets, training=True)
        variables = list(head.trainable_variables)
        optimizer.apply(tape.gradient(terms.loss_sum, [v.value for v in variables]), variables)
        return terms.loss_sum

    def pixels(index: int) -> Any:
        return normalise(load_views(source.read(index), spec, views=(0,), max_pixels=50_000_000)[0], spec)

    count, batch = options.images, 32
    label_N = np.arange(count, dtype=np.int32) % CLASSES
    wall = cpu = 0.0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ahead = pool.map(pixels, range(batch))
        for at in range(0, count - batch + 1, batch):
            begin, used = time.perf_counter(), time.process_time()
            image_BHWC = np.stack(list(ahead))
            ahead = pool.map(pixels, range(at + batch, min(at + 2 * batch, count)))
            float(step(np.asarray(backbone.feature_vector(image_BHWC)), label_N[at : at + batch]))
            if at:  # the first traces
                wall, cpu = wall + time.perf_counter() - begin, cpu + time.process_time() - used
    share = (count - count % batch - batch) / count
    return {"wall": wall / share, "cpu": cpu / share}


SIDES: dict[str, Callable[[Any], dict[str, float]]] = {
    "full-ours": side_full_ours,
    "full-bare": side_full_bare,
    "head-ours": side_head_ours,
    "head-bare": side_head_bare,
    "stall": side_stall,
    "recompute": side_recompute,
}


# -- the figures


def measured(side: str, arguments: list[str]) -> dict[str, float]:
    done = subprocess.run(
        [sys.executable, __file__, "--side", side, *arguments],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    value: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return value


def in_turns(name: str, runs: int, arguments: list[str]) -> None:
    times: dict[str, list[dict[str, float]]] = {"ours": [], "bare": []}
    for _ in range(runs):
        for side in ("bare", "ours"):
            times[side].append(measured(f"{name}-{side}", arguments))
    values: dict[str, float] = {}
    for clock in ("wall", "cpu"):
        medians = {side: statistics.median(each[f"{clock}_ms"] for each in found) for side, found in times.items()}
        values |= {f"{side}_{clock}_ms": round(medians[side], 3) for side in times}
        values[f"{clock}_ratio"] = round(medians["bare"] / medians["ours"], 3)
    figure(f"training {name}", runs=runs, load=round(os.getloadavg()[0], 1), **values)


def figure_stall(runs: int, arguments: list[str]) -> None:
    found = [measured("stall", arguments) for _ in range(runs)]
    medians = {name: round(statistics.median(each[name] for each in found), 1) for name in found[0]}
    figure("training stall", runs=runs, load=round(os.getloadavg()[0], 1), **medians)


def figure_once(runs: int, arguments: list[str], images: int) -> None:
    del runs  # minutes each
    with tempfile.TemporaryDirectory() as scratch:
        os.environ |= {
            "MODELZOO_STORE": f"file://{scratch}/store",
            "MODELZOO_CACHE": f"{scratch}/cache",
            "MODELZOO_HOME": f"{scratch}/home",
            "PYTHONPATH": str(ROOT),
        }
        subprocess.run(
            [
                BIN / "zoo", "import", "safetensors", WEIGHTS, "efficientnet_lite0", "--architecture",
                "efficientnet_lite0", "--input-spec", WEIGHTS.with_name("input_spec.json"),
            ],
            check=True, capture_output=True,
        )  # fmt: skip
        ours = {count: _once(count) for count in (images // 2, images)}
        epoch = measured("recompute", arguments)
    values: dict[str, float] = {}
    for clock in ("wall", "cpu"):
        half, whole = ours[images // 2][clock], ours[images][clock]
        at_5000 = whole + (whole - half) / (images - images // 2) * (5000 - images)
        values |= {
            f"ours_{clock}_seconds": round(whole, 1),
            f"recomputed_epoch_{clock}_seconds": round(epoch[clock], 1),
            f"{clock}_ratio": round(EPOCHS * epoch[clock] / whole, 1),
            f"ours_{clock}_seconds_5000": round(at_5000, 1),
            f"{clock}_ratio_5000": round(EPOCHS * epoch[clock] / images * 5000 / at_5000, 1),
        }
    figure("training once", images=images, load=round(os.getloadavg()[0], 1), **values)


def _children_cpu() -> float:
    """Seconds that processes which have ended took, theirs too."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _once(images: int) -> dict[str, float]:
    """Seconds of a whole `finetune run` of 20 epochs, from nothing (other images each time: features are shared) to the
    published version."""
    batch = 64
    steps = EPOCHS * images * 8 // 10 // batch
    begin, cpu = time.perf_counter(), _children_cpu()
    done = subprocess.run(
        [
            BIN / "finetune", "run", "--backbone", "efficientnet_lite0", "--head", "multilabel",
            "--data", f"scenes:count={images},seed={images}", "--name", f"once-{images}",
            "--set", f"train.steps={steps}", "--set", f"train.batch_size={batch}",
            "--set", f"train.evaluate_every={max(1, steps // 10)}", "--set", f"train.seed={images}",
        ],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"finetune run failed:\n{done.stderr[-3000:]}")
    return {"wall": time.perf_counter() - begin, "cpu": _children_cpu() - cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="*", choices=["full", "head", "once", "stall", []], help="default: all")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--batch", type=int, default=16, help="images a step of `full` and `stall`")
    parser.add_argument("--steps", type=int, default=20, help="measured steps of `full`")
    parser.add_argument("--rows", type=int, default=5000, help="of `head`")
    parser.add_argument("--head-steps", type=int, default=5000, help="measured steps of `head`")
    parser.add_argument("--images", type=int, default=5000, help="of `once`")
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(SIDES[options.side](options)))
        return
    arguments = [
        text
        for name in ("batch", "steps", "rows", "head_steps", "images")
        for text in (f"--{name.replace('_', '-')}", str(getattr(options, name)))
    ]
    for name in options.figures or ("full", "head", "stall", "once"):
        if name == "once":
            figure_once(options.runs, arguments, options.images)
        elif name == "stall":
            figure_stall(options.runs, arguments)
        else:
            in_turns(name, options.runs, arguments)


if __name__ == "__main__":
    main()
