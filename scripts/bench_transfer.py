"""Moves one large file up to and down from a store, beside plain boto3's best, and prints one JSON object a figure.

Takes a size and how often; starts SeaweedFS itself. Every run is a fresh process (so that its peak memory is its own),
ours and boto3's by turns, with the same part size and the same server. Ours is what a publish and a pull do, hashes
included: up `hash_file` then `create_from_file`, down `BlobCache.open_blob` into an empty cache. boto3's best is the
better of the numbers of threads in _THREADS, with checksums as ours ("when_required") and the classic transfer client.

    .venv/bin/python scripts/bench_transfer.py --mib 1024 --runs 5
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PART = 8 << 20  # bytes, for both
_THREADS = (4, 10)  # of boto3: what was best here, and its default
_WAYS = ("ours", "file", *(f"boto3-{threads}" for threads in _THREADS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--one", nargs=3, metavar=("DIRECTION", "WAY", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        direction, way, folder = arguments.one
        print(json.dumps(one(direction, way, Path(folder))))
        return
    from tests.seaweed import running_seaweed

    with tempfile.TemporaryDirectory(prefix="bench-transfer-") as name:
        folder = Path(name)
        with running_seaweed(folder / "server") as server:
            os.environ.update(server.environment())
            figures(folder, arguments.mib, arguments.runs)


def figures(folder: Path, mib: int, runs: int) -> None:
    """Prints the figures; needs room for some eight files of that size."""
    write_file(folder / "file", mib)
    taken = {direction: {way: [] for way in _WAYS} for direction in ("up", "down")}
    for direction, by_way in taken.items():
        for run in range(runs):
            turn = run % len(_WAYS)
            for way in _WAYS[turn:] + _WAYS[:turn]:
                command = [sys.executable, __file__, "--one", direction, way, str(folder)]
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
                by_way[way].append(json.loads(done.stdout))
        seconds = {way: statistics.median(run["seconds"] for run in by_way[way]) for way in _WAYS}
        best = min((way for way in _WAYS if way.startswith("boto3")), key=lambda way: seconds[way])
        for way, figure in (("ours", f"s3_transfer_{direction}"), ("file", f"file_transfer_{direction}")):
            result = {
                "figure": figure,
                "mib": mib,
                "runs": runs,
                "ours_mib_per_second": round(mib / seconds[way], 1),
                "boto3_mib_per_second": round(mib / seconds[best], 1),
                "boto3_configuration": best,
                "ratio": round(seconds[best] / seconds[way], 3),
                "ours_peak_rss_mb": max(run["rss_mb"] for run in by_way[way]),
                "boto3_peak_rss_mb": max(run["rss_mb"] for run in by_way[best]),
                "ours_seconds": [run["seconds"] for run in by_way[way]],
                "boto3_seconds": [run["seconds"] for run in by_way[best]],
            }
            print(json.dumps(result), flush=True)


def write_file(path: Path, mib: int) -> None:
    """Bytes that don't compress, the same each time; and beside it what a manifest says of them."""
    from zoo.file_hash import hash_file

    block = hashlib.shake_256(b"bench").digest(1 << 20)
    with path.open("wb") as file:
        for number in range(mib):
            file.write(number.to_bytes(8, "big") + block[8:])
        file.flush()
        os.fsync(file.fileno())
    hashed = hash_file(path)
    manifest = {"digest": hashed.digest, "size": hashed.bytes, "chunks": hashed.chunks}
    path.with_name("manifest.json").write_text(json.dumps(manifest))


def one(direction: str, way: str, folder: Path) -> dict[str, Any]:
    if way.startswith("boto3"):
        return boto3_transfer(direction, int(way.partition("-")[2]), folder)
    url = "s3://zoo/ours" if way == "ours" else f"file://{folder}/store"
    return our_up(url, folder) if direction == "up" else our_down(url, folder)


def timed(work: Callable[[], Any]) -> dict[str, Any]:
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": round(seconds, 3), "rss_mb": round(peak * 1024 / 1e6, 1)}


def our_up(url: str, folder: Path) -> dict[str, Any]:
    from zoo.cache import blob_key
    from zoo.file_hash import hash_file
    from zoo.store import open_store

    store = open_store(url)
    store.delete(blob_key(json.loads((folder / "manifest.json").read_bytes())["digest"]))

    def work() -> None:
        hashed = hash_file(folder / "file")
        store.create_from_file(blob_key(hashed.digest), folder / "file", chunks=hashed.chunks)

    return timed(work)


def our_down(url: str, folder: Path) -> dict[str, Any]:
    from zoo.cache import BlobCache
    from zoo.store import open_store

    store, cache = open_store(url), folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    said = json.loads((folder / "manifest.json").read_bytes())
    store.delete("nothing")  # a connection is there, as it is for a pull that has read the manifest
    try:
        return timed(
            lambda: BlobCache(cache).open_blob(
                store, said["digest"], size=said["size"], chunks=said["chunks"], what="the benchmark's file"
            )
        )
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def boto3_transfer(direction: str, threads: int, folder: Path) -> dict[str, Any]:
    import boto3
    from boto3.s3.transfer import TransferConfig
    from botocore.config import Config

    client = boto3.client(
        "s3",
        config=Config(
            s3={"addressing_style": "path"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            max_pool_connections=threads * 2,
        ),
    )
    transfer = TransferConfig(
        multipart_threshold=PART,
        multipart_chunksize=PART,
        max_concurrency=threads,
        preferred_transfer_client="classic",
    )
    key = f"plain/{threads}"
    if direction == "up":
        client.delete_object(Bucket="zoo", Key=key)
        return timed(lambda: client.upload_file(str(folder / "file"), "zoo", key, Config=transfer))
    client.delete_object(Bucket="zoo", Key="nothing")
    copy = folder / "copy"
    try:
        return timed(lambda: client.download_file("zoo", key, str(copy), Config=transfer))
    finally:
        copy.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
