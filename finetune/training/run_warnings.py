"""What is likely wrong with a plan or with what came of it: sentences with their remedy.

Takes the network and the spec before step 1; the best Checkpoint's weights after the last. Gives warnings, which the
chief puts in the job's progress. Next: `finetune.training.progress`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from finetune.data.order import EpochOrder
from finetune.data.source import ExampleSource
from finetune.models.network import Network, ThawedNetwork
from finetune.models.restore import restore
from finetune.spec import JobSpec
from finetune.training.checkpoints import Checkpoints
from finetune.training.evaluate import SplitEvaluation
from finetune.training.inputs import features_of
from finetune.training.prepare import Prepared
from finetune.training.split_data import SplitData
from zoo.catalog import Catalog

OLD_SHARE = 0.05  # of a moving average that may still be from before the run
_SEEN_FEATURES, _SEEN_IMAGES = 2000, 256  # training examples that are evaluated to compare with validation
_LEAST_GAP = 0.02  # of accuracy
_LEAST_SHARE = 0.8  # of the loss, where there is no accuracy
_BY_EXAMPLE = ("captioner", "classifier", "multilabel")  # heads whose loss doesn't depend on who shares a batch


def averages_warning(momentum: float | None, steps: int) -> str | None:
    """On BatchNorm of the backbone that learns: after `steps` updates a share of momentum ^ steps of its averages is
    still from before, so that what is evaluated isn't what was trained. None where it doesn't learn, or is settled."""
    if momentum is None or not 0 < momentum < 1 or momentum**steps <= OLD_SHARE:
        return None
    needed = math.ceil(math.log(OLD_SHARE) / math.log(momentum))
    return (
        f"the backbone's BatchNorm learns with momentum {momentum:g}: after {steps} steps {momentum**steps:.0%} of its "
        f"averages is still from before, and evaluation uses these. Train {needed} steps or more, or leave it as it is "
        "with --set model.batch_norm=frozen"
    )


def better_than_training(
    train: Mapping[str, float], validation: Mapping[str, float], *, examples: tuple[int, int]
) -> str | None:
    """On a validation split that is easier than what was learnt, both evaluated alike; `examples`: of training, of
    validation. Two standard errors and two points of accuracy, or a fifth of the loss, aren't chance."""
    remedy = (
        "either its images are easier, or copies of them are in training: `finetune data inspect DATA --duplicates "
        "--backbone REF`, and --set data.split=stratified:0.8,0.2 or group:…"
    )
    if "accuracy" in train and "accuracy" in validation:
        old, new = train["accuracy"], validation["accuracy"]
        variance = sum(p * (1 - p) / max(count, 1) for p, count in zip((old, new), examples, strict=True))
        if new - old <= max(_LEAST_GAP, 2 * math.sqrt(variance)):
            return None
        return f"validation is better than training (accuracy {new:.3f}, training {old:.3f}): {remedy}"
    old, new = train.get("loss", math.nan), validation.get("loss", math.nan)
    if not new < _LEAST_SHARE * old:
        return None
    return f"validation is better than training (loss {new:.3g}, training {old:.3g}): {remedy}"


def outcome_warnings(
    *,
    spec: JobSpec,
    prepared: Prepared,
    catalog: Catalog,
    network: Network,
    checkpoints: Checkpoints,
    best_step: int,
    validation: Mapping[str, float],
) -> list[str]:
    """On the best Checkpoint, whose weights `network` has afterwards. Evaluates a sample of the training split: up to
    2,000 examples with features, up to 256 where they pass through the backbone."""
    if spec.head.kind not in _BY_EXAMPLE or "validation" not in prepared.splits:
        return []
    for component, variables in network.groups.items():
        restore(variables, checkpoints.read_weights(best_step, component)).require_complete(f"Checkpoint's {component}")
    split = _sample(prepared.splits["train"], thawed=isinstance(network, ThawedNetwork))
    if isinstance(network, ThawedNetwork):
        split = split.with_features(_passed(network, split, prepared.source, spec, prepared, catalog))
    if not len(split.examples):
        return []
    means = SplitEvaluation(network.head, batch_size=spec.train.batch_size).means(split)
    counts = (len(split.examples), len(prepared.splits["validation"].examples))
    found = better_than_training(means, validation, examples=counts)
    return [found] if found else []


def _sample(split: SplitData, *, thawed: bool) -> SplitData:
    """Some of the examples, chosen by a fixed order, with their target rows."""
    most = _SEEN_IMAGES if thawed else _SEEN_FEATURES
    if len(split.examples) <= most:
        return split
    chosen = np.sort(EpochOrder(len(split.examples), 1).indices(0, 0, most))
    return split.subset(chosen)
