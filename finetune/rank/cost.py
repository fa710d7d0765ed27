"""What a backbone costs: milliseconds an image here, bytes of weights, operations.

Takes a Backbone and its version. Gives a Cost. Next: `finetune.rank.ranking`.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from zoo.architectures import architecture_facts
from zoo.catalog import ModelVersion

if TYPE_CHECKING:
    from finetune.models.backbone import Backbone

BATCH = 8  # images a pass
_WARM_UP = 2  # passes: the first one traces the graph, the next allocates
_LEAST, _MOST = 5, 50  # timed passes
_SECONDS = 0.5  # of timed passes, where more than the fewest fit in


@dataclass(frozen=True, kw_only=True)
class Cost:
    """`milliseconds`: wall time an image here, the median of passes of BATCH images; decoding isn't in it.

    `flops`: of one image, a multiply-add counted as two, at the version's input size; None where nobody has counted.
    """

    milliseconds: float
    bytes: int
    flops: int | None


def measured_cost(backbone: Backbone, version: ModelVersion) -> Cost:
    component = version.manifest.component("backbone")
    return Cost(
        milliseconds=_milliseconds(backbone),
        bytes=component.bytes if component else 0,
        flops=flops_at(version),
    )


def flops_at(version: ModelVersion) -> int | None:
    """The architecture's figure, scaled by area: nearly all operations are convolutions, once for each position.

    None where the architecture has none, or where its arguments make other tensors than it was counted for.
    """
    manifest = version.manifest
    facts = architecture_facts(manifest.architecture.name)
    arguments = facts.resolved(manifest.architecture.arguments)
    if not facts.flops or facts.tensor_shapes(arguments) != facts.tensor_shapes(facts.defaults):
        return None
    spec, usual = manifest.input_spec, facts.input_spec
    return round(facts.flops * (spec.height * spec.width) / (usual.height * usual.width))


def _milliseconds(backbone: Backbone) -> float:
    spec = backbone.input_spec
    pixels_BHWC = np.random.default_rng(0).random((BATCH, spec.height, spec.width, 3), np.float32)
    for _ in range(_WARM_UP):
        np.asarray(backbone.feature_vector(pixels_BHWC))
    seconds: list[float] = []
    while len(seconds) < _LEAST or (sum(seconds) < _SECONDS and len(seconds) < _MOST):
        began = time.perf_counter()
        np.asarray(backbone.feature_vector(pixels_BHWC))  # waits for the values
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1000 / BATCH
