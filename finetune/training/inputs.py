"""What training and evaluation are fed with: features where the backbone is frozen, images where it is trained too.

Takes what was prepared. Gives batches from any step on, and the validation split with features. Next:
`finetune.training.controller`, `finetune.training.evaluator`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import tensorflow as tf

from finetune.data.order_choice import row_order
from finetune.data.queue import training_batches
from finetune.data.queue_stats import QueueStats
from finetune.data.share import Share
from finetune.models.network import Network, ThawedNetwork
from finetune.spec import JobSpec
from finetune.training.evaluator import Validation
from finetune.training.image_rows import ImageRows, images_once
from finetune.training.prepare import Prepared
from finetune.training.stages import Stage
from zoo.catalog import Catalog

_EVALUATION_BATCH = 32  # images


@contextmanager
def _features(batches: Any) -> Iterator[Any]:
    yield iter(batches)


Input = Callable[[int], Any]  # step → a context manager that gives an iterator of batches from that step on


def training_input(
    spec: JobSpec, prepared: Prepared, catalog: Catalog, stage: Stage, *, share: Share | None = None
) -> Input:
    """A stage's batches: see `Trainer.run`. Leaving the context stops whatever threads feed them.

    `share`: the rows that this process computes of each update's batch, of which micro-batches are pieces; None: all.
    Raises NoClassesToBalance.
    """
    split, train = prepared.splits["train"], spec.train
    share = share or Share(batch_size=train.update_size)
    order = row_order(
        spec.data.order,
        split.table.arrays,
        num_rows=len(split.table.image_index),
        seed=train.seed,
        power=spec.data.order_power,
    )
    features = split.features_NVD
    if features is None or stage.thaws:
        split = split.without_features()
        input_spec = catalog.get(prepared.parent).manifest.input_spec
        return lambda step: ImageRows(
            split=split,
            source=prepared.source,
            spec=input_spec,
            share=share,
            seed=train.seed,
            order=order,
            views=spec.data.views,
            augmentation=spec.data.augment,
            max_pixels=spec.data.max_pixels,
            max_bad_share=spec.data.max_bad_share,
            start_step=step,
        )
    return lambda step: _features(
        share.of_batches(
            training_batches(
                table=split.table,
                features=features,
                batch_size=train.update_size,
                seed=train.seed,
                order=order,
                start_step=step,
            )
        )
    )


def queue_stats(batches: Any) -> QueueStats | None:
    """What the input queue shows; features come from memory and have none."""
    return batches.queue.snapshot() if isinstance(batches, ImageRows) else None


def validation_input(
    spec: JobSpec, prepared: Prepared, catalog: Catalog, network: Network, *, part: str = "validation"
) -> Validation:
    """The validation split (or another), with the features that the network gives at the moment of the call."""
    split = prepared.splits[part]
    if not isinstance(network, ThawedNetwork):
        return lambda: split
    input_spec = catalog.get(prepared.parent).manifest.input_spec
    vectors = tf.function(lambda image_BHWC: prepared.row.join(network.features(image_BHWC)))

    def validation() -> Any:
        batches = images_once(
            source=prepared.source,
            indices=split.source_index.tolist(),
            spec=input_spec,
            batch_size=_EVALUATION_BATCH,
            max_pixels=spec.data.max_pixels,
        )
        found = np.concatenate([vectors(tf.convert_to_tensor(image_BHWC)).numpy() for image_BHWC in batches])
        return split.with_features(found[: len(split.examples)])

    return validation
