"""What the parts of a spec may not say together: each check refuses a contradiction, or what would be ignored.

Takes a JobSpec whose parts are sound by themselves. Gives InvalidSpec, or nothing. Next: `finetune.spec`, which asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune.data.augmentation import Augmentation
from zoo.errors import InvalidArgument

if TYPE_CHECKING:
    from finetune.spec import JobSpec

ENDING = ("cosine", "polynomial")  # schedules that end at end_learning_rate
# Head kind → why its pictures can't be mixed.
_NOT_MIXED = {
    "captioner": "which no caption describes",
    "embedding": "which belong to no class, so that nothing says which images should lie near them",
}


class InvalidSpec(InvalidArgument):
    """A spec that cannot be run; the message lists every fault with its path."""


def check_spec(spec: JobSpec) -> None:
    """Raises InvalidSpec."""
    for check in CHECKS:
        check(spec)


def _check_stages(spec: JobSpec) -> None:
    """Raises InvalidSpec where stages contradict model.train_from or go backwards. The order of endpoints is the
    backbone's business: see `finetune.training.stages`."""
    stages = spec.train.stages
    if not stages:
        return
    if spec.model.train_from != stages[-1].train_from:
        raise InvalidSpec(
            f"model.train_from is {spec.model.train_from!r}, but the last of train.stages trains from "
            f"{stages[-1].train_from!r}: leave model.train_from out"
        )
    if spec.strategy.has_peers:
        raise InvalidSpec(
            f"train.stages: a {spec.strategy.kind} group can't change what it trains in the midst of a job",
            hint="a job a stage: the next one with --backbone and --from the version before",
        )
    if spec.train.on_nan.action == "rollback":
        raise InvalidSpec(
            "train.on_nan=rollback: with train.stages nothing goes back into a stage before; leave it at stop"
        )
    for number, stage in enumerate(stages, start=1):
        end, rate = spec.train.optimizer.end_learning_rate, stage.learning_rate
        if rate is not None and end > rate and (stage.schedule or spec.train.optimizer.schedule) in ENDING:
            raise InvalidSpec(f"train.stages: end_learning_rate {end} is above stage {number}'s learning_rate {rate}")
        if stage.schedule == "piecewise" and spec.train.optimizer.schedule != "piecewise":
            raise InvalidSpec(f"train.stages: stage {number} is piecewise: give train.optimizer the boundaries")
    ranks = [{"none": 0, "all": 2}.get(stage.train_from, 1) for stage in stages]
    for before, after, stage in zip(ranks, ranks[1:], stages[1:], strict=False):
        if after < before:
            raise backward_stage(stage.train_from)


def backward_stage(train_from: str) -> InvalidSpec:
    """A stage that would freeze again what an earlier one has trained."""
    return InvalidSpec(
        f"train.stages: a stage with train_from={train_from!r} comes after one that trains more. Stages go from the "
        "head down (none, endpoints, all): what has been trained no longer gives the features that are cached",
        hint="order the stages by how much they train, or lower the later stage's learning_rate instead",
    )


def _check_few(spec: JobSpec) -> None:
    if spec.data.per_class is not None and spec.head.kind == "captioner":
        raise InvalidSpec("data.per_class: a captioner learns from captions, which are in no class; leave it out")


def _check_penalties(spec: JobSpec) -> None:
    """Raises InvalidSpec where what keeps weights in bounds contradicts itself or would do nothing."""
    optimizer = spec.train.optimizer
    if optimizer.l2_sp is not None and optimizer.weight_decay:
        raise InvalidSpec(
            "train.optimizer.l2_sp pulls weights to where they began, "
            f"weight_decay={optimizer.weight_decay} pulls the same weights to zero: choose one",
            hint="--set train.optimizer.weight_decay=0; the head's own decay is l2_sp.beta",
        )
    if spec.model.batch_norm == "train" and spec.strategy.kind != "one-device":
        raise InvalidSpec("model.batch_norm=train: every replica would have averages of its own; use one-device")
    if spec.model.train_from != "none":
        return
    for path, asked in (
        ("train.optimizer.layer_decay", optimizer.layer_decay != 1.0),
        ("model.batch_norm=train", spec.model.batch_norm != "frozen"),
    ):
        if asked:
            raise InvalidSpec(
                f"{path} acts on trained layers of the backbone, and with model.train_from=none there are none",
                hint="--set model.train_from=…, or train.stages",
            )


def _check_rewards(spec: JobSpec) -> None:
    """Raises InvalidSpec where captions would have to be rewarded by processes that run graphs only."""
    rewarded = spec.head.kind == "captioner" and spec.head.arguments.get("self_critical_from") is not None
    if rewarded and spec.strategy.kind == "parameter-server":
        raise InvalidSpec(
            "head.arguments.self_critical_from: captions are rewarded by Python, and under strategy.kind="
            "parameter-server the steps run where there is none",
            hint="--strategy all-reduce, or one-device",
        )


def _check_training(spec: JobSpec) -> None:
    """Raises InvalidSpec where train.on_nan or train.precision can't do what it says."""
    if spec.train.on_nan.action == "rollback" and spec.strategy.kind == "all-reduce":
        raise InvalidSpec("train.on_nan=rollback: the workers of all-reduce don't go back together; leave it at stop")
    precision = spec.train.precision
    if precision != "float32" and spec.model.train_from == "none":
        raise InvalidSpec(
            f"train.precision is {precision}: it is of the backbone, which is frozen; its features are computed once, "
            "in float32, and the head's steps are too small to gain",
            hint="--set model.train_from=… trains the backbone too; data.features=float16 halves what is kept",
        )
    if precision == "mixed_float16" and spec.strategy.kind != "one-device":
        raise InvalidSpec(
            f"train.precision is mixed_float16: its loss scale is of one device, the strategy is {spec.strategy.kind}",
            hint="--set train.precision=mixed_bfloat16",
        )


def _check_augmentation(spec: JobSpec) -> None:
    """Raises InvalidSpec where data.augment can't do what it says."""
    augment = spec.data.augment
    if augment == Augmentation():
        return
    if spec.model.train_from == "none":
        raise InvalidSpec(
            "data.augment: a frozen backbone's features are computed once, so that no epoch could see other pixels",
            hint="--set model.train_from=… trains the backbone too; data.views=6 computes features of several views",
        )
    if spec.data.views != 1:
        raise InvalidSpec(f"data.views is {spec.data.views}: with data.augment it must be 1, every epoch being a view")
    why = _NOT_MIXED.get(spec.head.kind)
    if (augment.mixup or augment.cutmix) and why is not None:
        raise InvalidSpec(f"data.augment: mixup and cutmix mix two pictures, {why}; set both to 0")


def _check_input(spec: JobSpec) -> None:
    """Raises InvalidSpec where data.order or data.features can't do what it says."""
    data = spec.data
    if data.order != "shuffled" and spec.head.kind == "captioner":
        raise InvalidSpec(
            f"data.order: {data.order} goes by the classes of the examples, and a captioner learns from captions, "
            "which are in no class",
            hint="--set data.order=shuffled",
        )
    if data.order_power is not None and data.order != "weighted":
        raise InvalidSpec(
            f"data.order_power is for data.order=weighted; data.order is {data.order}",
            hint="--set data.order=weighted",
        )
    cuts = [stage.train_from for stage in spec.train.stages] or [spec.model.train_from]
    if data.features != "float32" and "none" not in cuts:
        raise InvalidSpec(
            f"data.features is {data.features}: no features are kept where the backbone is trained too",
            hint="--set data.features=float32",
        )


def _check_debug(spec: JobSpec) -> None:
    """Raises InvalidSpec where `debug` asks for looks at a step that no single process does."""
    debug = spec.debug
    asked = {
        "print": bool(debug.print),
        "check_numerics": debug.check_numerics,
        "overfit_batch": debug.overfit_batch,
        "profile": debug.profile is not None,
    }
    if spec.strategy.has_peers and any(asked.values()):
        names = ", ".join(f"debug.{name}" for name, given in asked.items() if given)
        raise InvalidSpec(
            f"{names}: with {spec.strategy.kind} no process sees a whole step, only its share of a batch or nothing",
            hint="look at the same spec with --strategy one-device; its batches are the same",
        )


CHECKS = (
    _check_stages,
    _check_penalties,
    _check_few,
    _check_augmentation,
    _check_rewards,
    _check_input,
    _check_training,
    _check_debug,
)
