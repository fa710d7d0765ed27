"""What is likely wrong with a plan or with what came of it: sentences with their remedy.

Takes the network and the spec before step 1; the best Checkpoint's weights after the last. Gives warnings, which the
chief puts in the job's progress. Next: `finetune.training.progress`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from finetune.data.order import EpochOrder
from finetune.models.network import Network, ThawedNetwork
from finetune.models.restore import restore
from finetune.spec import JobSpec
from finetune.training.checkpoints import Checkpoints
from finetune.training.evaluate import SplitEvaluation
from finetune.training.evaluations import EvalResult
from finetune.training.prepare import Prepared
from finetune.training.stages import stage_at, stages_of

OLD_SHARE = 0.05  # of a moving average that may still be from before the run
_SEEN = 2000  # training examples that are evaluated to compare with validation
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
    *, spec: JobSpec, prepared: Prepared, network: Network, checkpoints: Checkpoints, best: EvalResult
) -> list[str]:
    """On the best Checkpoint, whose head `network` has afterwards. Evaluates up to 2,000 training examples as the
    validation split was. Where the backbone is trained too nothing is compared: that would take as long as an epoch."""
    split = prepared.splits["train"]
    if spec.head.kind not in _BY_EXAMPLE or split.features_NVD is None or isinstance(network, ThawedNetwork):
        return []
    if stage_at(stages_of(spec), best.step).thaws:  # this head belongs to another backbone than the cached features
        return []
    weights = checkpoints.read_weights(best.step, "head")
    restore(network.groups["head"], weights).require_complete("the Checkpoint's head")
    if len(split.examples) > _SEEN:
        split = split.subset(np.sort(EpochOrder(len(split.examples), 1).indices(0, 0, _SEEN)))
    means = SplitEvaluation(network.head, batch_size=spec.train.batch_size).means(split)
    validation = {name: value for name, value in best.metrics.items() if isinstance(value, int | float)}
    found = better_than_training(means, validation, examples=(len(split.examples), best.num_examples))
    return [found] if found else []
