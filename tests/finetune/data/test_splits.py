"""Splits: right counts, nobody in two parts, errors that name n and the fraction."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune.data.source import Example
from finetune.data.splits import InvalidSplit, Split, SplitChanged, split_examples
from zoo.errors import NotFound


def examples(count: int, *, classes: int = 0) -> list[Example]:
    return [
        Example(id=f"{index:05d}.jpg", label=f"class {index % classes}" if classes else None) for index in range(count)
    ]


def parts(split: Split) -> list[int]:
    return sorted([*split.train, *split.validation, *split.test, *split.unused])


@pytest.mark.parametrize(
    "rule", ["ordered:60,20,10", "ordered:60,20", "hash:0.8,0.1,0.1", "hash:0.5,0.2", "stratified:0.6,0.2,0.2"]
)
def test_every_example_is_in_one_place(rule: str) -> None:
    split = split_examples(examples(100, classes=4), rule, seed=1)
    assert parts(split) == list(range(100))
    assert split.train
    assert split.validation


def test_ordered_goes_by_id_whatever_the_order_given() -> None:
    mixed = examples(10)[::-1]
    split = split_examples(mixed, "ordered:6,3", seed=1)
    assert [mixed[index].id for index in sorted(split.train, reverse=True)] == [f"{n:05d}.jpg" for n in range(6)]
    assert {mixed[index].id for index in split.validation} == {"00006.jpg", "00007.jpg", "00008.jpg"}
    assert [mixed[index].id for index in split.unused] == ["00009.jpg"]


def test_hash_goes_by_each_id_alone() -> None:
    few, many = examples(300), examples(3000)
    small, large = (split_examples(some, "hash:0.8,0.1,0.1", seed=seed) for some, seed in ((few, 1), (many, 2)))
    assert set(small.train) == {index for index in large.train if index < 300}
    assert set(small.validation) == {index for index in large.validation if index < 300}
    assert len(large.train) == pytest.approx(2400, abs=110)  # five standard deviations
    assert len(large.test) == pytest.approx(300, abs=82)
    assert split_examples(examples(4), "hash:0.5,0.5", seed=1) == split_examples(examples(4), "hash:0.5,0.5", seed=9)


def test_the_hash_is_frozen() -> None:
    split = split_examples(examples(30), "hash:0.8,0.1,0.1", seed=1)
    assert (split.validation, split.test) == ((16,), (24, 29))


def test_stratified_gives_each_class_its_share_and_no_part_nothing() -> None:
    some = [Example(id=f"a{n}", label="many") for n in range(50)] + [Example(id=f"b{n}", label="two") for n in range(2)]
    split = split_examples(some, "stratified:0.8,0.2", seed=1)
    assert sum(some[index].label == "many" for index in split.train) == 40
    for part in (split.train, split.validation):
        assert sum(some[index].label == "two" for index in part) == 1
    assert split_examples(some, "stratified:0.8,0.2", seed=2) != split


def test_source_reads_the_first_folder_of_the_id() -> None:
    some = [Example(id="test/a"), Example(id="train/b"), Example(id="val/c"), Example(id="validation/d")]
    assert split_examples(some, "source", seed=1) == Split(train=(1,), validation=(2, 3), test=(0,))


def test_file_lists_ids(tmp_path: Path) -> None:
    path = tmp_path / "split.json"
    path.write_text(json.dumps({"train": ["00002.jpg", "00000.jpg"], "validation": ["00001.jpg"]}))
    assert split_examples(examples(4), f"file:{path}", seed=1) == Split(train=(0, 2), validation=(1,), unused=(3,))


def test_a_saved_split_holds_for_data_that_grew_and_not_for_data_that_shrank() -> None:
    split = split_examples(examples(20), "ordered:15,5", seed=1)
    saved = split.to_json(examples(20))
    more = [Example(id="00000-new.jpg"), *examples(20)]
    again = Split.from_json(saved, more)
    assert [more[index].id for index in again.validation] == saved["validation"]
    assert again.unused == (0,)
    with pytest.raises(SplitChanged, match=r"names 1 of 20 examples .* '00019.jpg'; the data have 19"):
        Split.from_json(saved, examples(19))


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("ordered:800,100", r"asks for 900 examples, the data have n = 9\b"),
        ("ordered:8,0", "whole numbers ≥ 1"),
        ("ordered:8", "two or three"),
        ("ordered:eight,1", "whole numbers"),
        ("hash:0.8,0.1,0.1", r"validation would be empty: fraction 0.1 of n = 9 examples is 0.9, less than 1"),
        ("hash:0.8,0.5", "sum of at most 1"),
        ("hash:0.8,nan", "two or three shares"),
        ("hash:1", "two or three shares"),
        ("stratified:0.5,0.5", "needs labels; '00000.jpg' has none"),
        ("source", "does not begin with train/"),
        ("random:0.8,0.2", "no rule 'random'; rules are ordered"),
        ("", "no rule ''"),
    ],
)
def test_a_rule_that_cannot_be_met_says_why(rule: str, says: str) -> None:
    with pytest.raises(InvalidSplit, match=says):
        split_examples(examples(9), rule, seed=1)


def test_a_part_left_empty_by_chance_is_an_error_too() -> None:
    with pytest.raises(InvalidSplit, match=r"is empty: by their ids none of n = 10 examples falls into .* 0.1"):
        split_examples([Example(id=f"x{n}") for n in range(10)], "hash:0.8,0.1,0.1", seed=1)


def test_stratified_names_the_class_that_is_too_small() -> None:
    some = [*examples(20, classes=2), Example(id="z", label="猫")]
    with pytest.raises(InvalidSplit, match=r"class '猫' has 1 example\(s\), too few for one in each of 2 parts"):
        split_examples(some, "stratified:0.8,0.2", seed=1)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "as JSON"),
        ("[]", "expected an object"),
        ('{"train": ["00001.jpg"], "dev": []}', "expected an object with lists"),
        ('{"train": ["00001.jpg"], "validation": ["00001.jpg"]}', "listed twice, in train and in validation"),
        ('{"train": "00001.jpg", "validation": []}', "must be a list of ids"),
        ('{"train": ["00001.jpg"]}', "'validation' lists no ids"),
    ],
)
def test_a_split_file_that_is_none(tmp_path: Path, content: str, says: str) -> None:
    path = tmp_path / "split.json"
    path.write_text(content)
    with pytest.raises(InvalidSplit, match=says):
        split_examples(examples(3), f"file:{path}", seed=1)


def test_a_split_file_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no file .*split\.json"):
        split_examples(examples(3), f"file:{tmp_path / 'split.json'}", seed=1)
