"""Scenes: the same for ever, captions that are true, combinations held out, and a marker that can be trusted."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest

from finetune.data.preprocess import load_pixels
from finetune.data.scene_language import COLOURS, SHAPES, Truth, phrasings, read_caption, scene_score, scene_truth
from finetune.data.scenes import COMBINATIONS, RGB, SceneSource
from finetune.data.source import Example
from finetune.data.splits import split_examples
from zoo.errors import InvalidArgument
from zoo.input_spec import InputSpec


def test_the_same_seed_gives_the_same_scenes() -> None:
    one, two, other = (SceneSource.open(f"count=30,seed={seed}") for seed in (1, 1, 2))
    assert one.examples == two.examples
    assert [one.read(index) for index in range(30)] == [two.read(index) for index in range(30)]
    assert one.read(0) != other.read(0)
    assert SceneSource.open(one.location.removeprefix("scenes:")).examples == one.examples


def test_more_scenes_leave_the_first_ones_alone() -> None:
    few, many = SceneSource.open("count=20"), SceneSource.open("count=40")
    at = {example.id: index for index, example in enumerate(many.examples)}
    for index, example in enumerate(few.examples):
        assert many.examples[at[example.id]] == example
        assert many.read(at[example.id]) == few.read(index)


def test_held_out_combinations_are_not_trained_on_though_their_parts_are() -> None:
    source = SceneSource.open()
    split = split_examples(source.examples, "source", seed=1)
    trained, held = ({scene_truth(source.examples[i]) for i in part} for part in (split.train, split.validation))
    assert len(split.train) > 800
    assert len(split.validation) > 60
    assert len(split.test) > 60
    assert not {truth.mirrored() for truth in trained} & held
    assert not trained & held
    assert {truth[:2] for truth in held} <= {truth[:2] for truth in trained}


def test_the_picture_shows_what_the_captions_say() -> None:
    source = SceneSource.open("count=60,size=100")
    spec = InputSpec(height=100, width=100)
    for index, example in enumerate(source.examples):
        truth = scene_truth(example)
        pixels = load_pixels(source.read(index), spec, max_pixels=10**6).astype(int)
        places = []
        for colour in (truth.colour, truth.other_colour):
            y, x = np.nonzero(np.abs(pixels - RGB[colour]).sum(-1) == 0)
            assert len(x) > 300
            places.append((y.mean(), x.mean()))
        axis = 0 if truth.relation == "above" else 1
        assert truth.relation in ("above", "left of")
        if truth.colour != truth.other_colour:
            assert places[0][axis] < 50 < places[1][axis]


def test_every_phrasing_is_understood() -> None:
    for truth in COMBINATIONS:
        captions = phrasings(truth)
        assert len(set(captions)) == 3
        assert {read_caption(caption) for caption in captions} == {truth, truth.mirrored()}


@pytest.mark.parametrize(
    "text",
    [
        "A red circle is above a blue square.",
        "the red circle above the blue square",
        "there is a red  circle on top of a blue square",
        "a blue square is under a red circle",
        "a blue square beneath a red circle",
    ],
)
def test_any_correct_phrasing_counts(text: str) -> None:
    example = Example(id="train/0.png", captions=phrasings(Truth("red", "circle", "above", "blue", "square")))
    assert set(scene_score([text], [example]).values()) == {1.0}


@pytest.mark.parametrize(
    ("text", "colour", "shape", "relation"),
    [
        ("a blue square is above a red circle", 1, 1, 0),
        ("a red circle is left of a blue square", 1, 1, 0),
        ("a red circle is above a blue circle", 1, 0, 1),
        ("a green circle is above a blue square", 0, 1, 1),
        ("a yellow square is below a red circle", 0, 1, 1),
        ("a red square is above a blue circle", 1, 0, 1),
        ("a red circle is above", 0, 0, 0),
        ("a red circle is above a blue square and a cat", 0, 0, 0),
        ("", 0, 0, 0),
    ],
)
def test_wrong_captions_are_marked_where_they_are_wrong(text: str, colour: int, shape: int, relation: int) -> None:
    example = Example(id="train/0.png", captions=phrasings(Truth("red", "circle", "above", "blue", "square")))
    assert scene_score([text], [example]) == {
        "colour": colour,
        "shape": shape,
        "relation": relation,
        "all_right": int(colour and shape and relation),
    }


def test_all_right_means_true() -> None:
    """Against a direct statement: a caption is true when it says the scene or its mirrored saying."""
    some = [*COMBINATIONS[:40], *(truth.mirrored() for truth in COMBINATIONS[:40])]
    for said, truth in itertools.product(some, COMBINATIONS[:20]):
        example = Example(id="x", captions=phrasings(truth))
        score = scene_score([phrasings(said)[0] if said in COMBINATIONS else phrasings(said.mirrored())[2]], [example])
        assert (score["all_right"] == 1.0) == (truth in (said, said.mirrored()))


def test_scores_need_scenes() -> None:
    with pytest.raises(InvalidArgument, match="got 1 captions, 0 scenes"):
        scene_score(["x"], [])
    with pytest.raises(InvalidArgument, match="is not a scene"):
        scene_truth(Example(id="a.jpg", captions=("a dog",)))
    assert set(COLOURS) == set(RGB)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("colour=3", "unknown option 'colour'; options are count, seed, size"),
        ("count=5", "from 10 to"),
        ("size=", "''"),
    ],
)
def test_options(options: str, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        SceneSource.open(options)


def test_three_hundred_scenes_a_second() -> None:
    source = SceneSource.open("count=100")
    best = 0.0
    for _ in range(3):
        began = time.perf_counter()
        for index in range(100):
            source.read(index)
        best = max(best, 100 / (time.perf_counter() - began))
    assert best > 300


def test_labels_are_the_two_objects() -> None:
    source = SceneSource.open("count=60")
    assert len(source.classes) == len(COLOURS) * len(SHAPES)
    for example in source.examples:
        assert 1 <= len(example.labels) <= 2
        assert list(example.labels) == sorted(example.labels)
        assert all(label in example.captions[0] for label in example.labels)
        assert set(example.labels) <= set(source.classes)
