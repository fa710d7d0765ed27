"""Batches of images for a network whose backbone is trained too: rows of targets joined with freshly decoded pixels.

Takes SplitData and the source of its images. Gives batches for `Trainer.run`. Next: `finetune.training.trainer`.

The order is that of training on features (`finetune.data.queue`): batch b is rows `EpochOrder.at(b × batch_size, …)`.
Which view of an image a row shows is decided by (seed, epoch, row), so that a resumed run sees the same pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune.data.augment import augmented
from finetune.data.augment_mirror import may_mirror
from finetune.data.augment_mix import mix_batch
from finetune.data.augmentation import Augmentation
from finetune.data.image_queue import ImageQueue, Place, QueueSizes
from finetune.data.order import GOLDEN, M1, EpochOrder, mixed, seed_keys
from finetune.data.preprocess import load_views, normalise
from finetune.data.share import Share
from finetune.data.source import Example, ExampleSource
from finetune.training.split_data import SplitData
from zoo.input_spec import InputSpec

Batch = tuple[dict[str, Any], dict[str, Any]]


@dataclass(frozen=True)
class _RowOrder:
    """The images of a worker's share, by their place in the source, in the order of the rows."""

    rows: EpochOrder
    image_of_row: np.ndarray  # int64 [rows]
    share: Share

    def at(self, first_position: int, count: int) -> np.ndarray:
        positions = (self.share.position(first_position + each) for each in range(count))
        return np.asarray([self.image_of_row[self.rows.at(position, 1)[0]] for position in positions], np.int64)


@dataclass(frozen=True)
class _Once:
    """0, 1, 2, … of a list of images; behind its end the last again, so that the last batch is full."""

    images: np.ndarray

    def at(self, first_position: int, count: int) -> np.ndarray:
        return np.asarray(self.images[np.minimum(first_position + np.arange(count), len(self.images) - 1)])


class ImageRows:
    """An iterator over ({"image": [B, H, W, 3]}, {every array of the table: [B, …], "weight": [B]}), from any step on.

    A context manager: leaving it stops the threads. Rows of images that can't be used have weight 0.
    """

    def __init__(
        self,
        *,
        split: SplitData,
        source: ExampleSource,
        spec: InputSpec,
        share: Share,
        seed: int,
        views: int,
        augmentation: Augmentation | None = None,
        max_pixels: int,
        max_bad_share: float,
        start_step: int = 0,
        sizes: QueueSizes | None = None,
    ) -> None:
        """`views`: see `finetune.data.preprocess.load_views`; row r of epoch e shows one of them. With `augmentation`
        every row of every epoch has pixels of its own instead, and mixed pictures come with "partner" and "share"."""
        self._table, self._share = split.table, share
        self._rows = EpochOrder(len(split.table.image_index), seed)
        self._augmentation, self._seed = augmentation or Augmentation(), seed

        def decode(data: bytes, place: Place) -> np.ndarray:
            epoch, at = divmod(share.position(place.position), self._rows.num_examples)
            row = int(self._rows.indices(epoch, at, 1)[0])
            if self._augmentation.changes_images:
                pixels = augmented(
                    data, spec, self._augmentation, seed=seed, epoch=epoch, index=row,
                    may_mirror=may_mirror(_texts(split.examples[split.table.image_index[row]])), max_pixels=max_pixels,
                )  # fmt: skip
            else:
                view = view_of_row(epoch, row, seed=seed, num_views=views)
                pixels = load_views(data, spec, views=(view,), max_pixels=max_pixels)[0]
            return normalise(pixels, spec)

        self.queue = ImageQueue(
            source=source,
            order=_RowOrder(self._rows, split.source_index[split.table.image_index], share),
            decode=decode,
            shape=(spec.height, spec.width, 3),
            batch_size=share.rows,
            start_step=start_step,
            max_bad_share=max_bad_share,
            sizes=sizes,
        )

    def __enter__(self) -> ImageRows:
        self.queue.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.queue.close()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        batch = next(self.queue)
        share = self._share
        rows = self._rows.at(batch.step * share.batch_size + share.first, share.rows)
        targets: Mapping[str, np.ndarray] = {name: array[rows] for name, array in self._table.arrays.items()}
        weight = batch.weight * share.weight_R
        return self._mixed(batch.image, weight, batch.step), {**targets, "weight": weight}

    def _mixed(self, image_BHWC: np.ndarray, weight_B: np.ndarray, step: int) -> dict[str, Any]:
        mixup, cutmix = self._augmentation.mixup, self._augmentation.cutmix
        if not (mixup or cutmix):
            return {"image": image_BHWC}
        position = step * self._share.batch_size + self._share.first
        mixed = mix_batch(image_BHWC, mixup=mixup, cutmix=cutmix, seed=self._seed, position=position, weight_B=weight_B)
        return {"image": mixed.image, "partner": mixed.partner.astype(np.int32), "share": mixed.share}


def _texts(example: Example) -> tuple[str, ...]:
    """What would be wrong of a mirror image, if it says left or right."""
    return (*example.captions, *example.labels, *([example.label] if example.label else []))


def images_once(
    *, source: ExampleSource, indices: Sequence[int], spec: InputSpec, batch_size: int, max_pixels: int
) -> Iterator[np.ndarray]:
    """Every image of `indices` once, in that order, as full batches float32 [B, H, W, 3]; the last is filled up with
    copies of the last image. Raises InputFailed naming an image that can't be used: all of them are needed."""
    steps = -(-len(indices) // batch_size)
    with ImageQueue(
        source=source,
        order=_Once(np.asarray(indices, np.int64)),
        decode=lambda data, place: normalise(load_views(data, spec, views=(0,), max_pixels=max_pixels)[0], spec),
        shape=(spec.height, spec.width, 3),
        batch_size=batch_size,
        stop_step=steps,
        max_bad_share=0.0,
    ) as queue:
        for batch in queue:
            yield batch.image


def view_of_row(epoch: int, row: int, *, seed: int, num_views: int) -> int:
    """What `finetune.data.queue.view_of` decides inside a graph."""
    if num_views == 1:
        return 0
    key = mixed((epoch * GOLDEN + seed_keys(seed)[0]) % 2**64)
    return (mixed(key ^ (row * M1) % 2**64) >> 33) % num_views
