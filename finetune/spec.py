"""JobSpec: the whole of a fine-tune request, resolved. Two equal specs ask for the same weights.

Takes a YAML file, `--set key=value` pairs or a CreateFineTuneJobRequest. Gives a JobSpec. Next: `finetune.jobs`.
Each part is owned by the code that reads it; this module only puts them together, fills in nothing by stealth and names
every unknown key with its path and the nearest known ones.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from itertools import accumulate
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from finetune.data.augmentation import Augmentation
from finetune.data.order_choice import OrderName
from finetune.spec_checks import ENDING, check_spec
from finetune.spec_checks import InvalidSpec as InvalidSpec
from zoo.names import Reference, check_model_name


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class HeadConfig(_Part):
    """`arguments` are checked by the head's own `Arguments` model (finetune.models.heads)."""

    kind: Literal["captioner", "classifier", "embedding", "multilabel"]
    arguments: dict[str, JsonValue] = {}


class DataConfig(_Part):
    """Which examples, how they are split, and what is done about bad ones."""

    location: str  # kind:location, see finetune.data.source
    split: str = "hash:0.8,0.1,0.1"
    per_class: Annotated[int, Field(ge=1)] | None = None  # seeded few of each class of the training split; None: all
    language: str | None = None
    max_bad_share: Annotated[float, Field(ge=0, le=1)] = 0.01  # above it the job fails
    max_pixels: Annotated[int, Field(ge=1)] = 50_000_000  # larger images are bad records
    views: Annotated[int, Field(ge=1, le=10)] = 1  # feature vectors an image: the image itself, then augmented views
    order: OrderName = "shuffled"  # of training rows, see finetune.data.order_choice and docs/data.md
    order_power: Annotated[float, Field(ge=0, le=1)] | None = None  # weighted: 0 is shuffled, 1 balanced; None: 0.5
    features: Literal["float32", "float16"] = "float32"  # of a frozen backbone, as they are kept; see docs/data.md
    augment: Augmentation = Augmentation()  # of images, so where the backbone is trained too (model.train_from)


# `none`: the backbone is frozen whole; `all`; the first endpoint that is trained, e.g. Mixed_7a; or `last:N`, the last
# N endpoints, for plans that fit any backbone
TrainFrom = Annotated[str, Field(min_length=1)]
Schedule = Literal["constant", "cosine", "exponential", "step", "polynomial", "piecewise"]


class ModelConfig(_Part):
    """`batch_norm`: of layers that are trained; `frozen` ones use their stored statistics in training too."""

    train_from: TrainFrom = "none"  # with train.stages: the last one's
    batch_norm: Literal["frozen", "train"] = "frozen"


class L2SP(_Part):
    """A penalty alpha / 2 · ‖w − start‖² on the backbone's weights and beta / 2 · ‖w‖² on the head's
    (arXiv:1802.01483)."""

    alpha: Annotated[float, Field(ge=0)] = 0.1
    beta: Annotated[float, Field(ge=0)] = 0.01


class OptimizerConfig(_Part):
    """See docs/training.md. None leaves a value to the optimizer's own default, or means that there is nothing."""

    name: Literal["sgd", "momentum", "adam", "adamw", "rmsprop", "lamb"] = "adam"
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    schedule: Schedule = "constant"
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    decay_steps: Annotated[int, Field(ge=1)] | None = None  # None means train.steps
    decay_rate: Annotated[float, Field(gt=0, le=1)] = 0.5
    end_learning_rate: Annotated[float, Field(ge=0)] = 0.0  # where cosine and polynomial end
    power: Annotated[float, Field(gt=0)] = 1.0  # of polynomial
    boundaries: tuple[Annotated[int, Field(ge=1)], ...] = ()  # of piecewise: steps from which × decay_rate once more
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False  # of momentum
    rho: Annotated[float, Field(ge=0, lt=1)] | None = None  # of rmsprop: how much of the mean square stays
    beta_1: Annotated[float, Field(ge=0, lt=1)] | None = None  # of adam, adamw, lamb
    beta_2: Annotated[float, Field(ge=0, lt=1)] | None = None
    epsilon: Annotated[float, Field(gt=0)] | None = None  # of all but sgd and momentum
    clip_norm: Annotated[float, Field(gt=0)] | None = 5.0
    accumulate: Annotated[int, Field(ge=1)] = 1  # micro-batches of train.batch_size rows an update
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0  # 0: no moving average
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0  # of the rate, an endpoint further from the head
    l2_sp: L2SP | None = None

    @model_validator(mode="after")
    def _has_effect(self) -> OptimizerConfig:
        """A setting that the chosen optimizer or schedule doesn't have would be ignored in silence."""
        for field, names in _OF_OPTIMIZER.items():
            if getattr(self, field) not in (None, False) and self.name not in names:
                raise ValueError(f"{field} is an argument of {', '.join(names)}, not of {self.name}")
        if self.end_learning_rate and self.schedule not in ENDING:
            raise ValueError(f"end_learning_rate is where cosine and polynomial end, the schedule is {self.schedule}")
        if self.end_learning_rate > self.learning_rate:
            raise ValueError(f"end_learning_rate {self.end_learning_rate} is above learning_rate {self.learning_rate}")
        if (self.schedule == "piecewise") != bool(self.boundaries):
            raise ValueError(f"piecewise needs boundaries, others have none; got {self.schedule}, {self.boundaries}")
        if list(self.boundaries) != sorted(set(self.boundaries)):
            raise ValueError(f"boundaries must rise, got {self.boundaries}")
        return self


_ADAPTIVE = ("adam", "adamw", "lamb")
_OF_OPTIMIZER = {
    "nesterov": ("momentum",),
    "rho": ("rmsprop",),
    "beta_1": _ADAPTIVE,
    "beta_2": _ADAPTIVE,
    "epsilon": (*_ADAPTIVE, "rmsprop"),
}


class EarlyStop(_Part):
    """Both best and stop are functions of the sequence (step, metric), never of time."""

    metric: str = "loss"  # a metric of the validation split
    mode: Literal["min", "max"] = "min"
    patience: Annotated[int, Field(ge=1)] | None = None  # evaluations without a new best; None: never stop early


class OnNan(_Part):
    """What is done about a loss that is not finite. `--set train.on_nan=rollback` names the action alone."""

    action: Literal["stop", "rollback"] = "stop"
    retries: Annotated[int, Field(ge=1, le=100)] = 3  # rollbacks in all
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.5  # of the learning rate, at each


class StageConfig(_Part):
    """A part of the steps with a cut and a rate of its own. What is None is train.optimizer's; schedules and warm-up
    count from the stage's first step."""

    train_from: TrainFrom
    steps: Annotated[int, Field(ge=1)]
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    warmup_steps: Annotated[int, Field(ge=0)] | None = None
    schedule: Schedule | None = None

    @property
    def thaws(self) -> bool:
        return self.train_from != "none"

    @model_validator(mode="after")
    def _reaches_its_rate(self) -> StageConfig:
        if self.warmup_steps is not None and self.warmup_steps >= self.steps:
            raise ValueError(
                f"a warm-up of {self.warmup_steps} steps in a stage of {self.steps} never reaches its rate"
            )
        return self


class TrainConfig(_Part):
    steps: Annotated[int, Field(ge=1)] = 2000  # with stages: their sum
    stages: tuple[StageConfig, ...] = ()
    batch_size: Annotated[int, Field(ge=1)] = 32
    seed: Annotated[int, Field(ge=0)] = 1
    deterministic: bool = False
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"  # in which a thawed backbone computes
    evaluate_every: Annotated[int, Field(ge=1)] = 250  # steps; a Checkpoint is saved at each evaluation
    save_seconds: Annotated[float, Field(gt=0)] | None = None  # a Checkpoint to resume from, besides, that often
    keep_checkpoints: Annotated[int, Field(ge=1)] = 3  # evaluated ones, besides the best
    keep_hours: Annotated[float, Field(gt=0)] | None = (
        None  # besides, one Checkpoint for each so many hours of training
    )
    summary_every: Annotated[int, Field(ge=1)] = 20
    histogram_every: Annotated[int, Field(ge=0)] | None = None  # steps; None: at evaluations, sparingly; 0: never
    optimizer: OptimizerConfig = OptimizerConfig()
    early_stop: EarlyStop = EarlyStop()
    on_nan: OnNan = OnNan()

    @field_validator("on_nan", mode="before")
    @classmethod
    def _action_alone(cls, value: Any) -> Any:
        return {"action": value} if isinstance(value, str) else value

    @property
    def update_size(self) -> int:
        """Examples an update, of all workers and micro-batches together."""
        return self.batch_size * self.optimizer.accumulate

    @property
    def stage_ends(self) -> tuple[int, ...]:
        """The last step of each stage; the last step of all where there are no stages."""
        return tuple(accumulate(stage.steps for stage in self.stages)) or (self.steps,)

    @model_validator(mode="after")
    def _adds_up(self) -> TrainConfig:
        total = self.stage_ends[-1]
        if "steps" not in self.model_fields_set:
            object.__setattr__(self, "steps", total)  # filled in once, before anybody sees it
        elif self.steps != total:
            raise ValueError(
                f"steps is {self.steps}, but the stages add up to {total}: leave steps out or make it that"
            )
        return self


class StrategyConfig(_Part):
    """Who trains together. `train.batch_size` is that of one update, whoever computes it: the devices of `mirrored` and
    the workers of `all-reduce` share it out, the workers of `parameter-server` each compute whole batches. See
    docs/distributed.md."""

    kind: Literal["one-device", "mirrored", "all-reduce", "parameter-server"] = "one-device"
    # mirrored: devices of one machine (1: every GPU that it has); all-reduce: processes, the chief among them;
    # parameter-server: processes beside the chief
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    ps: Annotated[int, Field(ge=0, le=64)] = 0  # parameter servers

    @property
    def has_peers(self) -> bool:
        """Whether other processes train beside the chief."""
        return self.kind in ("all-reduce", "parameter-server")

    @model_validator(mode="after")
    def _fits(self) -> StrategyConfig:
        if self.kind == "one-device" and self.workers != 1:
            raise ValueError("one-device has 1 worker; several need mirrored, all-reduce or parameter-server")
        if self.kind == "parameter-server" and self.ps < 1:
            raise ValueError("parameter-server needs ps of at least 1")
        if self.kind != "parameter-server" and self.ps:
            raise ValueError(f"{self.kind} has no parameter servers: ps must be 0")
        return self


class DebugConfig(_Part):
    """Ways to look at a training. None changes a weight, so that it is no part of a job's identity: a job goes on
    with other ways to look than it began with. See docs/debugging.md."""

    print: tuple[Annotated[str, Field(min_length=1)], ...] = ()  # tensors, layers, endpoints
    print_every: Annotated[int, Field(ge=1)] = 100  # steps
    check_numerics: bool = False  # names the operation that gave the first NaN or Inf
    overfit_batch: bool = False  # first sees whether a copy of the network can learn one batch by heart
    overfit_steps: Annotated[int, Field(ge=1)] = 300  # that this may take at most
    profile: Annotated[str, Field(pattern=r"^[1-9][0-9]*:[1-9][0-9]*$")] | None = None  # FIRST:LAST step

    @field_validator("profile")
    @classmethod
    def _in_order(cls, value: str | None) -> str | None:
        if value is not None:
            first, last = (int(part) for part in value.split(":"))
            if first > last:
                raise ValueError(f"the first step, {first}, comes after the last, {last}")
        return value


# Recipes as old as what came later: a spec of theirs says all of it, for what is left out would come from the recipe.
_LATER_RECIPES = frozenset({"captioner-attention", "few-shot", "full", "gradual", "im2txt", "slim-flowers"})
_LATER_OF_DATA = ("per_class", "order", "order_power", "features")
_LATER_OF_TRAINING = ("save_seconds", "keep_hours", "on_nan", "stages", "precision")
_LATER_OF_MODELS = ("batch_norm",)
_LATER_OF_OPTIMIZERS = (
    "end_learning_rate", "power", "boundaries", "nesterov", "rho", "beta_1", "beta_2", "epsilon", "accumulate",
    "layer_decay", "l2_sp",
)  # fmt: skip


class JobSpec(_Part):
    """Everything that decides the outcome, and nothing about where or when it runs."""

    name: str  # the model to publish to
    backbone: str  # a reference
    start_from: str | None = None  # `--from`: weights, head included, to start at
    head: HeadConfig
    data: DataConfig
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    strategy: StrategyConfig = StrategyConfig()
    debug: DebugConfig = DebugConfig()
    recipe: str | None = None

    @model_validator(mode="after")
    def _thawed_as_the_last_stage(self) -> JobSpec:
        if self.train.stages and "train_from" not in self.model.model_fields_set:
            last = self.train.stages[-1].train_from
            object.__setattr__(self, "model", self.model.model_copy(update={"train_from": last}))
        return self

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> JobSpec:
        """Checks a spec of plain JSON values. Raises InvalidSpec naming every fault."""
        spec = checked(cls, value)
        check_spec(spec)
        check_model_name(spec.name)
        for reference in (spec.backbone, spec.start_from):
            if reference is not None:
                Reference.parse(reference)
        return spec

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; without `debug` where nothing of it is asked for, and without what came later than others
        where it says nothing: so the specs of jobs from before stay equal to today's, and their Checkpoints theirs."""
        value = self.model_dump(mode="json", exclude={"debug"} if self.debug == DebugConfig() else None)
        for place, default, names in (
            (value["data"], DataConfig(location=""), _LATER_OF_DATA),
            (value["train"], TrainConfig(), _LATER_OF_TRAINING),
            (value["train"]["optimizer"], OptimizerConfig(), _LATER_OF_OPTIMIZERS),
            (value["model"], ModelConfig(), _LATER_OF_MODELS),
        ):
            plain = default.model_dump(mode="json")
            for name in () if self.recipe in _LATER_RECIPES else names:
                if place[name] == plain[name]:
                    del place[name]
        if self.strategy.kind == "one-device":
            value["strategy"] = {"kind": self.strategy.kind}
        return value

    def without_debug(self) -> JobSpec:
        """The part that decides the weights."""
        return self.model_copy(update={"debug": DebugConfig()})


_Model = TypeVar("_Model", bound=BaseModel)


def checked(model: type[_Model], value: Mapping[str, Any], *, path: tuple[str, ...] = ()) -> _Model:
    """`value` as a `model`. Raises InvalidSpec naming every fault with its path below `path`."""
    try:
        return model.model_validate(dict(value))
    except ValidationError as error:
        faults = [_fault(model, entry, path) for entry in error.errors()]
        raise InvalidSpec("the spec cannot be run: " + "; ".join(faults), hint="finetune recipes") from None


def _fault(model: type[BaseModel], entry: Any, path: tuple[str, ...]) -> str:
    where = ".".join(str(part) for part in (*path, *entry["loc"]))
    if entry["type"] == "missing":
        return f"{where}: required, not given"
    if entry["type"] != "extra_forbidden":
        return f"{where}: {entry['msg']}, got {entry.get('input')!r}"
    known = sorted(_part_at(model, entry["loc"][:-1]).model_fields)
    near = difflib.get_close_matches(str(entry["loc"][-1]), known, n=3)
    return f"{where}: unknown key; " + (f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}")


def _part_at(model: type[BaseModel], path: tuple[str | int, ...]) -> type[BaseModel]:
    """The model at a path; numbers are places in a list, and `X | None` is X."""
    place: Any = model
    for part in path:
        if isinstance(part, str) and isinstance(place, type) and issubclass(place, BaseModel):
            place = place.model_fields[part].annotation
        while not isinstance(place, type) or not issubclass(place, BaseModel):
            inner = [each for each in get_args(place) if each not in (type(None), Ellipsis)]
            if not inner:
                return model
            place = inner[0]
    return place


def with_settings(value: Mapping[str, Any], settings: list[str]) -> dict[str, Any]:
    """A copy of `value` with each `key=value` of `--set` put at its dotted path; the text is read as YAML."""
    result: dict[str, Any] = json.loads(json.dumps(dict(value)))
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not all(key.split(".")):
            raise InvalidSpec(f"--set {setting!r}: expected key=value, e.g. train.steps=500")
        *parents, last = key.split(".")
        place: Any = result
        for part in parents:
            place = _inside(place, part, setting)
            if not isinstance(place, dict | list):
                raise InvalidSpec(f"--set {setting!r}: {part!r} is a value, it has no keys")
        if isinstance(place, list):
            place[_place_in_list(place, last, setting)] = _scalar(text)
        else:
            place[last] = _scalar(text)
    return result


def _inside(place: Any, part: str, setting: str) -> Any:
    if isinstance(place, list):
        return place[_place_in_list(place, part, setting)]
    return place.setdefault(part, {})


def _place_in_list(entries: list[Any], part: str, setting: str) -> int:
    if not part.isdecimal() or int(part) >= len(entries):
        raise InvalidSpec(f"--set {setting!r}: {part!r} is no place in a list of {len(entries)} (the first is 0)")
    return int(part)


def _scalar(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InvalidSpec(f"--set: cannot read {text!r} as YAML: {error}") from None
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            return value
    return value
