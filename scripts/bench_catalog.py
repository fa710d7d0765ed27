"""The catalogue at 100,000 versions in 10,000 models: its index, gets and catching up; MLflow's registry beside it.

Builds a synthetic store in the exact format (written straight to the disk: publishing so many would take an hour),
measures in fresh processes, prints one JSON object a figure, and removes the store. MLflow runs in an environment of
its own, in process, on SQLite, and is left out with the reason where it isn't installed:

    python -m venv /tmp/mlflow && /tmp/mlflow/bin/pip install mlflow
    .venv/bin/python scripts/bench_catalog.py --mlflow-python /tmp/mlflow/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

_VERSIONS_EACH = 10
_RUNS = 7  # of what takes milliseconds
_FREE_NEEDED = 4 << 30  # bytes, for the largest store
_ARCHITECTURES = ("inception_v3", "efficientnet_lite0")
_LICENSES = ("MIT", "Apache-2.0", None)
_HEADS = ("classifier", "captioner", "embedding", None)
FILTER = "architecture = inception_v3 AND head = captioner AND metrics.validation.bleu_4 > 0.4"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, default=10_000, help=f"of {_VERSIONS_EACH} versions each")
    parser.add_argument("--s3-models", type=int, default=500, help="of the store on SeaweedFS; 0 leaves it out")
    parser.add_argument("--compared", type=int, default=2000, help="versions published for the comparison")
    parser.add_argument("--mlflow-python", type=Path, help="the Python of an environment that has mlflow")
    parser.add_argument("--folder", type=Path, help="where the stores are built; default: a temporary directory")
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "URL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        what, url = arguments.one
        print(json.dumps(_MEASURED[what](url)))
        return
    with tempfile.TemporaryDirectory(prefix="bench-catalog-", dir=arguments.folder) as name:
        folder = Path(name)
        if shutil.disk_usage(folder).free < _FREE_NEEDED:
            sys.exit(f"bench_catalog: {folder} has less than {_FREE_NEEDED >> 30} GiB free")
        os.environ["MODELZOO_CACHE"] = str(folder / "cache")
        on_disk(folder, arguments.models)
        if arguments.s3_models:
            in_bucket(folder, arguments.s3_models)
        compared(folder, arguments.compared, arguments.mlflow_python)


def figure(name: str, **values: Any) -> None:
    print(json.dumps({"figure": name, **values}), flush=True)


def on_disk(folder: Path, models: int) -> None:
    url = (folder / "store").as_uri()
    started = time.perf_counter()
    for key, data in objects(models):
        path = folder / "store" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    figure("catalogue_built", store="file", models=models, versions=models * _VERSIONS_EACH, **_seconds(started))
    time.sleep(3.1)  # a folder written to just now is looked at again: that is another figure than nothing new
    for what in ("rebuild", "pages", "catch_up", "get"):
        figure(f"catalogue_{what}", store="file", models=models, **measured(what, url))


def in_bucket(folder: Path, models: int) -> None:
    from tests.seaweed import BUCKET, SeaweedFailed, SeaweedMissing, running_seaweed

    try:
        with running_seaweed(folder / "seaweed") as server:
            os.environ.update(server.environment())
            url = f"s3://{BUCKET}/bench"
            _upload(url, models)
            for what in ("rebuild", "catch_up", "full_listing", "pages", "get"):
                figure(f"catalogue_{what}", store="s3", models=models, **measured(what, url))
    except (SeaweedFailed, SeaweedMissing) as error:
        figure("catalogue_s3", left_out=str(error))


def _upload(url: str, models: int) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from zoo.store import open_store

    store = open_store(url)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda pair: store.create(*pair), objects(models)))


def measured(what: str, url: str) -> dict[str, Any]:
    """In a fresh process, so that its memory and its caches are its own."""
    command = [sys.executable, __file__, "--one", what, url]
    value: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return value


# -- the synthetic store


def objects(models: int) -> Iterator[tuple[str, bytes]]:
    """Every object of a store with so many models, but for blobs, which no index reads."""
    from zoo.log import AliasSet, Created, Event, VersionPublished, encode_event
    from zoo.log_keys import event_key
    from zoo.manifests import manifest_key

    chance = random.Random(7)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    yield "store.json", b'{"id":"%032x","schema":1}' % chance.getrandbits(128)
    for number in range(models):
        name = f"team-{number % 50}/model-{number:05}"
        changes: list[Any] = [Created()]
        for version in range(1, _VERSIONS_EACH + 1):
            manifest = _manifest(chance, name, version)
            yield manifest_key(manifest.digest()), manifest.canonical_bytes()
            changes.append(VersionPublished(version=version, digest=manifest.digest()))
        if number % 10 == 0:
            changes.append(AliasSet(alias="prod", version=_VERSIONS_EACH // 2))
        for seq, change in enumerate(changes, start=1):
            event_id = f"{chance.getrandbits(128):032x}"
            time_of = start + timedelta(minutes=number, seconds=seq)
            yield event_key(name, seq), encode_event(Event(seq=seq, id=event_id, time=time_of, change=change))


def _manifest(chance: random.Random, name: str, version: int) -> Any:
    from zoo.input_spec import InputSpec
    from zoo.manifest import Architecture, Component, Head, Lineage, Manifest

    head = chance.choice(_HEADS)
    size = chance.choice((224, 299, 380))
    components = ("backbone", "head") if head else ("backbone",)
    return Manifest(
        architecture=Architecture(name=chance.choice(_ARCHITECTURES)),
        input_spec=InputSpec(height=size, width=size),
        components=tuple(
            Component(name=part, digest=f"sha256:{chance.getrandbits(256):064x}", bytes=90_000_000, num_tensors=190)  # type: ignore[arg-type]
            for part in components
        ),
        head=Head(kind=head, arguments={"units": 512}) if head else None,
        classes=tuple(f"class {n}" for n in range(chance.randint(2, 12))) if head == "classifier" else None,
        license=chance.choice(_LICENSES),
        lineage=Lineage(
            parent=f"{name}@{version - 1}" if version > 1 else None,
            job=f"job-{chance.getrandbits(48):012x}",
            tensors={f"backbone/mixed{n}/kernel": chance.choice(("frozen", "trained")) for n in range(15)},  # type: ignore[misc]
        ),
        metrics={
            split: {"bleu_4": chance.random(), "cider": chance.random(), "loss": chance.random()}
            for split in ("validation", "test")
        },
        tools={"modelzoo": "0.1.0", "tensorflow": "2.21.0", "keras": "3.15.1"},
    )


# -- what is measured, each in a process of its own


def _seconds(started: float) -> dict[str, float]:
    return {"seconds": round(time.perf_counter() - started, 3)}


def _median_ms(call: Callable[[], object], runs: int = _RUNS) -> float:
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return round(statistics.median(times) * 1000, 2)


@contextmanager
def _index(url: str) -> Iterator[Any]:
    from zoo.catalog import open_catalog
    from zoo.search.index import CatalogIndex

    with CatalogIndex.open(open_catalog(url)) as index:
        yield index


def _rebuild(url: str) -> dict[str, Any]:
    with _index(url) as index:
        before = time.process_time()
        started = time.perf_counter()
        index.rebuild()
        took = _seconds(started)
        page = index.search(page_size=1, all_versions=True)
        assert page.versions, "an empty index"
        return {
            **took,
            "cpu_seconds": round(time.process_time() - before, 2),
            "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000),
            "problems": len(page.problems),
        }


def _pages(url: str) -> dict[str, Any]:
    """First pages of 100 with what a page prints, without and with catching up before."""
    with _index(url) as index:
        searched: dict[str, Callable[[], object]] = {
            "first_page_ms": lambda: index.search(FILTER, catch_up=False),
            "first_page_caught_up_ms": lambda: index.search(FILTER),
            "first_page_all_versions_ms": lambda: index.search(FILTER, all_versions=True, catch_up=False),
            "first_page_newest_first_ms": lambda: index.search(
                FILTER, "created desc", all_versions=True, catch_up=False
            ),
            "first_page_by_metric_ms": lambda: index.search(
                FILTER, "metrics.validation.bleu_4 desc", all_versions=True, catch_up=False
            ),
            "nothing_found_ms": lambda: index.search(
                "metrics.test.cider > 2 AND license:nothing", all_versions=True, catch_up=False
            ),
        }
        index.search(FILTER)  # warm
        return {name: _median_ms(call) for name, call in searched.items()} | {
            "found": len(index.search(FILTER).versions)
        }


def _catch_up(url: str) -> dict[str, Any]:
    with _index(url) as index:
        index.catch_up()
        in_process = _median_ms(index.catch_up)

    def anew() -> None:
        with _index(url) as index:
            index.catch_up()

    return {"nothing_new_ms": in_process, "nothing_new_and_open_ms": _median_ms(anew)}


def _full_listing(url: str) -> dict[str, Any]:
    with _index(url) as index:
        return {"milliseconds": _median_ms(index.full_catch_up, 3)}


def _get(url: str) -> dict[str, Any]:
    from zoo.catalog import open_catalog

    catalog = open_catalog(url)
    names = catalog.names()[:50]
    references = [f"{name}{at}" for name in names for at in ("", "@3")]
    first = iter(references)
    cold = _median_ms(lambda: catalog.get(next(first)), len(references))
    again = iter(references)
    return {"first_ms": cold, "warm_ms": _median_ms(lambda: catalog.get(next(again)), len(references))}


_MEASURED: dict[str, Callable[[str], dict[str, Any]]] = {
    "rebuild": _rebuild,
    "pages": _pages,
    "catch_up": _catch_up,
    "full_listing": _full_listing,
    "get": _get,
}


# -- the same operations on both registries

_COMPARED_MODELS = 10  # names that the compared versions are spread over

_MLFLOW = """
import json, sys, time
from mlflow import MlflowClient
versions, models, url = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
client = MlflowClient(tracking_uri=url, registry_uri=url)
for n in range(models):
    client.create_registered_model(f"m{n}")
client.get_registered_model("m0")
def rate(call, count):
    started = time.perf_counter()
    for i in range(count):
        call(i)
    return round(count / (time.perf_counter() - started), 1)
def create(i):
    tags = {"architecture": "a", "bleu_4": str(i / versions)}
    client.create_model_version(f"m{i % models}", source="s3://b/x", tags=tags)
def alias(i):
    client.set_registered_model_alias(f"m{i % models}", "prod", str(1 + i % each))
each = versions // models
out = {
    "publishes_per_s": rate(create, versions),
    "gets_per_s": rate(lambda i: client.get_model_version(f"m{i % models}", str(1 + i // models % each)), 500),
    "alias_moves_per_s": rate(alias, 500),
}
started = time.perf_counter()
times = []
for _ in range(7):
    started = time.perf_counter()
    found = client.search_model_versions("name = 'm3' AND tags.architecture = 'a'", max_results=100)
    times.append(time.perf_counter() - started)
out["filtered_page_ms"] = round(sorted(times)[3] * 1000, 2)
out["found"] = len(found)
import mlflow
out["version"] = mlflow.__version__
print(json.dumps(out))
"""


def compared(folder: Path, versions: int, mlflow_python: Path | None) -> None:
    """Publishes with tiny blobs, gets, alias moves and a filtered page; the same on MLflow's registry."""
    figure("registry", of="modelzoo", versions=versions, **_ours(folder, versions))
    if mlflow_python is None or not mlflow_python.exists():
        said = "not asked for: --mlflow-python PATH" if mlflow_python is None else f"no Python at {mlflow_python}"
        figure("registry", of="mlflow", left_out=said)
        return
    url = f"sqlite:///{folder}/mlflow.db"
    command = [mlflow_python, "-W", "ignore", "-c", _MLFLOW, str(versions), str(_COMPARED_MODELS), url]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    if done.returncode:
        figure("registry", of="mlflow", left_out=f"it failed: {done.stderr.strip().splitlines()[-1:]}")
        return
    figure("registry", of="mlflow", versions=versions, **json.loads(done.stdout.splitlines()[-1]))


def _ours(folder: Path, versions: int) -> dict[str, Any]:
    from zoo.catalog import open_catalog
    from zoo.file_hash import hash_file
    from zoo.input_spec import InputSpec
    from zoo.manifest import Architecture, Component, Manifest
    from zoo.search.index import CatalogIndex

    catalog = open_catalog((folder / "compared").as_uri())
    blob = folder / "blob"
    blob.write_bytes(b"x" * 1000)
    hashed = hash_file(blob)
    part = Component.of("backbone", hashed, num_tensors=1)
    each = versions // _COMPARED_MODELS

    def publish(number: int) -> None:
        manifest = Manifest(
            architecture=Architecture(name="a"),
            input_spec=InputSpec(height=299, width=299),
            components=(part,),
            metrics={"test": {"bleu_4": number / versions}},
        )
        catalog.publish(f"m{number % _COMPARED_MODELS}", manifest, {hashed.digest: hashed})

    def alias(number: int) -> None:
        name = f"m{number % _COMPARED_MODELS}"
        catalog.set_alias(name, "prod", f"{name}@{1 + number % each}")

    rates = {
        "publishes_per_s": _rate(publish, versions),
        "gets_per_s": _rate(lambda n: catalog.get(f"m{n % _COMPARED_MODELS}@{1 + n // _COMPARED_MODELS % each}"), 500),
        "alias_moves_per_s": _rate(alias, 500),
    }
    with CatalogIndex.open(catalog) as index:
        index.catch_up()
        time.sleep(3.1)
        index.catch_up()
        asked = "name = m3 AND architecture = a"
        milliseconds = _median_ms(lambda: index.search(asked, all_versions=True))
        return {
            **rates,
            "filtered_page_ms": milliseconds,
            "found": len(index.search(asked, all_versions=True).versions),
        }


def _rate(call: Callable[[int], object], count: int) -> float:
    started = time.perf_counter()
    for number in range(count):
        call(number)
    return round(count / (time.perf_counter() - started), 1)


if __name__ == "__main__":
    main()
