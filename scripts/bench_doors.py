#!/usr/bin/env python
"""What an import costs: Inception v3's real tensors through each door, against what can't be saved.

For each format the tensors are written with the format's own library. Then, taking turns: `zoo import` as a process,
and a process that reads and hashes the same bytes and builds the network once. A figure a line as JSON: the medians,
their ratio, and both processes' peak memory. Needs the TF.js checkpoint of ../shared.
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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv" / "bin"
CHECKPOINT = ROOT.parent / "shared" / "checkpoints" / "inception_v3_tfjs"

_WRITE = """
import sys, json, numpy as np
from pathlib import Path
folder = Path(sys.argv[1])
import keras, tensorflow as tf
from zoo.architectures import ARCHITECTURES
from zoo.catalog import open_catalog
from zoo.tensors import read_safetensors, write_safetensors
catalog = open_catalog()
tensors = read_safetensors(catalog.open_component(catalog.get("v3"), "backbone"))
facts = ARCHITECTURES["inception_v3"]
def stored(layout):
    return {name: tensors[target.name] for name, target in facts.name_maps[layout].backbone({}).items()}
torch = {}
for name, target in facts.name_maps["torch"].backbone({}).items():
    value = tensors[target.name]
    torch[name] = np.ascontiguousarray(value.transpose(3, 2, 0, 1) if value.ndim == 4 else value)
    if target.times:
        torch[target.times] = np.ones(value.shape[-1], np.float32)
write_safetensors(folder / "torch.safetensors", torch)
model = keras.applications.InceptionV3(include_top=False, weights=None)
named = stored("keras-from-0")
for layer in model.layers:
    if layer.weights:
        layer.set_weights([named[f"{layer.name}/{weight.name}"] for weight in layer.weights])
model.save(folder / "v3.keras")
model.save_weights(folder / "v3.weights.h5")
with tf.Graph().as_default(), tf.compat.v1.Session() as session:
    variables = {n: tf.compat.v1.get_variable(n.replace("/", "."), initializer=v) for n, v in stored("slim").items()}
    session.run(tf.compat.v1.global_variables_initializer())
    for version, name in ((1, "v1.ckpt"), (2, "v2.ckpt")):
        saver = tf.compat.v1.train.Saver(variables, write_version=version)
        saver.save(session, str(folder / name), write_meta_graph=False, write_state=False)
"""
_BASE = """
import hashlib, sys
from pathlib import Path
for path in sys.argv[1:]:
    hashlib.sha256(Path(path).read_bytes())
from finetune.models.backbone import build_backbone
from zoo.architectures import ARCHITECTURES
from zoo.manifest import Architecture
build_backbone(Architecture(name="inception_v3"), ARCHITECTURES["inception_v3"].input_spec)
"""


def measured(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Seconds and peak megabytes of a process."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command} failed: {said.decode()[-2000:]}")
    return time.perf_counter() - began, usage.ru_maxrss / 1000


def run(runs: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="bench-doors-") as root:
        folder = Path(root)
        environment = os.environ | {
            "MODELZOO_STORE": (folder / "store").as_uri(),
            "MODELZOO_CACHE": str(folder / "cache"),
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "PYTHONPATH": str(ROOT),
        }
        zoo = [str(BIN / "zoo"), "import"]
        subprocess.run([*zoo, "tfjs", CHECKPOINT, "v3"], check=True, capture_output=True, env=environment)
        subprocess.run([sys.executable, "-c", _WRITE, root], check=True, capture_output=True, env=environment)
        doors = {
            "tfjs": ("tfjs", CHECKPOINT, sorted(CHECKPOINT.glob("*.bin"))),
            "safetensors, torch names": ("safetensors", folder / "torch.safetensors", [folder / "torch.safetensors"]),
            "keras .weights.h5": ("keras", folder / "v3.weights.h5", [folder / "v3.weights.h5"]),
            "keras .keras": ("keras", folder / "v3.keras", [folder / "v3.keras"]),
            "slim V2": ("slim", folder / "v2.ckpt", sorted(folder.glob("v2.ckpt.*"))),
            "slim V1": ("slim", folder / "v1.ckpt", [folder / "v1.ckpt"]),
        }
        figures = []
        for name, (kind, source, files) in doors.items():
            ours, base = [], []
            for turn in range(runs):
                command = [*zoo, kind, str(source), f"door-{turn}", "--architecture", "inception_v3", "--again"]
                ours.append(measured(command, environment))
                base.append(measured([sys.executable, "-c", _BASE, *map(str, files)], environment))
            seconds, plain = (statistics.median(pair[0] for pair in pairs) for pairs in (ours, base))
            figures.append(
                {
                    "figure": f"import Inception v3: {name}",
                    "seconds": round(seconds, 2),
                    "read_hash_build_seconds": round(plain, 2),
                    "ratio": round(seconds / plain, 3),
                    "peak_mb": round(max(pair[1] for pair in ours)),
                    "read_hash_build_peak_mb": round(max(pair[1] for pair in base)),
                    "file_mb": round(sum(path.stat().st_size for path in files) / 1e6, 1),
                    "weights_mb": 87.2,
                }
            )
        return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    for line in run(parser.parse_args().runs):
        print(json.dumps(line), flush=True)
