"""Recipes: precedence, reasons, and that each one is a spec that can be run."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from finetune.models.heads import HEADS
from finetune.recipes import DEFAULT_RECIPES, RECIPES, find_recipe, resolve, spec_text, whole_spec
from finetune.spec import InvalidSpec, JobSpec

VALUES = {"name": "m", "backbone": "b", "data": {"location": "scenes:"}}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_is_a_whole_plan_with_reasons(name: str) -> None:
    recipe = find_recipe(name)
    spec = resolve(recipe=name, values=VALUES, settings=[])
    assert spec.head.kind == recipe.head
    assert spec.recipe == name == recipe.name
    assert all(len(choice.reason) > 10 for choice in recipe.choices.values())


def test_the_stronger_source_of_a_value_wins() -> None:
    recipe_steps = find_recipe("captioner").choices["train.steps"].value
    head = {"head": {"kind": "captioner"}}
    assert resolve(recipe=None, values=VALUES | head, settings=[]).train.steps == recipe_steps
    with_file = VALUES | head | {"train": {"steps": 7, "seed": 9}}
    assert resolve(recipe=None, values=with_file, settings=[]).train.steps == 7
    spec = resolve(recipe=None, values=with_file, settings=["train.steps=8"])
    assert (spec.train.steps, spec.train.seed) == (8, 9)


def test_every_head_has_a_default_recipe() -> None:
    assert set(DEFAULT_RECIPES) == set(HEADS)
    for kind, name in DEFAULT_RECIPES.items():
        assert find_recipe(name).head == kind


def test_a_recipe_for_another_head_is_refused() -> None:
    with pytest.raises(InvalidSpec, match=r"for a captioner head, not for 'classifier'; for that: .*head-only"):
        resolve(recipe="captioner", values=VALUES | {"head": {"kind": "classifier"}}, settings=[])


def test_an_unknown_recipe_says_what_there_is() -> None:
    with pytest.raises(InvalidSpec, match="did you mean captioner"):
        resolve(recipe="captionr", values=VALUES, settings=[])


def test_unknown_head_arguments_are_refused_before_anything_runs() -> None:
    with pytest.raises(InvalidSpec, match=r"head\.arguments\.unit: unknown key; did you mean units"):
        resolve(recipe="captioner", values=VALUES, settings=["head.arguments.unit=5"])


def test_head_arguments_out_of_range_are_refused() -> None:
    with pytest.raises(InvalidSpec, match=r"head\.arguments\.units"):
        resolve(recipe="captioner", values=VALUES, settings=["head.arguments.units=0"])


def test_data_that_holds_examples_out_by_itself_says_so_in_the_spec() -> None:
    head = {"head": {"kind": "captioner"}}
    scenes = resolve(recipe=None, values=VALUES | head, settings=[]).data
    assert (scenes.split, scenes.views) == ("source", 1)  # a mirrored view of "left of" would be a lie
    assert find_recipe("captioner").choices["data.views"].value > 1
    asked = resolve(recipe=None, values=VALUES | head, settings=["data.split=hash:0.9,0.1"])
    assert asked.data.split == "hash:0.9,0.1"
    photos = VALUES | head | {"data": {"location": "flickr:photos"}}
    assert resolve(recipe=None, values=photos, settings=[]).data.split == "hash:0.8,0.1,0.1"


def test_a_captioner_of_a_language_without_spaces_says_characters_unless_asked_otherwise() -> None:
    def arguments(*settings: str, **values: object) -> dict[str, object]:
        head = {"head": {"kind": "captioner"}}
        return dict(resolve(recipe=None, values=VALUES | head | values, settings=list(settings)).head.arguments)

    japanese = {"data": {"location": "jsonl:x.jsonl", "language": "ja"}}
    assert arguments(**japanese) == arguments() | {"tokenizer": "characters", "max_words": 60}
    german = {"data": {"location": "jsonl:x.jsonl", "language": "de"}}
    assert arguments(**german) == arguments()
    asked = arguments("head.arguments.tokenizer=words", "head.arguments.max_words=9", **japanese)
    assert (asked["tokenizer"], asked["max_words"]) == ("words", 9)
    assert arguments(**japanese, start_from="m@1") == arguments()  # it goes on with that head's vocabulary
    classifier = resolve(recipe=None, values=VALUES | {"head": {"kind": "classifier"}} | japanese, settings=[])
    assert classifier.head.arguments == {}


STAGED = sorted(name for name in RECIPES if "train.stages" in find_recipe(name).choices)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_resolved_spec_resolves_to_itself_whatever_was_set_to_its_default(name: str) -> None:
    """What is stored with a job is the whole plan: the recipe adds nothing to it."""
    choices = find_recipe(name).choices
    plain = JobSpec.parse(VALUES | {"head": {"kind": find_recipe(name).head}}).model_dump(mode="json")
    overruled = {}
    for path in choices:
        if path.startswith("head.arguments.") or path in ("train.stages", "train.steps"):
            continue
        default: Any = plain
        for part in path.split("."):
            default = default[part]
        overruled[path] = default
    for settings in ([], [f"{path}={json.dumps(value)}" for path, value in overruled.items()]):
        resolved = resolve(recipe=name, values=VALUES, settings=settings)
        stored = json.loads(json.dumps(resolved.to_json()))
        assert resolve(recipe=None, values=stored, settings=[]) == resolved
        assert JobSpec.parse(stored) == resolved


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_as_a_spec_file_is_the_recipe(name: str) -> None:
    recipe = find_recipe(name)
    text = spec_text(recipe)
    assert JobSpec.parse(yaml.safe_load(text)).model_dump(mode="json", exclude={"debug"}) == whole_spec(recipe)
    said = " ".join(line.strip().removeprefix("# ") for line in text.splitlines() if line.lstrip().startswith("#"))
    assert all(choice.reason in said for choice in recipe.choices.values())


@pytest.mark.parametrize("name", STAGED)
def test_stages_go_from_the_head_to_everything(name: str) -> None:
    spec = resolve(recipe=name, values=VALUES, settings=[])
    assert (spec.train.stages[0].train_from, spec.train.stages[-1].train_from) == ("none", "all")
    rates = [stage.learning_rate for stage in spec.train.stages]
    assert rates == sorted(rates, key=lambda rate: -(rate or 0.0))


def test_one_stage_of_a_recipe_is_changed_by_its_place() -> None:
    settings = ["train.stages.0.steps=50", "train.stages.1.train_from=Mixed_7a"]
    stages = resolve(recipe="gradual", values=VALUES, settings=settings).train.stages
    assert [stage.steps for stage in stages] == [50, 300, 200]
    assert [stage.train_from for stage in stages] == ["none", "Mixed_7a", "all"]
    with pytest.raises(InvalidSpec, match=r"stages\.3: there are 3, the first is stages\.0"):
        resolve(recipe="gradual", values=VALUES, settings=["train.stages.3.steps=50"])
    with pytest.raises(InvalidSpec, match="steps is 7, but the stages add up to 1000"):
        resolve(recipe="gradual", values=VALUES, settings=["train.steps=7"])


def test_a_setting_reaches_into_the_stages_of_a_spec_file() -> None:
    stages = [{"train_from": "none", "steps": 5}, {"train_from": "all", "steps": 6}]
    values = VALUES | {"head": {"kind": "classifier"}, "train": {"stages": stages}}
    spec = resolve(recipe=None, values=values, settings=["train.stages.1.steps=9"])
    assert [stage.steps for stage in spec.train.stages] == [5, 9]
    assert spec.train.steps == 14  # the recipe's own steps give way
    with pytest.raises(InvalidSpec, match="no place in a list of 2"):
        resolve(recipe=None, values=values, settings=["train.stages.2.steps=9"])


def test_a_cut_that_is_asked_for_takes_the_place_of_a_recipes_stages() -> None:
    spec = resolve(recipe="gradual", values=VALUES, settings=["model.train_from=top"])
    assert (spec.train.stages, spec.train.steps, spec.model.train_from) == ((), 1000, "top")


def test_slim_flowers_and_im2txt_are_what_people_know() -> None:
    flowers = resolve(recipe="slim-flowers", values=VALUES, settings=[]).train
    assert [(stage.steps, stage.learning_rate) for stage in flowers.stages] == [(1000, 0.01), (500, 0.0001)]
    assert (flowers.optimizer.name, flowers.optimizer.weight_decay, flowers.batch_size) == ("rmsprop", 0.00004, 32)
    captions = resolve(recipe="im2txt", values=VALUES, settings=[])
    first, second = captions.train.stages
    assert (first.steps, first.learning_rate, second.learning_rate) == (1_000_000, 2.0, 0.0005)
    assert captions.train.optimizer.decay_steps == 146_590
    arguments = captions.head.arguments
    assert [arguments[key] for key in ("embedding", "units", "initial_scale", "beam_size")] == [512, 512, 0.08, 3]


def test_few_images_a_class_of_captions_are_refused() -> None:
    with pytest.raises(InvalidSpec, match="captions, which are in no class"):
        resolve(recipe="captioner", values=VALUES, settings=["data.per_class=3"])
