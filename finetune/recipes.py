"""Recipes: named functions that return a whole training plan, each value with its reason.

Takes a recipe's name, a spec file's values, flags and `--set` pairs. Gives a JobSpec. Next: `finetune.jobs`.
The order of precedence, weakest first: recipe, spec file, flags, `--set`.
"""

from __future__ import annotations

import difflib
import json
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from finetune.data.sources import data_defaults
from finetune.models.heads import head_arguments
from finetune.recipe import Choice, Recipe
from finetune.spec import InvalidSpec, JobSpec, with_settings
from finetune.text.tokenizers import kind_for_language
from finetune.thawing_recipes import few_shot, full, gradual, im2txt, slim_flowers


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


def captioner_attention() -> Recipe:
    """The captioner's recipe with a decoder that looks at places of the image."""
    plain = captioner()
    return Recipe(
        name="captioner-attention",
        head="captioner",
        summary="the captioner with soft attention over the feature map; twice the time, 50 times the cached features",
        choices={
            "head.arguments.attention": Choice(
                value="soft", reason="flickr1k, mean of 3 seeds: CIDEr 0.346 to 0.373, BLEU-4 0.153 to 0.160"
            ),
            **plain.choices,
        },
    )


def head_only() -> Recipe:
    """A classifier on cached features of a frozen backbone."""
    return Recipe(
        name="head-only",
        head="classifier",
        summary="a linear classifier on cached features of a frozen backbone",
        choices={
            "train.steps": Choice(value=1500, reason="features are cached, so a step costs a millisecond"),
            "train.batch_size": Choice(value=64, reason="steady gradients for up to a few dozen classes"),
            "train.evaluate_every": Choice(value=150, reason="ten looks at the validation split"),
            "train.optimizer.learning_rate": Choice(
                value=3e-3,
                reason="with the next: accuracy 0.781 to 0.790, macro-F1 0.488 to 0.508 over a constant 1e-3",
            ),
            "train.optimizer.schedule": Choice(
                value="cosine", reason="ends at rest: no luck of the last batch (docs/heads.md, uneven classes)"
            ),
        },
    )


def uneven() -> Recipe:
    """A classifier for classes of very uneven sizes, on cached features of a frozen backbone."""
    return Recipe(
        name="uneven",
        head="classifier",
        summary="as head-only, for classes of very uneven sizes that matter alike: chosen by macro-F1",
        choices={
            "head.arguments.class_weights": Choice(
                value="balanced", reason="a class of five images weighs as much as one of two hundred"
            ),
            "head.arguments.feature_dropout": Choice(
                value=0.5, reason="rare classes are not learnt by single values of the feature vector"
            ),
            "data.views": Choice(
                value=6, reason="itself, its mirror image, four crops: the few images of a rare class, six times"
            ),
            "train.steps": Choice(value=1500, reason="dropout learns more slowly; a step costs a millisecond"),
            "train.batch_size": Choice(value=64, reason="steady gradients for up to a few dozen classes"),
            "train.evaluate_every": Choice(value=150, reason="ten looks at the validation split"),
            "train.optimizer.learning_rate": Choice(value=3e-3, reason="falls to nothing, so that it may begin high"),
            "train.optimizer.schedule": Choice(value="cosine", reason="ends at rest: no luck of the last batch"),
            "train.early_stop.metric": Choice(value="macro_f1", reason="every class counts alike, as in training"),
            "train.early_stop.mode": Choice(value="max", reason="more is better"),
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
    "captioner-attention": captioner_attention,
    "embedding": embedding,
    "few-shot": few_shot,
    "full": full,
    "gradual": gradual,
    "head-only": head_only,
    "im2txt": im2txt,
    "multilabel": multilabel,
    "slim-flowers": slim_flowers,
    "uneven": uneven,
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


def whole_spec(recipe: Recipe) -> dict[str, Any]:
    """The JobSpec of a recipe with every default, as JSON values; what a user gives has placeholders."""
    given = {"name": "NAME", "backbone": "BACKBONE", "data": {"location": "folder:DATA"}}
    return resolve(recipe=recipe.name, values=given, settings=[]).model_dump(mode="json", exclude={"debug"})


def spec_text(recipe: Recipe) -> str:
    """`whole_spec` as YAML: a SPEC.yaml for `finetune run`, with the recipe's reasons as comments."""
    lines = [f"# {recipe.name}: {recipe.summary}"]
    _write_yaml(whole_spec(recipe), recipe, (), lines)
    return "\n".join(lines) + "\n"


def _write_yaml(value: Mapping[str, Any], recipe: Recipe, path: tuple[str, ...], lines: list[str]) -> None:
    blanks = "  " * len(path)
    for key, part in value.items():
        here = (*path, key)
        choice = recipe.choices.get(".".join(here))
        if choice is not None:
            lines += [f"{blanks}# {line}" for line in textwrap.wrap(choice.reason, 100)]
        if isinstance(part, Mapping) and part and choice is None:
            lines.append(f"{blanks}{key}:")
            _write_yaml(part, recipe, here, lines)
        else:
            lines.append(f"{blanks}{key}: {json.dumps(part, ensure_ascii=False)}")


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
    planned = _without_overruled(planned, asked)
    return _checked(JobSpec.parse(overlaid(overlaid(planned, fitting), asked)))


def _without_overruled(planned: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's steps and cut give way to the stages that were asked for, which have their own, and its stages to
    the cut; its steps alone can't be told apart by stages, so that those asked for are refused by the spec's check."""
    train = dict(planned.get("train", {}))
    model = dict(planned.get("model", {}))
    theirs, cut = asked.get("train"), asked.get("model")
    if isinstance(theirs, Mapping) and isinstance(theirs.get("stages"), list | tuple):
        if theirs["stages"]:
            train.pop("steps", None)
            model.pop("train_from", None)
    elif isinstance(cut, Mapping) and "train_from" in cut and "stages" in train:
        stages = train.pop("stages")
        train.setdefault("steps", sum(stage["steps"] for stage in stages))
    return {**planned, "train": train, **({"model": model} if model else {})}


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
    """`under` with every leaf of `over` put in its place; lists are replaced whole, unless `over` has numbers for keys:
    those are places in the list (the first is 0)."""
    result = dict(under)
    for key, value in over.items():
        below = result.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            result[key] = overlaid(below, value)
        elif isinstance(below, list | tuple) and isinstance(value, Mapping):
            result[key] = _with_places(key, below, value)
        else:
            result[key] = value
    return result


def _with_places(name: str, entries: Sequence[Any], over: Mapping[str, Any]) -> list[Any]:
    numbered = {str(place): entry for place, entry in enumerate(entries)}
    strange = sorted(set(over) - set(numbered))
    if strange:
        raise InvalidSpec(f"{name}.{strange[0]}: there are {len(entries)}, the first is {name}.0")
    return list(overlaid(numbered, over).values())
