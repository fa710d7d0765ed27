"""What the input queue gives: orders, cached features, images from a disk and a bucket, memory, and equal batches.

One JSON object a figure; rates are medians over `--runs`, ratios of things measured in turns in this process; `load` is
the machine's load average when the figure was taken. `--only NAME …` chooses. Photos are made of `--photos`; `s3` needs
SeaweedFS.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # for the S3 server and the backbone of the tests
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
from bench_input import PHOTOS, mosaic

from finetune.data.image_queue import QueueSizes
from finetune.data.order import EpochOrder, RowOrder
from finetune.data.order_balanced import BalancedOrder
from finetune.data.order_weighted import WeightedOrder
from finetune.data.share import Share
from finetune.data.source import Example, ExampleSource
from finetune.data.sources import open_source
from finetune.models.heads.head import TargetTable
from finetune.training.image_rows import ImageRows
from finetune.training.split_data import SplitData
from zoo.input_spec import InputSpec

MAX_PIXELS = 50_000_000
DIM = 2048
ROWS = 20_000  # feature vectors: 164 MB, more than the caches of any machine of two cores


def figure(name: str, **values: Any) -> None:
    print(json.dumps({"figure": name, **values, "load": round(os.getloadavg()[0], 1)}), flush=True)


def rate(action: Callable[[], Any], count: int, runs: int) -> float:
    """Of `count` things an `action` does, a second of wall time."""
    times = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        action()
        times.append(time.perf_counter() - began)
    return count / statistics.median(times[1:])  # the first warms up


def orders(runs: int) -> None:
    """≥ 2,000,000 indices a second."""
    random = np.random.default_rng(0)
    uneven = np.minimum((1000 * random.random(1_000_000) ** 3).astype(np.int64), 999)
    tiny = np.repeat(np.arange(1000), 3)
    made: dict[str, RowOrder] = {
        "shuffled, 1,000,000 rows": EpochOrder(1_000_000, 1),
        "shuffled, 10,000,000 rows": EpochOrder(10_000_000, 1),
        "balanced, 1,000 uneven classes of 1,000,000 rows": BalancedOrder.of_labels(uneven, 1),
        "balanced, 2 classes of 1,000,000 rows": BalancedOrder.of_labels((uneven > 30).astype(np.int64), 1),
        "balanced, 1,000 classes of 3 rows": BalancedOrder.of_labels(tiny, 1),
        "weighted, 1,000,000 rows": WeightedOrder(random.random(1_000_000), 1),
    }
    for name, order in made.items():
        times = []
        for run in range(runs + 1):
            cpu, began = time.thread_time(), time.perf_counter()
            order.at(12_345 + run * 1_000_000, 1_000_000)
            times.append((time.perf_counter() - began, time.thread_time() - cpu))
        wall, cpu_seconds = (statistics.median(column) for column in zip(*times[1:], strict=True))
        figure(f"order: {name}", indices_per_second=round(1e6 / wall), by_cpu_time=round(1e6 / cpu_seconds))


def epochs(runs: int) -> None:
    """No two of the first 1,000 alike, by their first 1,000 places."""
    for rows in (100, 65_536, 1_000_000):
        order = EpochOrder(rows, 1)
        seen = {order.indices(epoch, 0, min(rows, 1000)).tobytes() for epoch in range(1000)}
        figure(f"epochs of {rows} rows", first=1000, different=len(seen))


def features(runs: int) -> None:
    """≥ 200,000 examples a second of 2048 floats; beside NumPy on one core, gathering rows into a small array."""
    import tensorflow as tf

    from finetune.data.queue import training_batches

    table = TargetTable(
        image_index=np.arange(ROWS, dtype=np.int32), arrays={"label": (np.arange(ROWS) % 100).astype(np.int32)}
    )
    values = np.random.default_rng(0).standard_normal((ROWS, 1, DIM)).astype(np.float32)
    batch, steps = 256, 400
    balanced = BalancedOrder.of_labels(table.arrays["label"], 1)
    row_R = EpochOrder(ROWS, 1).at(0, batch)
    into_RD = np.empty((batch, DIM), np.float32)
    gather = partial(np.take, values[:, 0], row_R, axis=0, out=into_RD)
    numpy = rate(lambda: [gather() for _ in range(steps)], batch * steps, runs)
    with tempfile.NamedTemporaryFile() as file:
        mapped = np.memmap(file.name, np.float32, "w+", shape=values.shape)
        mapped[:] = values
        for name, array, order in (
            ("float32", values, None),
            ("float32, memory-mapped", mapped, None),
            ("float16", values.astype(np.float16), None),
            ("float32, balanced", values, balanced),
        ):
            made = training_batches(table=table, features=array, batch_size=batch, seed=1, order=order)
            iterator = iter(made)

            @tf.function
            def consume(iterator: Any) -> Any:
                total = tf.constant(0.0)
                for _ in tf.range(steps):
                    inputs, _targets = next(iterator)
                    total += inputs["feature_vector"][0, 0]
                return total

            found = rate(lambda call=consume, given=iterator: call(given).numpy(), batch * steps, runs)  # type: ignore[misc]
            figure(
                f"feeding features, {name}",
                examples_per_second=round(found),
                gigabytes_per_second=round(found * DIM * array.itemsize / 1e9, 2),
                numpy_one_core=round(numpy),
                ratio=round(found / numpy, 2),
            )


@contextmanager
def photo_folder(photos: Sequence[Path], count: int, size: tuple[int, int]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        columns, rows = max(1, -(-size[0] // 200)), max(1, -(-size[1] // 150))
        for place in range(count):
            path = root / ("odd" if place % 2 else "even") / f"{place:04d}.jpg"
            path.parent.mkdir(exist_ok=True)
            first = place * 3 % (len(photos) - columns * rows)
            path.write_bytes(mosaic(photos[first:], columns, rows, size))
        yield root


def split_of(source: ExampleSource) -> SplitData:
    count = len(source.examples)
    table = TargetTable(image_index=np.arange(count, dtype=np.int32), arrays={"row": np.arange(count)})
    return SplitData.join(
        name="train", examples=tuple(source.examples), source_index=range(count), table=table, features_NVD=None
    )


def image_rows(
    source: ExampleSource,
    *,
    side: int,
    batch: int,
    first: int = 0,
    share: Share | None = None,
    sizes: QueueSizes | None = None,
) -> ImageRows:
    return ImageRows(
        split=split_of(source), source=source, spec=InputSpec(width=side, height=side), seed=1, views=1,
        share=share or Share(batch_size=batch), sizes=sizes, max_pixels=MAX_PIXELS, max_bad_share=0.0,
        start_step=first,
    )  # fmt: skip


def equal(photos: Sequence[Path]) -> None:
    """The first 10,000 indices and pixels for 1, 2, 7 threads, one and three workers, and resumed at step 777."""
    batch, steps = 8, 1250

    def hashes(source: ExampleSource, first: int = 0, **more: Any) -> dict[int, list[tuple[int, str]]]:
        with image_rows(source, side=24, batch=batch, first=first, **more) as batches:
            found = {}
            for step in range(first, steps):
                inputs, targets = next(batches)
                found[step] = [
                    (int(row), hashlib.sha256(image.tobytes()).hexdigest())
                    for row, image, weight in zip(targets["row"], inputs["image"], targets["weight"], strict=True)
                    if weight
                ]
            return found

    with photo_folder(photos, 150, (60, 40)) as root:
        source = open_source(f"folder:{root}")
        one = hashes(source, sizes=QueueSizes(readers=1, decoders=1))
        order = EpochOrder(150, 1).at(0, batch * steps)
        same = {"order": [row for step in range(steps) for row, _ in one[step]] == order.tolist()}
        for threads in (2, 7):
            same[f"{threads} threads"] = hashes(source, sizes=QueueSizes(readers=threads, decoders=threads)) == one
        shares = [
            hashes(source, share=Share(batch_size=batch, worker=worker, num_workers=3), sizes=QueueSizes(readers=2))
            for worker in range(3)
        ]
        same["3 workers"] = {step: [row for share in shares for row in share[step]] for step in range(steps)} == one
        resumed = hashes(source, first=777)
        same["resumed at 777"] = resumed == {step: rows for step, rows in one.items() if step >= 777}
    figure("equal batches", images=batch * steps, **same)


def epoch_seconds(batches: ImageRows, steps: int) -> float:
    began = time.perf_counter()
    for _ in range(steps):
        next(batches)
    return time.perf_counter() - began


def s3(photos: Sequence[Path], runs: int) -> None:
    """≥ 0.8 of what the same photos give from the disk, once they have been read."""
    from tests.seaweed import running_seaweed
    from zoo.store import open_store

    with (
        photo_folder(photos, 192, (640, 427)) as root,
        tempfile.TemporaryDirectory() as scratch,
        running_seaweed(Path(scratch) / "server") as server,
    ):
        os.environ |= server.environment() | {"MODELZOO_CACHE": f"{scratch}/cache"}
        url, steps = "s3://zoo/photos", 192 // 16
        store = open_store(url)
        for path in root.glob("*/*.jpg"):
            store.put(path.relative_to(root).as_posix(), path.read_bytes())
        local = image_rows(open_source(f"folder:{root}"), side=299, batch=16)
        far = image_rows(open_source(f"folder:{url}"), side=299, batch=16)
        with local, far:
            cold = epoch_seconds(far, steps)
            epoch_seconds(local, steps)
            pairs = [(epoch_seconds(local, steps), epoch_seconds(far, steps)) for _ in range(runs)]
        figure(
            "images from s3, warm",
            local_images_per_second=round(192 / statistics.median(one for one, _ in pairs), 1),
            s3_images_per_second=round(192 / statistics.median(other for _, other in pairs), 1),
            s3_cold_images_per_second=round(192 / cold, 1),
            ratio=round(statistics.median(one / other for one, other in pairs), 2),
        )


@dataclass(frozen=True)
class Delayed:
    """A bucket that takes `seconds` longer to answer."""

    inner: ExampleSource
    seconds: float

    @property
    def location(self) -> str:
        return "folder:s3://delayed/photos"

    @property
    def examples(self) -> Sequence[Example]:
        return self.inner.examples

    @property
    def bad_records(self) -> Any:
        return self.inner.bad_records

    @property
    def classes(self) -> tuple[str, ...] | None:
        return self.inner.classes

    def read(self, index: int) -> bytes:
        time.sleep(self.seconds)
        return self.inner.read(index)


def cold(photos: Sequence[Path], runs: int) -> None:
    """Features of photos that take 30 ms longer each to come: how much longer the passes take for it (< 10 %)."""
    from finetune.data.features import FeatureCache
    from finetune.models.backbone import Backbone
    from zoo.cache.blob_cache import BlobCache
    from zoo.catalog import Catalog
    from zoo.store.memory import MemoryStore

    catalog = Catalog(MemoryStore("bench"), BlobCache(Path(tempfile.mkdtemp())))
    backbone = Backbone.from_version(catalog, published(catalog))
    with photo_folder(photos, 192, (640, 427)) as root:
        near = open_source(f"folder:{root}")
        far = Delayed(near, 0.030)

        def seconds(source: ExampleSource) -> float:
            with tempfile.TemporaryDirectory() as cache:
                began = time.perf_counter()
                FeatureCache(Path(cache)).open_or_fill(
                    backbone=backbone, source=source, indices=range(192), max_pixels=MAX_PIXELS
                )
                return time.perf_counter() - began

        seconds(near)
        pairs = [(seconds(near), seconds(far)) for _ in range(runs)]
    figure(
        "features of photos with 30 ms added a request, cold",
        backbone="efficientnet_lite0",
        local_images_per_second=round(192 / statistics.median(one for one, _ in pairs), 1),
        delayed_images_per_second=round(192 / statistics.median(other for _, other in pairs), 1),
        waits_share=round(statistics.median(max(0.0, 1 - one / other) for one, other in pairs), 3),
    )


def published(catalog: Any) -> Any:
    """EfficientNet-Lite0 at its width, with seeded weights: a pass takes as long as with trained ones."""
    from tests.tiny import tiny_backbone_version
    from zoo.manifest import Architecture

    return tiny_backbone_version(
        catalog, "backbone", size=224, architecture=Architecture(name="efficientnet_lite0", arguments={})
    )


def memory(photos: Sequence[Path], runs: int) -> None:
    """The process' memory after 2 and after 20 epochs (± 5 %)."""

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with (
        photo_folder(photos, 96, (640, 427)) as root,
        image_rows(open_source(f"folder:{root}"), side=224, batch=16) as batches,
    ):
        after = []
        for _ in range(20):
            epoch_seconds(batches, 6)
            after.append(resident() / 1e6)
    figure(
        "memory over 20 epochs",
        megabytes_after_2=round(after[1], 1),
        megabytes_after_20=round(after[-1], 1),
        most=round(max(after[1:]), 1),
        growth=round(after[-1] / after[1] - 1, 4),
    )


FIGURES: dict[str, Callable[[Sequence[Path], int], None]] = {
    "orders": lambda photos, runs: orders(runs),
    "epochs": lambda photos, runs: epochs(runs),
    "features": lambda photos, runs: features(runs),
    "equal": lambda photos, runs: equal(photos),
    "s3": s3,
    "cold": cold,
    "memory": memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="a folder of JPEGs")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=[*FIGURES], default=[*FIGURES])
    options = parser.parse_args()
    photos = sorted(options.photos.glob("*.jpg"))
    if len(photos) < 204:
        parser.error(f"{options.photos} has {len(photos)} JPEGs, at least 204 are needed; name another with --photos")
    figure("machine", cores=os.cpu_count())
    for name in options.only:
        FIGURES[name](photos, options.runs)


if __name__ == "__main__":
    main()
