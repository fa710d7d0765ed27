"""A seeded few of each class."""

from __future__ import annotations

from collections import Counter

import pytest

from finetune.data.per_class import NoClasses, per_class
from finetune.data.source import Example

EXAMPLES = [Example(id=f"{number}.png", label="abc"[number % 3]) for number in range(60)] + [
    Example(id="lone.png", label="d")
]
ALL = range(len(EXAMPLES))


def test_so_many_of_each_class_and_all_of_a_smaller_one() -> None:
    chosen = per_class(EXAMPLES, ALL, 5, seed=1)
    assert Counter(EXAMPLES[index].label for index in chosen) == {"a": 5, "b": 5, "c": 5, "d": 1}
    assert chosen == sorted(chosen)
    assert per_class(EXAMPLES, ALL, 5, seed=1) == chosen
    assert per_class(EXAMPLES, ALL, 5, seed=2) != chosen
    assert set(per_class(EXAMPLES, ALL, 1, seed=1)) < set(chosen)


def test_who_else_is_there_and_in_which_order_changes_little() -> None:
    ids = {EXAMPLES[index].id for index in per_class(EXAMPLES, ALL, 5, seed=1)}
    backwards = EXAMPLES[::-1]
    assert {backwards[index].id for index in per_class(backwards, ALL, 5, seed=1)} == ids
    half = [index for index in ALL if index % 2]
    kept = {EXAMPLES[index].id for index in per_class(EXAMPLES, half, 5, seed=1)}
    assert {name for name in ids if int(name.removesuffix(".png").replace("lone", "0")) % 2} <= kept


def test_only_of_those_that_may_be_chosen() -> None:
    assert set(per_class(EXAMPLES, range(30), 2, seed=1)) <= set(range(30))


def test_images_of_several_classes_are_taken_while_one_is_short() -> None:
    examples = [Example(id=f"{n}", labels=("common", "rare") if n < 3 else ("common",)) for n in range(20)]
    chosen = per_class(examples, range(20), 2, seed=3)
    count = Counter(name for index in chosen for name in examples[index].labels)
    assert count["rare"] == 2
    assert 2 <= count["common"] <= 4


def test_an_image_without_a_class_is_named() -> None:
    with pytest.raises(NoClasses, match=r"'bare\.png' has no class"):
        per_class([Example(id="bare.png", captions=("a dog",))], [0], 3, seed=1)
