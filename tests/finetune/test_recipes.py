"""Recipes: precedence, reasons, and that each one is a spec that can be run."""

from __future__ import annotations

import pytest

from finetune.models.heads import HEADS
from finetune.recipes import DEFAULT_RECIPES, RECIPES, find_recipe, resolve
from finetune.spec import InvalidSpec

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
    with pytest.raises(InvalidSpec, match="for a captioner head, not for 'classifier'; for that: head-only"):
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
