"""Stages: the parts of a run in which different layers are trained, in one sequence of steps. No TensorFlow.

Takes a JobSpec. Gives its stages with their own cut, rate and schedule; a run without `train.stages` is a single one.
Next: `finetune.training.initialise`, which begins each, and `finetune.training.chief`, which goes through them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from finetune.models.cuts import first_endpoint
from finetune.spec import JobSpec, StageConfig, TrainConfig
from finetune.spec_checks import backward_stage
from zoo.architectures.facts import ArchitectureFacts


@dataclass(frozen=True, kw_only=True)
class Stage:
    """`number`: 1 for the first. Its updates take the global step from `first_step` to `last_step`, whose Checkpoint is
    the stage's own. `train`: the run's, with this stage's rate and schedule, which count from `first_step`."""

    number: int
    first_step: int
    last_step: int
    train_from: str
    train: TrainConfig

    @property
    def sentence(self) -> str:
        """What a log says when it begins; empty for a run without stages."""
        if not self.train.stages:
            return ""
        trained = {"none": "the head alone, on cached features", "all": "everything"}.get(self.train_from)
        return (
            f"stage {self.number} of {len(self.train.stages)}, steps {self.first_step + 1} to {self.last_step}: trains "
            f"{trained or 'the head and the backbone from ' + self.train_from + ' on'}, "
            f"rate {self.train.optimizer.learning_rate:g}"
        )

    @property
    def thaws(self) -> bool:
        """Whether a part of the backbone is trained, so that images are needed rather than cached features."""
        return self.train_from != "none"


def stages_of(spec: JobSpec) -> tuple[Stage, ...]:
    """The stages in their order; without `train.stages` a single one, whose `train` is the spec's own."""
    train = spec.train
    if not train.stages:
        only = Stage(number=1, first_step=0, last_step=train.steps, train_from=spec.model.train_from, train=train)
        return (only,)
    return tuple(
        Stage(
            number=place + 1,
            first_step=end - stage.steps,
            last_step=end,
            train_from=stage.train_from,
            train=_own(train, stage),
        )
        for place, (stage, end) in enumerate(zip(train.stages, train.stage_ends, strict=True))
    )


def stage_at(stages: Sequence[Stage], step: int) -> Stage:
    """The stage whose updates led to `step`: a Checkpoint at the boundary is of the stage that ends there."""
    return next((stage for stage in stages if step <= stage.last_step), stages[-1])


def uses_features(spec: JobSpec) -> bool:
    """Whether some stage trains the head alone, for which features are computed once."""
    return any(not stage.thaws for stage in stages_of(spec))


def require_stages(spec: JobSpec, facts: ArchitectureFacts) -> None:
    """Raises UnknownEndpoint, InvalidTrainFrom, InvalidSpec (a stage that trains less than one before it)."""
    reached: int | None = None
    for stage in stages_of(spec):
        first = first_endpoint(facts, stage.train_from)
        if reached is not None and (first is None or first > reached):
            raise backward_stage(stage.train_from)
        reached = first


def _own(train: TrainConfig, stage: StageConfig) -> TrainConfig:
    asked: dict[str, Any] = {
        name: value
        for name in ("learning_rate", "warmup_steps", "schedule")
        if (value := getattr(stage, name)) is not None
    }
    if stage.schedule not in (None, "piecewise"):
        asked["boundaries"] = ()
    decay_steps = train.optimizer.decay_steps or stage.steps
    optimizer = train.optimizer.model_copy(update={**asked, "decay_steps": decay_steps})
    return train.model_copy(update={"optimizer": optimizer})
