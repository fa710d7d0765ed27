"""What is asked about, which images, which folds."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.data.source import Example
from finetune.rank.sample import fold_of, stratified_sample
from finetune.rank.targets import NothingToTell, class_targets, final_targets, kind_of, usable


def labelled(**counts: int) -> list[Example]:
    return [Example(id=f"{name}{n}", label=name) for name, count in counts.items() for n in range(count)]


class TestKind:
    def test_classes_come_before_captions_unless_asked_otherwise(self) -> None:
        examples = [Example(id="1", label="a", captions=("a dog",)), Example(id="2", captions=("a cat",))]
        assert kind_of(examples, None, "jsonl:x") == "label"
        assert kind_of(examples, "captions", "jsonl:x") == "captions"
        assert usable(examples, "label").tolist() == [0]
        with pytest.raises(NothingToTell, match="jsonl:x has no labels: its images have a class each and captions"):
            kind_of(examples, "labels", "jsonl:x")

    def test_images_alone_are_refused(self) -> None:
        with pytest.raises(NothingToTell, match="none of the 1 images of tfrecord:x has a class or a caption"):
            kind_of([Example(id="1")], None, "tfrecord:x")


class TestTargets:
    def test_a_class_with_one_image_is_left_out_and_said_one_with_few_is_kept_and_said(self) -> None:
        targets, rows = final_targets(labelled(lone=1, few=3, many=9, more=9), "label", folds=5)
        assert targets.names == ("few", "many", "more")
        assert rows.tolist() == list(range(1, 22))
        assert targets.truth.sum(axis=0).tolist() == [3, 9, 9]
        assert targets.notes[0] == "left out: 1 class ('lone'), with one image each in the sample"
        assert "fewer images than folds (5)" in targets.notes[1]
        assert "'few'" in targets.notes[1]

    def test_one_class_is_nothing_to_tell(self) -> None:
        with pytest.raises(NothingToTell, match="has 1 classes with two images or more; ranking needs at least 2"):
            final_targets(labelled(only=20, lone=1), "label", folds=5)

    def test_lists_of_classes_keep_images_without_any(self) -> None:
        lists = [("red",), ("red", "round"), (), ("round",), ("flat", "red")]
        examples = [Example(id=str(n), labels=names) for n, names in enumerate(lists)]
        targets, rows = final_targets(examples, "labels", folds=2)
        assert targets.names == ("red", "round")
        assert targets.truth.tolist() == [[True, False], [True, True], [False, False], [False, True], [True, False]]
        assert len(rows) == 5
        assert targets.strata.tolist() == [0, 1, 2, 1, 0]  # the rarest class of each, or none

    def test_words_that_stand_with_too_few_or_nearly_all_images_are_not_asked(self) -> None:
        words = ("dog", "cat", "red", "big", "old")
        examples = [
            Example(id=f"{n:02}", captions=(f"A {words[n % 5]} thing", f"the {words[(n + 1) % 5]}s")) for n in range(40)
        ] + [Example(id="99", captions=("a zebra",))]
        targets, _ = final_targets(examples, "captions", folds=2)
        assert set(targets.names) == {*words, *(f"{word}s" for word in words)}
        assert targets.truth[0, targets.names.index("dog")]
        assert not targets.truth[0, targets.names.index("cat")]
        assert targets.notes == ("asked for 10 of 14 words: those with 4 to 37 images of the sample",)

    def test_too_few_words_are_refused_in_words(self) -> None:
        examples = [Example(id=str(n), captions=("a dog",)) for n in range(30)]
        with pytest.raises(NothingToTell, match="have 0 words that stand with at least 10 images"):
            final_targets(examples, "captions", folds=5)


class TestSample:
    def test_each_class_has_its_share_and_a_rare_one_its_floor(self) -> None:
        strata = class_targets(labelled(a=600, b=300, c=4, d=96), "label").strata
        rows = stratified_sample(strata, 100, floor=5, seed=3)
        assert np.bincount(strata[rows]).tolist() in ([57, 29, 4, 10], [56, 30, 4, 10], [57, 30, 4, 9])
        assert len(set(rows.tolist())) == 100
        assert rows.tolist() == sorted(rows.tolist())

    def test_the_seed_decides_which(self) -> None:
        strata = np.zeros(1000, np.int64)
        first = stratified_sample(strata, 50, floor=5, seed=1).tolist()
        assert stratified_sample(strata, 50, floor=5, seed=1).tolist() == first
        assert stratified_sample(strata, 50, floor=5, seed=2).tolist() != first

    @pytest.mark.parametrize("count", [10, 11, 37, 199, 200, 500])
    def test_never_more_and_never_fewer_than_asked(self, count: int) -> None:
        strata = np.arange(200) % 37  # more classes than some samples have rows
        assert len(stratified_sample(strata, count, floor=5, seed=1)) == min(count, 200)

    def test_folds_are_even_and_every_class_with_as_many_images_is_in_each(self) -> None:
        strata = np.repeat(np.arange(4), [2, 5, 11, 23])
        folds = fold_of(strata, 5, seed=1)
        sizes = np.bincount(folds)
        assert sizes.max() - sizes.min() <= 1
        for stratum, fewest in ((1, 1), (2, 2), (3, 4)):
            inside = np.bincount(folds[strata == stratum], minlength=5)
            assert (inside.min(), inside.max()) in ((fewest, fewest), (fewest, fewest + 1))
        assert len(set(folds[strata == 0].tolist())) == 2
