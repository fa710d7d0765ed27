"""Splits: right counts, nobody in two parts, errors that name n and the fraction."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path

import pytest

from finetune.data.example_table import ExampleTable
from finetune.data.image_header import UnreadableImage
from finetune.data.source import Example
from finetune.data.splits import Indices, InvalidSplit, Split, SplitChanged, split_examples
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


def test_content_decides_whatever_the_name() -> None:
    some = examples(200)
    images = [f"image {index // 2}".encode() for index in range(200)]  # every one twice
    split = split_examples(some, "hash-content:0.6,0.2,0.2", seed=1, read=images.__getitem__)
    side = {images[index]: part for part in ("train", "validation", "test") for index in getattr(split, part)}
    for part in ("train", "validation", "test"):
        assert {images[index] for index in getattr(split, part)} == {i for i, where in side.items() if where == part}
    renamed = [Example(id=f"other/{example.id}") for example in some]
    assert split_examples(renamed, "hash-content:0.6,0.2,0.2", seed=9, read=images.__getitem__) == split
    assert (len(split.train), split.test[:4]) == (126, [6, 7, 12, 13])  # frozen
    with pytest.raises(InvalidSplit, match="needs the images' bytes"):
        split_examples(some, "hash-content:0.6,0.2,0.2", seed=1)


def test_an_image_that_cant_be_read_stays_in_the_split_to_be_reported() -> None:
    def read(index: int) -> bytes:
        if index % 10 == 0:
            raise UnreadableImage("gone", cause="unreadable")
        return str(index).encode()

    split = split_examples(examples(100), "hash-content:0.5,0.5", seed=1, read=read)
    assert parts(split) == list(range(100))
    assert not split.unused


def test_a_group_stays_on_one_side() -> None:
    some = [Example(id=f"photos/person{n % 40:02d}_{n:04d}.jpg") for n in range(400)]
    split = split_examples(some, "group:0.6,0.2,0.2:person(\\d+)_", seed=1)
    assert parts(split) == list(range(400))
    people = [{index % 40 for index in part} for part in (split.train, split.validation, split.test)]
    assert sum(map(len, people)) == 40
    assert min(map(len, people)) > 1
    more = split_examples([*some, Example(id="photos/person99_0000.jpg")], "group:0.6,0.2,0.2:person(\\d+)_", seed=2)
    assert {index for index in more.train if index < 400} == set(split.train)
    # Without a group in the pattern the whole match counts; a colon in it is part of it.
    again = split_examples([Example(id=f"{n % 9}:{n}") for n in range(90)], r"group:0.5,0.5:^\d:", seed=1)
    assert {index % 9 for index in again.train}.isdisjoint(index % 9 for index in again.validation)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("group:0.8,0.2", "expected shares and a pattern"),
        ("group:0.8,0.2:(", "is no regular expression"),
        ("group:0.8,0.2:000(5)", r"in 8 of 9 ids there is no match, the first is '00000\.jpg'"),
        ("group:0.8,0.1,0.1:^0000", r"train would be empty: fraction 0.8 of n = 1 groups is 0.8, less than 1"),
        ("group:0.8:^0", "two or three shares"),
        ("hash-content:1,1", "sum of at most 1"),
    ],
)
def test_group_and_content_rules_that_cannot_be_met(rule: str, says: str) -> None:
    with pytest.raises(InvalidSplit, match=says):
        split_examples(examples(9), rule, seed=1, read=lambda index: b"")


def test_too_few_groups_for_every_part_is_said() -> None:
    some = [Example(id=f"{letter}{n}") for letter in "abcdefghij" for n in range(20)]
    with pytest.raises(InvalidSplit, match=r"is empty: by their 10 groups none of n = 200 examples"):
        split_examples(some, "group:0.8,0.1,0.1:^.", seed=1)


def test_stratified_with_several_classes_an_image() -> None:
    """Every class has its share in every part, rare ones at least one, and images without a class are dealt too."""
    some = [
        Example(
            id=f"{n:04d}",
            labels=tuple(
                name for name, every in (("person", 2), ("dog", 3), ("cat", 7), ("zebra", 150)) if n % every == 0
            ),
        )
        for n in range(600)
    ]
    split = split_examples(some, "stratified:0.5,0.25,0.25", seed=1)
    assert parts(split) == list(range(600))
    for name, total in (("person", 300), ("dog", 200), ("cat", 86), ("zebra", 4)):
        counts = [
            sum(name in some[index].labels for index in part) for part in (split.train, split.validation, split.test)
        ]
        assert sum(counts) == total
        assert counts == [
            pytest.approx(total / 2, abs=2),
            pytest.approx(total / 4, abs=2),
            pytest.approx(total / 4, abs=2),
        ]
        assert min(counts) >= 1
    bare = [sum(not some[index].labels for index in part) for part in (split.train, split.validation)]
    assert bare[0] > bare[1] > 0
    assert len(split_examples(some, "stratified:0.4,0.2", seed=1).unused) == pytest.approx(240, abs=8)


def test_stratified_with_a_class_too_rare_among_several() -> None:
    some = [Example(id=f"{n}", labels=("a", "b") if n else ("a", "b", "rare", "other")) for n in range(20)]
    with pytest.raises(
        InvalidSplit, match=r"class 'other' has 1 example\(s\), too few for one in each of 2 parts; and 1 more classes"
    ):
        split_examples(some, "stratified:0.5,0.5", seed=1)


def test_classes_that_differ_only_in_case_or_accents_are_different() -> None:
    names = ["Cat", "cat", "chat", "châat", "cha\u0302at", "猫", "狗"]
    some = [Example(id=f"{name}/{n}.jpg", label=name) for name in names for n in range(10)]
    split = split_examples(some, "stratified:0.8,0.2", seed=1)
    for name in names:
        assert [sum(some[i].label == name for i in part) for part in (split.train, split.validation)] == [8, 2]


def test_eighteen_images_fewer_than_a_batch() -> None:
    some = [Example(id=f"{n:02d}", label="ab"[n % 2]) for n in range(18)]
    split = split_examples(some, "stratified:0.8,0.2", seed=1)
    assert (len(split.train), len(split.validation)) == (14, 4)
    assert len(split_examples(some, "ordered:16,2", seed=1).train) == 16
    with pytest.raises(InvalidSplit, match=r"fraction 0.05 of n = 18 examples is 0.9, less than 1"):
        split_examples(some, "stratified:0.9,0.05,0.05", seed=1)


def test_indices_take_four_bytes_and_behave_like_a_tuple() -> None:
    split = Split(train=range(5000), validation=(7001, 7002), unused=[9])
    assert split.train.array.nbytes == 20_000  # type: ignore[attr-defined]
    assert list(split.train) == list(range(5000))
    assert (split.train[-1], split.train[1:3], split.validation) == (4999, (1, 2), (7001, 7002))
    assert 4999 in split.train
    assert 5000 not in split.train
    assert not split.test
    assert split == Split(train=tuple(range(5000)), validation=[7001, 7002], unused=(9,))
    assert split != Split(train=range(5000), validation=(7001,), unused=(9,))
    assert hash(split.validation) == hash(Indices([7001, 7002]))


@pytest.mark.slow
def test_a_million_examples_take_seconds_and_little_memory() -> None:
    table = ExampleTable(
        Example(id=f"class {n % 1000:04d}/{n % 5000:04d}_{n:07d}.jpg", label=f"class {n % 1000:04d}")
        for n in range(1_000_000)
    )
    for rule in ("hash:0.8,0.1,0.1", "ordered:800000,100000", "group:0.8,0.1,0.1:/(\\d+)_", "stratified:0.8,0.1,0.1"):
        began, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        split = split_examples(table, rule, seed=1)
        assert time.process_time() - began < 20  # of one core; 3 to 7 were measured
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB
        assert len(split.train) + len(split.validation) + len(split.test) + len(split.unused) == 1_000_000
        assert sum(part.array.nbytes for part in (split.train, split.validation, split.test)) <= 4_000_000  # type: ignore[attr-defined]
