"""Batches of images for a network whose backbone is trained too: rows of targets joined with freshly decoded pixels.

Takes SplitData and the source of its images. Gives batches for `Trainer.run`. Next: `finetune.training.trainer`.

The order is that of training on features (`finetune.data.queue`): batch b is rows `order.at(b × batch_size, …)`.
Which view of an image a row shows is decided by (seed, turn, row), so that a resumed run sees the same pixels. A row's
turn is its epoch, where every row comes once an epoch; see `finetune.data.order.RowOrder`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from finetune.data.augment import augmented
from finetune.data.augment_mirror import may_mirror
from finetune.data.augment_mix import mix_batch
from finetune.data.augmentation import Augmentation
from finetune.data.image_queue import ImageQueue, Place, QueueSizes
from finetune.data.order import GOLDEN, M1, EpochOrder, RowOrder, mixed, seed_keys
from finetune.data.preprocess import load_views, normalise
from finetune.data.share import Share
from finetune.data.source import Example, ExampleSource
from finetune.training.split_data import SplitData
from zoo.input_spec import InputSpec

Batch = tuple[dict[str, Any], dict[str, Any]]
_STEPS = 32  # whose rows are remembered: more than the queue is ahead


class _RowOrder:
    """A worker's share of the order, by step, and its images by their place in the source."""

    def __init__(self, order: RowOrder, image_of_row: np.ndarray, share: Share) -> None:
        """`image_of_row`: int64 [rows]."""
        self._order, self._image_of_row, self._share = order, image_of_row, share
        self.step = lru_cache(maxsize=_STEPS)(self._step)

    def _step(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows, turns): the worker's piece of the step's batch. Remembered: its rows are asked for one by one."""
        share = self._share
        row_R, turn_R = self._order.drawn(step * share.batch_size, share.batch_size)
        own_R = share.own_R
        return row_R[own_R], turn_R[own_R]

    def drawn(self, own: int) -> tuple[int, int]:
        """(row, turn) of the worker's own `own`-th row."""
        step, place = divmod(own, self._share.rows)
        row_R, turn_R = self.step(step)
        return int(row_R[place]), int(turn_R[place])

    def at(self, first_position: int, count: int) -> np.ndarray:
        rows = [self.drawn(first_position + each)[0] for each in range(count)]
        return np.asarray(self._image_of_row[rows], np.int64)


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
        order: RowOrder | None = None,
        views: int,
        augmentation: Augmentation | None = None,
        max_pixels: int,
        max_bad_share: float,
        start_step: int = 0,
        sizes: QueueSizes | None = None,
    ) -> None:
        """`order`: of the rows; None: every row once an epoch, by `seed`. `views`: see
        `finetune.data.preprocess.load_views`; a row shows one of them in each turn. With `augmentation` every row has
        pixels of its own in every turn instead, and mixed pictures come with "partner" and "share"."""
        self._table, self._share = split.table, share
        chosen = EpochOrder(len(split.table.image_index), seed) if order is None else order
        self._rows = _RowOrder(chosen, split.source_index[split.table.image_index], share)
        self._augmentation, self._seed = augmentation or Augmentation(), seed

        def decode(data: bytes, place: Place) -> np.ndarray:
            row, turn = self._rows.drawn(place.position)
            if self._augmentation.changes_images:
                pixels = augmented(
                    data, spec, self._augmentation, seed=seed, epoch=turn, index=row,
                    may_mirror=may_mirror(_texts(split.examples[split.table.image_index[row]])), max_pixels=max_pixels,
                )  # fmt: skip
            else:
                view = view_of_row(turn, row, seed=seed, num_views=views)
                pixels = load_views(data, spec, views=(view,), max_pixels=max_pixels)[0]
            return normalise(pixels, spec)

        self.queue = ImageQueue(
            source=source,
            order=self._rows,
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
        rows, _ = self._rows.step(batch.step)
        targets: Mapping[str, np.ndarray] = {name: array[rows] for name, array in self._table.arrays.items()}
        weight = batch.weight * share.weight_R
        return self._mixed(batch.image, weight, batch.step), {**targets, "weight": weight}

    def _mixed(self, image_BHWC: np.ndarray, weight_B: np.ndarray, step: int) -> dict[str, Any]:
        mixup, cutmix = self._augmentation.mixup, self._augmentation.cutmix
        if not (mixup or cutmix):
            return {"image": image_BHWC}
        share, count = self._share, len(image_BHWC) // self._share.pieces  # a replica's rows have partners among them
        mixed = [
            mix_batch(
                image_BHWC[first : first + count], mixup=mixup, cutmix=cutmix, seed=self._seed,
                position=step * share.batch_size + share.first + first, weight_B=weight_B[first : first + count],
            )
            for first in range(0, len(image_BHWC), count)
        ]  # fmt: skip
        return {
            "image": np.concatenate([each.image for each in mixed]),
            "partner": np.concatenate([each.partner for each in mixed]).astype(np.int32),
            "share": np.concatenate([each.share for each in mixed]),
        }


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


def view_of_row(turn: int, row: int, *, seed: int, num_views: int) -> int:
    """What `finetune.data.queue.view_of` decides inside a graph."""
    if num_views == 1:
        return 0
    key = mixed((turn * GOLDEN + seed_keys(seed)[0]) % 2**64)
    return (mixed(key ^ (row * M1) % 2**64) >> 33) % num_views
