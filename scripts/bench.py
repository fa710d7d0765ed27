"""The figures that the project promises, measured on the machine at hand.

Ratios are of things measured side by side in one run; times are medians over `--runs`. Real weights and photos are
looked for in `../shared`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv" / "bin"
SHARED = ROOT.parent / "shared"
CHECKPOINTS = {
    "efficientnet_lite0": ("safetensors", SHARED / "checkpoints/efficientnet_lite0/efficientnet_lite0.safetensors"),
    "inception_v3": ("tfjs", SHARED / "checkpoints/inception_v3_tfjs"),
}


def figure(name: str, **values: Any) -> None:
    print(json.dumps({"figure": name, **values}), flush=True)


def tool(name: str, *arguments: str) -> Any:
    """One of the product's commands with `--format json`; its last JSON value."""
    done = subprocess.run([BIN / name, *arguments, "--format", "json"], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def timed(action: Callable[[], Any]) -> float:
    """Seconds."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def import_backbone(name: str) -> None:
    kind, path = CHECKPOINTS[name]
    spec = path.with_name("input_spec.json") if path.is_file() else path / "input_spec.json"
    tool("zoo", "import", kind, str(path), name, "--architecture", name, "--input-spec", str(spec))


def bench_help(runs: int) -> None:
    """`--help` within 0.4 s, TensorFlow not imported."""
    for name in ("zoo", "finetune"):
        seconds = [
            timed(lambda n=name: subprocess.run([BIN / n, "--help"], capture_output=True, check=True))
            for _ in range(runs)
        ]
        seen = subprocess.run(
            [BIN / "python", "-X", "importtime", BIN / name, "--help"], capture_output=True, text=True, check=True
        ).stderr
        figure(f"{name} --help", seconds=round(statistics.median(seconds), 3), tensorflow="tensorflow" in seen)


def bench_import(runs: int) -> None:
    """How near an imported checkpoint comes to what an independent runtime computed from it."""
    import numpy as np
    from safetensors.numpy import load_file

    from finetune.models.backbone import Backbone
    from finetune.models.task_model import load_head
    from zoo.catalog import open_catalog

    for name, (_, path) in CHECKPOINTS.items():
        import_backbone(name)
        folder = path if path.is_dir() else path.parent
        reference = load_file(folder / "reference.safetensors")
        catalog = open_catalog()
        version = catalog.get(name)
        backbone = Backbone.from_version(catalog, version)
        head = load_head(catalog, version, backbone.feature_dim)
        from finetune.data.preprocess import normalise

        images = np.stack([normalise(p, backbone.input_spec) for p in reference["pixels_BHWC_uint8"]])
        feature_BD = np.asarray(backbone.feature_vector(images))
        worst = {"feature_vector": float(np.abs(feature_BD - reference["feature_vector_BD"]).max())}
        if "probabilities_BC" in reference:
            worst["probabilities"] = float(
                np.abs(np.asarray(head.probabilities(feature_BD)) - reference["probabilities_BC"]).max()
            )
        else:
            worst["logits"] = float(np.abs(np.asarray(head.logits(feature_BD)) - reference["logits_BC"]).max())
        figure(f"import {name}", largest_difference=worst)


def bench_captioner(runs: int) -> None:
    """flickr1k with the default recipe: one run in all, then three seeds on the cached features."""
    data = f"flickr:{SHARED / 'data/flickr1k'}"
    for name, seeds in (("efficientnet_lite0", (1, 2, 3)), ("inception_v3", (1, 2, 3))):
        import_backbone(name)
        for seed in seeds:
            before = _store_bytes()
            started = time.perf_counter()
            result = tool(
                "finetune", "run", "--backbone", name, "--head", "captioner", "--data", data, "--name", f"bench-{name}",
                "--set", "data.split=ordered:800,100", "--set", f"train.seed={seed}", "--again",
            )  # fmt: skip
            seconds = time.perf_counter() - started
            added = _store_bytes() - before
            head = next(c for c in tool("zoo", "show", result["reference"])["components"] if c["name"] == "head")
            figure(
                f"captioner {name} seed {seed}",
                seconds=round(seconds, 1),
                steps=result["steps"],
                metrics={k: v for k, v in result["metrics"]["validation"].items() if isinstance(v, int | float)},
                head_bytes=head["bytes"],
                catalogue_bytes_added=added,
            )


def _store_bytes() -> int:
    """Bytes of everything that the catalogue keeps; job folders are not part of it."""
    root = Path(os.environ["MODELZOO_STORE"].removeprefix("file://"))
    folders = [root / "blobs", root / "manifests", root / "models"]
    return sum(p.stat().st_size for folder in folders for p in folder.rglob("*") if p.is_file())


@contextmanager
def serving() -> Iterator[str]:
    process = subprocess.Popen([BIN / "zoo", "serve", "--address", "127.0.0.1:0"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["address"]
    finally:
        process.terminate()
        process.wait(timeout=30)


def bench_latency(runs: int) -> None:
    """A caption call on a warm server beside a bare forward pass of the same backbone, in turns of ten."""
    import numpy as np

    from finetune.client import ZooClient
    from finetune.models.backbone import Backbone
    from zoo.catalog import open_catalog

    image = sorted((SHARED / "data/flickr1k/images").glob("*.jpg"))[-1].read_bytes()
    for name in CHECKPOINTS:
        reference = f"bench-{name}"
        backbone = Backbone.from_version(open_catalog(), reference)
        image_BHWC = np.zeros((1, backbone.input_spec.height, backbone.input_spec.width, 3), np.float32)
        with serving() as address, ZooClient(address) as client:
            for _ in range(5):
                client.caption(reference, [image])
                np.asarray(backbone.feature_vector(image_BHWC))
            calls, passes = [], []
            for _ in range(max(runs, 5)):  # in blocks: threads of one that still spin would slow the other
                calls += [timed(lambda r=reference: client.caption(r, [image])) for _ in range(12)][2:]
                passes += [timed(lambda b=backbone, i=image_BHWC: np.asarray(b.feature_vector(i))) for _ in range(12)][
                    2:
                ]
        call, forward = statistics.median(calls), statistics.median(passes)
        figure(
            f"caption call {name}",
            call_ms=round(call * 1000, 1),
            forward_ms=round(forward * 1000, 1),
            ratio=round(call / forward, 2),
        )


def of_script(name: str, *, repeats: bool = True) -> Callable[[int], None]:
    """A figure that a script of its own measures, which may take `--runs`; what more it can: scripts/NAME --help."""

    def run(runs: int) -> None:
        options = ["--runs", str(runs)] if repeats else []
        subprocess.run([sys.executable, ROOT / "scripts" / name, *options], check=True)

    return run


FIGURES: dict[str, Callable[[int], None]] = {
    "help": bench_help,
    "import": bench_import,
    "captioner": bench_captioner,
    "latency": bench_latency,  # asks what `captioner` has published
    "transfer": of_script("bench_transfer.py"),  # 1 GiB up and down beside boto3, on a bucket and on a disk
    "doors": of_script("bench_doors.py"),  # imports of every format beside what can't be saved
    "catalogue": of_script("bench_catalog.py", repeats=False),  # 100,000 versions: index, pages, gets, catching up
    "training": of_script("bench_training.py"),  # steps beside bare loops, features once, what a Checkpoint holds up
    "distributed": of_script("bench_distributed.py"),  # two processes together beside two apart
    "input": of_script("bench_input.py"),  # decoding, resizing and augmenting photos beside bare tf.data
    "queue": of_script("bench_queue.py"),  # orders, features, buckets, memory, equal batches
    "heads": of_script("bench_heads.py", repeats=False),  # what heads reach on real data beside plain methods
    "evaluator": of_script("bench_evaluator.py"),  # training speed with a separate evaluator beside it and without
    "decoding": of_script("bench_decoding.py"),  # captions of each decoder, an image alone and among 32
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="*", choices=[*FIGURES, []], help="default: all")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--home", type=Path, help="where stores and caches lie; default: a new folder, removed after")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = (options.home or Path(scratch)).resolve()
        os.environ |= {
            "MODELZOO_STORE": f"file://{home / 'store'}",
            "MODELZOO_CACHE": str(home / "cache"),
            "MODELZOO_HOME": str(home / "home"),
        }
        figure("machine", cores=os.cpu_count(), python=sys.version.split()[0])
        for name in options.figures or FIGURES:
            FIGURES[name](options.runs)


if __name__ == "__main__":
    main()
