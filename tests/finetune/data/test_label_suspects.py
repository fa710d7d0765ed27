"""Confident learning on features: changed labels are found, others aren't, and what can't be asked isn't."""

from __future__ import annotations

import numpy as np

from finetune.data.label_suspects import label_suspects
from finetune.data.source import Example

NAMES = ("ant", "bee", "cat", "dog")


def clouds(count: int, *, changed: int, seed: int = 0) -> tuple[np.ndarray, list[Example], set[str]]:
    """Four clouds of points in 24 dimensions; the labels of `changed` of them are another class's."""
    chance = np.random.default_rng(seed)
    centre_CD = chance.standard_normal((4, 24)) * 3
    truth_N = np.arange(count) % 4
    feature_ND = centre_CD[truth_N] + chance.standard_normal((count, 24))
    label_N = truth_N.copy()
    wrong = chance.choice(count, changed, replace=False)
    label_N[wrong] = (truth_N[wrong] + 1) % 4
    examples = [Example(id=f"{place}.png", label=NAMES[label]) for place, label in enumerate(label_N)]
    return feature_ND.astype(np.float32), examples, {f"{place}.png" for place in wrong}


def test_changed_labels_are_found_the_most_suspicious_first() -> None:
    feature_ND, examples, wrong = clouds(200, changed=9)
    found = label_suspects(feature_ND, examples)
    assert found is not None
    suspects = {each.id for each in found.suspects}
    assert suspects <= wrong
    assert len(suspects) >= 8  # of 9
    assert len(found.striking) >= 4
    assert found.looked_at == 200
    assert found.accuracy > 0.9
    margins = [each.margin for each in found.suspects]
    assert margins == sorted(margins, reverse=True)
    first = found.suspects[0]
    assert NAMES[(NAMES.index(first.label) - 1) % 4] == first.seen
    assert f"{len(found.striking)} of 200 images may have a wrong label" in (found.warning() or "")
    assert first.id in (found.warning() or "")
    assert found.to_json()["count"] == len(found.suspects)


def test_right_labels_are_not_suspected() -> None:
    feature_ND, examples, _ = clouds(200, changed=0)
    found = label_suspects(feature_ND, examples)
    assert found is not None
    assert not found.striking
    assert found.warning() is None


def test_the_same_seed_gives_the_same_suspects() -> None:
    feature_ND, examples, _ = clouds(120, changed=5)
    assert label_suspects(feature_ND, examples, seed=3) == label_suspects(feature_ND, examples, seed=3)


def test_nothing_is_said_of_lone_images_few_images_or_one_class() -> None:
    feature_ND, examples, _ = clouds(40, changed=0)
    lone = [*examples[:39], Example(id="lone.png", label="elk")]
    found = label_suspects(feature_ND, lone)
    assert found is not None
    assert found.looked_at == 39
    assert label_suspects(feature_ND[:12], examples[:12]) is None
    assert label_suspects(feature_ND, [Example(id=str(n), label="ant") for n in range(40)]) is None
