"""Recipes: named functions that return a whole training plan, each value with its reason.

Takes a recipe's name, a spec file's values, flags and `--set` pairs. Gives a JobSpec. Next: `finetune.jobs`.
The order of precedence, weakest first: recipe, spec file, flags, `--set`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from finetune.data.sources import data_defaults
from finetune.models.heads import head_arguments
from finetune.spec import InvalidSpec, JobSpec, with_settings
from finetune.text.tokenizers import kind_for_language


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One value of a recipe and why an expert would choose it."""

    value: Any
    reason: str


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """`choices`: dotted path in the spec → Choice."""

    name: str
    head: str
    summary: str
    choices: Mapping[str, Choice]

    def values(self) -> dict[str, Any]:
        """The choices as a nested mapping, the shape of a spec."""
        nested: dict[str, Any] = {}
        for path, choice in self.choices.items():
            *parents, last = path.split(".")
            place = nested
            for part in parents:
                place = place.setdefault(part, {})
            place[last] = choice.value
        return nested


def captioner() -> Recipe:
    """Show and Tell's decoder on features of a frozen backbone, for some hundreds to some thousands of photos."""
    return Recipe(
        name="captioner",
        head="captioner",
        summary="Show and Tell on cached features of a frozen backbone; minutes on two cores",
        choices={
            "head.arguments.beam_size": Choice(
                value=5, reason="BLEU-4 0.144 to 0.153, CIDEr 0.339 to 0.346 over beam 3, mean of three seeds"
            ),
            "data.views": Choice(
                value=6,
                reason="itself, its mirror image, four crops: features aren't learnt by heart",
            ),
            "train.steps": Choice(value=1600, reason="13 epochs of 800 photos with five captions"),
            "train.batch_size": Choice(value=32, reason="small batches are noise that a small data set needs"),
            "train.evaluate_every": Choice(value=100, reason="caption metrics are noisy: look often, keep the best"),
            "train.optimizer.name": Choice(value="adamw", reason="weight decay apart from the gradient"),
            "train.optimizer.learning_rate": Choice(value=2e-3, reason="constant: the moving average settles instead"),
            "train.optimizer.weight_decay": Choice(value=0.5, reason="the strongest single help: CIDEr 0.27 to 0.32"),
            "train.optimizer.ema_decay": Choice(
                value=0.998, reason="the last ninth of the steps, averaged, beats any one"
            ),
            "train.optimizer.clip_norm": Choice(value=5.0, reason="as im2txt clips"),
            "train.early_stop.metric": Choice(
                value="bleu_cider", reason="the loss is least long before captions are best; this is √(BLEU-4 · CIDEr)"
            ),
            "train.early_stop.mode": Choice(value="max", reason="more is better"),
        },
    )


def head_only() -> Recipe:
    """A classifier on cached features of a frozen backbone."""
    return Recipe(
        name="head-only",
        head="classifier",
        summary="a linear classifier on cached features of a frozen backbone",
        choices={
            "train.steps": Choice(value=1000, reason="features are cached, so a step costs a millisecond"),
            "train.batch_size": Choice(value=64, reason="steady gradients for up to a few dozen classes"),
            "train.evaluate_every": Choice(value=100, reason="ten looks at the validation split"),
        },
    )


def multilabel() -> Recipe:
    """A multi-label head on cached features of a frozen backbone."""
    return Recipe(
        name="multilabel",
        head="multilabel",
        summary="a sigmoid a class on cached features of a frozen backbone, thresholds tuned on validation",
        choices={
            "train.steps": Choice(value=2000, reason="features are cached, so a step costs milliseconds"),
            "train.batch_size": Choice(value=64, reason="a class of a few percent is then in most batches"),
            "train.evaluate_every": Choice(value=200, reason="ten looks at the validation split"),
            "train.optimizer.learning_rate": Choice(value=3e-3, reason="at 1e-3 the loss still fell after 1000 steps"),
            "train.early_stop.metric": Choice(
                value="map", reason="the order of images by each class, whatever the thresholds are"
            ),
            "train.early_stop.mode": Choice(value="max", reason="more is better"),
        },
    )


def embedding() -> Recipe:
    """An embedding head on cached features of a frozen backbone."""
    return Recipe(
        name="embedding",
        head="embedding",
        summary="supervised contrastive vectors of length 1 on cached features of a frozen backbone",
        choices={
            "train.steps": Choice(value=500, reason="on 537 stamps the best was always before 400"),
            "train.batch_size": Choice(
                value=128, reason="an image needs others of its class in its batch: 97 % had one with 16 uneven classes"
            ),
            "train.evaluate_every": Choice(value=50, reason="ten looks at the validation split"),
            "train.early_stop.metric": Choice(
                value="recall_at_1", reason="the loss depends on who shares a batch; this is what the vectors are for"
            ),
            "train.early_stop.mode": Choice(value="max", reason="more is better"),
        },
    )


RECIPES: dict[str, Callable[[], Recipe]] = {
    "captioner": captioner,
    "embedding": embedding,
    "head-only": head_only,
    "multilabel": multilabel,
}
DEFAULT_RECIPES: dict[str, str] = {  # head kind → recipe
    "captioner": "captioner",
    "classifier": "head-only",
    "embedding": "embedding",
    "multilabel": "multilabel",
}


def find_recipe(name: str) -> Recipe:
    """Raises InvalidSpec naming the recipes that there are."""
    if name not in RECIPES:
        near = difflib.get_close_matches(name, RECIPES, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        raise InvalidSpec(f"no recipe {name!r}; {meant}there are {', '.join(sorted(RECIPES))}", hint="finetune recipes")
    return RECIPES[name]()


def resolve(*, recipe: str | None, values: Mapping[str, Any], settings: list[str]) -> JobSpec:
    """The JobSpec of a request.

    Args:
        recipe: a name in `RECIPES`, or None for the head's default.
        values: what the spec file and the flags say, nested as the spec is; flags already laid over the file.
        settings: `key=value` texts of `--set`.
    Raises:
        InvalidSpec: an unknown recipe or key, a value out of range, a recipe for another head.
    """
    asked = with_settings(values, settings)
    fitting = _of_the_data(asked)
    head = asked.get("head")
    kind = head.get("kind") if isinstance(head, dict) else None
    name = recipe or asked.get("recipe") or DEFAULT_RECIPES.get(str(kind))
    if name is None:
        return _checked(JobSpec.parse(overlaid(fitting, asked)))
    chosen = find_recipe(name)
    if kind is not None and kind != chosen.head:
        others = ", ".join(other for other in RECIPES if RECIPES[other]().head == kind) or "none"
        raise InvalidSpec(f"recipe {name!r} is for a {chosen.head} head, not for {kind!r}; for that: {others}")
    planned = chosen.values() | {"recipe": name, "head": {"kind": chosen.head} | chosen.values().get("head", {})}
    return _checked(JobSpec.parse(overlaid(overlaid(planned, fitting), asked)))


def _of_the_data(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What the kind of DATA wants to be otherwise than a recipe has it; whatever was asked still comes before it."""
    data, head = asked.get("data"), asked.get("head")
    location = data.get("location") if isinstance(data, dict) else None
    fitting: dict[str, Any] = {"data": data_defaults(location)} if isinstance(location, str) else {}
    if isinstance(data, dict) and isinstance(head, dict) and head.get("kind") == "captioner":
        fitting |= _of_the_language(data.get("language"), asked)
    return fitting


def _of_the_language(language: Any, asked: Mapping[str, Any]) -> dict[str, Any]:
    """A captioner of a language without spaces says characters, twice as many as it would say words. One that starts
    from another head goes on as that does."""
    kind = kind_for_language(language if isinstance(language, str) else None)
    if kind == "words" or asked.get("start_from") is not None:
        return {}
    return {"head": {"arguments": {"tokenizer": kind, "max_words": 60}}}


def _checked(spec: JobSpec) -> JobSpec:
    """The spec, its head's arguments checked by the head's own model. Raises InvalidSpec."""
    head_arguments(spec.head)
    return spec


def overlaid(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`under` with every leaf of `over` put in its place; lists are replaced whole."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        result[key] = overlaid(below, value) if isinstance(below, Mapping) and isinstance(value, Mapping) else value
    return result
