"""Moves one large file up to and down from a store, beside plain boto3's best, and prints one JSON object a figure.

Takes a size and how often; starts SeaweedFS itself. Every run is a fresh process (so that its peak memory is its own),
ours and boto3's by turns, with the same part size and the same server. Ours counts the hash pass in: `hash_file` then
`create_from_file`; down it is parallel ranges by `stream`, each chunk's SHA-256 checked. boto3's best is the best of
the configurations in _THREADS, checksums as ours ("when_required") and the classic transfer client.

    .venv/bin/python scripts/bench_transfer.py --mib 1024 --runs 5
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

PART = 8 << 20  # bytes, for both
_THREADS = (4, 10)  # of boto3: a middling number and its default
_READERS = 4  # of ours, down


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--store", help="s3://… of a server that runs already, else SeaweedFS is started")
    parser.add_argument("--one", nargs=3, metavar=("WHAT", "URL", "FILE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        what, url, file = arguments.one
        print(json.dumps(_WAYS[what](url, Path(file))))
        return
    with tempfile.TemporaryDirectory(prefix="bench-transfer-") as folder:
        if arguments.store:
            figures(arguments.store, Path(folder), arguments.mib, arguments.runs)
            return
        from tests.seaweed import BUCKET, running_seaweed

        with running_seaweed(Path(folder) / "server") as server:
            os.environ.update(server.environment())
            figures(f"s3://{BUCKET}/bench", Path(folder), arguments.mib, arguments.runs)


def figures(url: str, folder: Path, mib: int, runs: int) -> None:
    """Prints the figures; needs room for three files of that size."""
    file, copy = folder / "file", folder / "copy"
    write_file(file, mib)
    ways = {"up": ["ours", *(f"boto3-{n}" for n in _THREADS)], "down": ["ours", *(f"boto3-{n}" for n in _THREADS)]}
    for direction, names in ways.items():
        taken: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        for run in range(runs):
            for name in names[run % len(names) :] + names[: run % len(names)]:
                copy.unlink(missing_ok=True)
                command = [sys.executable, __file__, "--one", f"{direction}-{name}"]
                done = subprocess.run(
                    [*command, url, str(file if direction == "up" else copy)], stdout=subprocess.PIPE, check=True
                )
                taken[name].append(json.loads(done.stdout))
        seconds = {name: statistics.median(run["seconds"] for run in taken[name]) for name in names}
        best = min((name for name in names if name != "ours"), key=lambda name: seconds[name])
        figure = {
            "figure": f"transfer_{direction}",
            "mib": mib,
            "runs": runs,
            "ours_mib_per_second": round(mib / seconds["ours"], 1),
            "boto3_mib_per_second": round(mib / seconds[best], 1),
            "boto3_configuration": best,
            "ratio": round(seconds[best] / seconds["ours"], 3),
            "ours_peak_rss_mb": max(run["rss_mb"] for run in taken["ours"]),
            "boto3_peak_rss_mb": max(run["rss_mb"] for run in taken[best]),
            "seconds": {name: [run["seconds"] for run in taken[name]] for name in names},
        }
        print(json.dumps(figure), flush=True)


def write_file(path: Path, mib: int) -> None:
    """Bytes that don't compress, the same each time."""
    block = hashlib.shake_256(b"bench").digest(1 << 20)
    with path.open("wb") as file:
        for number in range(mib):
            file.write(number.to_bytes(8, "big") + block[8:])


def timed(work: Callable[[], None]) -> dict[str, Any]:
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    return {
        "seconds": round(seconds, 3),
        "rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000, 1),
    }


def ours_up(url: str, file: Path) -> dict[str, Any]:
    from zoo.file_hash import hash_file
    from zoo.store import open_store

    store = open_store(url)

    def work() -> None:
        hashed = hash_file(file)
        store.create_from_file("ours", file, chunks=hashed.chunks)

    store.delete("ours")
    return timed(work)


def ours_down(url: str, copy: Path) -> dict[str, Any]:
    from zoo.store import open_store

    store = open_store(url)

    def work() -> None:
        size = store.stat("ours").size
        with copy.open("xb") as target:
            target.truncate(size)
            descriptor = target.fileno()

            def fetch(start: int) -> str:
                chunk, at = hashlib.sha256(), start
                for piece in store.stream("ours", start=start, length=min(PART, size - start)):
                    os.pwrite(descriptor, piece, at)
                    chunk.update(piece)
                    at += len(piece)
                return chunk.hexdigest()

            with ThreadPoolExecutor(_READERS) as pool:
                list(pool.map(fetch, range(0, size, PART)))

    return timed(work)


def boto3_transfer(direction: str, threads: int) -> Callable[[str, Path], dict[str, Any]]:
    def run(url: str, file: Path) -> dict[str, Any]:
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
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        key = f"{prefix}/plain"
        if direction == "down":
            return timed(lambda: client.download_file(bucket, key, str(file), Config=transfer))
        client.delete_object(Bucket=bucket, Key=key)
        return timed(lambda: client.upload_file(str(file), bucket, key, Config=transfer))

    return run


_WAYS: dict[str, Callable[[str, Path], dict[str, Any]]] = {"up-ours": ours_up, "down-ours": ours_down}
for _threads in _THREADS:
    for _direction in ("up", "down"):
        _WAYS[f"{_direction}-boto3-{_threads}"] = boto3_transfer(_direction, _threads)

if __name__ == "__main__":
    main()
