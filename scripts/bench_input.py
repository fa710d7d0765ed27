"""What a picture costs on its way to the network: decoding and resizing beside bare tf.data, and each augmentation.

One JSON object a figure. Ours and TensorFlow's take turns in one process, on the same number of threads; a figure has
the medians of wall and CPU time over `--runs` turns and their ratios (TensorFlow's time / ours: above 1 we are faster).
On a machine that others use too the ratio of CPU times is the steadier one. Photos are made of `--photos`: each of
640 × 427 shows twelve of them at their own size (as much detail as a camera's), each of 4000 × 3000 four, enlarged.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
from PIL import Image

from finetune.data.augment import INCEPTION, augmented
from finetune.data.augment_mix import mix_batch
from finetune.data.augmentation import Augmentation, Erase, RandAugment
from finetune.data.preprocess import load_pixels
from zoo.input_spec import InputSpec

PHOTOS = Path(__file__).resolve().parent.parent.parent / "shared/data/flickr1k/images"
MAX_PIXELS = 50_000_000
SIDE = 299
BATCH = 32
THREADS = os.cpu_count() or 1


def figure(name: str, **values: Any) -> None:
    print(json.dumps({"figure": name, **values}), flush=True)


def mosaic(photos: Sequence[Path], columns: int, rows: int, size: tuple[int, int]) -> bytes:
    """Photos side by side, cut or enlarged to `size`: a JPEG of quality 90."""
    canvas = Image.new("RGB", (columns * 200, rows * 150))
    for place, path in enumerate(photos[: columns * rows]):
        with Image.open(path) as photo:
            canvas.paste(photo.resize((200, 150)), (place % columns * 200, place // columns * 150))
    enlarged = size[0] > canvas.width
    image = canvas.resize(size, Image.Resampling.BICUBIC) if enlarged else canvas.crop((0, 0, *size))
    with io.BytesIO() as buffer:
        image.save(buffer, "JPEG", quality=90)
        return buffer.getvalue()


def spent(action: Callable[[], Any]) -> tuple[float, float]:
    """Wall and CPU seconds of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return time.perf_counter() - wall, time.process_time() - cpu


def in_turns(ours: Callable[[], Any], theirs: Callable[[], Any], *, images: int, runs: int) -> dict[str, Any]:
    """Milliseconds an image, and theirs / ours."""
    times: dict[str, list[tuple[float, float]]] = {"ours": [], "tf_data": []}
    for turn in range(runs + 1):
        for name, action in (("ours", ours), ("tf_data", theirs)):
            seconds = spent(action)
            if turn:  # the first warms up: traces, memory, threads
                times[name].append(seconds)
    values: dict[str, Any] = {"runs": runs, "images": images, "threads": THREADS}
    medians = {name: [statistics.median(column) for column in zip(*rows, strict=True)] for name, rows in times.items()}
    for place, clock in enumerate(("wall", "cpu")):
        for name in times:
            values[f"{name}_{clock}_ms"] = round(medians[name][place] / images * 1000, 2)
        values[f"{clock}_ratio"] = round(medians["tf_data"][place] / medians["ours"][place], 2)
    return values


def batches(images: Sequence[bytes], spec: InputSpec, pool: ThreadPoolExecutor) -> None:
    for start in range(0, len(images), BATCH):
        some = images[start : start + BATCH]
        np.stack(list(pool.map(lambda data: load_pixels(data, spec, max_pixels=MAX_PIXELS), some)))


def bare_tf_data(images: Sequence[bytes], *, antialias: bool) -> Callable[[], None]:
    import tensorflow as tf

    def pixels(data: tf.Tensor) -> tf.Tensor:
        return tf.image.resize(tf.io.decode_jpeg(data, channels=3), (SIDE, SIDE), antialias=antialias)

    dataset = tf.data.Dataset.from_tensor_slices(list(images)).map(pixels, num_parallel_calls=THREADS).batch(BATCH)

    def run() -> None:
        for batch in dataset:
            batch.numpy()

    return run


def bench_decoding(photos: list[Path], runs: int) -> None:
    small = [mosaic(photos[first:], 4, 3, (640, 427)) for first in range(0, min(len(photos) - 12, 768), 6)]
    large = [mosaic(photos[first:], 2, 2, (4000, 3000)) for first in range(0, 16, 4)]
    # (an InputSpec's antialias, TensorFlow's): alike, and the default of the one beside the default of the other.
    pairs = [(True, True), (False, False), (True, False)]
    with ThreadPoolExecutor(THREADS) as pool:
        for name, images in (("640x427", small), ("4000x3000", large)):
            kilobytes = round(sum(map(len, images)) / len(images) / 1000)
            for ours_antialias, theirs_antialias in pairs:
                spec = InputSpec(width=SIDE, height=SIDE, antialias=ours_antialias)
                figure(
                    f"decode and resize {name} to {SIDE}",
                    kilobytes=kilobytes,
                    antialias=ours_antialias,
                    tf_antialias=theirs_antialias,
                    **in_turns(
                        partial(batches, images, spec, pool),
                        bare_tf_data(images, antialias=theirs_antialias),
                        images=len(images),
                        runs=runs,
                    ),
                )
    bench_difference(large)


def bench_difference(images: Sequence[bytes]) -> None:
    """In levels of 255, beside Pillow's antialiased resize of every pixel."""
    for side in (224, SIDE):
        mean, most = [], []
        for data in images:
            with Image.open(io.BytesIO(data)) as image:
                full = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR)).astype(int)
            made = load_pixels(data, InputSpec(width=side, height=side), max_pixels=MAX_PIXELS)
            mean.append(np.abs(made - full).mean())
            most.append(np.abs(made - full).max())
        figure(
            f"4000x3000 to {side} beside Pillow's full-size result",
            mean_levels=round(float(np.mean(mean)), 3),
            worst_mean_levels=round(float(np.max(mean)), 3),
            largest_levels=int(np.max(most)),
        )


AUGMENTATIONS = {
    "crop": Augmentation(crop="inception"),
    "mirror": Augmentation(mirror=True),
    "colour fast": Augmentation(colour="fast"),
    "colour full": Augmentation(colour="full"),
    "rand_augment 2 at 9": Augmentation(rand_augment=RandAugment(number=2, magnitude=9)),
    "erase": Augmentation(erase=Erase(probability=1.0)),
    "Inception's: crop, mirror, colour full": INCEPTION,
}


def bench_augmentations(photos: list[Path], runs: int) -> None:
    """CPU milliseconds a picture of 299 × 299, on top of decoding and resizing (a crop may save some of that)."""
    spec = InputSpec(width=SIDE, height=SIDE)
    images = [mosaic(photos[first:], 4, 3, (640, 427)) for first in range(0, 192, 6)]

    def epoch_of(augmentation: Augmentation, epoch: int) -> None:
        settings: dict[str, Any] = {"seed": 1, "epoch": epoch, "may_mirror": True, "max_pixels": MAX_PIXELS}
        for index, data in enumerate(images):
            augmented(data, spec, augmentation, index=index, **settings)

    def cost(augmentation: Augmentation) -> float:
        seconds = [spent(partial(epoch_of, augmentation, epoch))[1] for epoch in range(runs + 1)]
        return statistics.median(seconds[1:]) / len(images) * 1000

    plain = cost(Augmentation())
    figure("augmentation: none", decode_and_resize_ms=round(plain, 2))
    for name, augmentation in AUGMENTATIONS.items():
        figure(f"augmentation: {name}", added_ms=round(cost(augmentation) - plain, 2))
    batch_BHWC = np.stack([load_pixels(data, spec, max_pixels=MAX_PIXELS) for data in images])
    for name, alphas in (("mixup", {"mixup": 0.2, "cutmix": 0.0}), ("cutmix", {"mixup": 0.0, "cutmix": 1.0})):
        mix = partial(mix_batch, batch_BHWC, seed=1, **alphas)
        seconds = [spent(partial(mix, position=number))[1] for number in range(runs + 1)]
        figure(f"augmentation: {name}", added_ms=round(statistics.median(seconds[1:]) / len(images) * 1000, 2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, default=PHOTOS, help="a folder of JPEGs")
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    photos = sorted(options.photos.glob("*.jpg"))
    if len(photos) < 204:
        parser.error(f"{options.photos} has {len(photos)} JPEGs, at least 204 are needed; name another with --photos")
    load = os.getloadavg()[0]
    figure("machine", cores=THREADS, load_average=round(load, 1), shared=load > THREADS)
    bench_decoding(photos, options.runs)
    bench_augmentations(photos, options.runs)


if __name__ == "__main__":
    main()
