from __future__ import annotations

import numpy as np
import pytest

from finetune.data.source import Example
from finetune.models.heads.captioner import CAPTIONER
from finetune.models.heads.class_rows import carried_rows, class_changes, continued_assets
from finetune.models.heads.classifier import CLASSIFIER, ClassifierArguments
from finetune.models.heads.head import Assets


def assets(*classes: str, offset: int = 0) -> Assets:
    return Assets(files={}, classes=classes, class_offset=offset)


def tensors(outputs: int, start: float) -> dict[str, np.ndarray]:
    return {
        "hidden_0/kernel": np.full((2, 3), start),
        "logits/kernel": start + np.arange(3 * outputs).reshape(3, outputs),
        "logits/bias": start + np.arange(outputs),
    }


def test_rows_that_stay_are_kept_by_name_and_new_ones_are_fresh() -> None:
    stored, fresh = tensors(3, 0), tensors(4, 100)
    before, now = assets("ape", "bee", "cat"), assets("ant", "cat", "dog", "ape")
    carried = carried_rows(CLASSIFIER, stored, fresh, before=before, now=now)
    np.testing.assert_array_equal(carried["logits/bias"], [100, 2, 102, 0])
    np.testing.assert_array_equal(carried["logits/kernel"][:, 1], stored["logits/kernel"][:, 2])
    np.testing.assert_array_equal(carried["logits/kernel"][:, 0], fresh["logits/kernel"][:, 0])
    assert carried["hidden_0/kernel"] is stored["hidden_0/kernel"]
    np.testing.assert_array_equal(fresh["logits/bias"], 100 + np.arange(4))
    assert class_changes(before, now) == {"kept": ("cat", "ape"), "added": ("ant", "dog"), "removed": ("bee",)}


def test_the_background_comes_first_and_stays() -> None:
    before, now = assets("ape", "bee", offset=1), assets("bee", "cow", offset=1)
    carried = carried_rows(CLASSIFIER, tensors(3, 0), tensors(3, 100), before=before, now=now)
    np.testing.assert_array_equal(carried["logits/bias"], [0, 2, 102])


def test_other_widths_are_left_for_the_restore_to_refuse() -> None:
    stored = tensors(2, 0)
    fresh = {name: np.zeros((5, 3)) if name == "logits/kernel" else each for name, each in tensors(3, 1).items()}
    carried = carried_rows(CLASSIFIER, stored, fresh, before=assets("a", "b"), now=assets("a", "b", "c"))
    assert carried["logits/kernel"] is stored["logits/kernel"]


@pytest.mark.parametrize(
    ("labels", "expected"), [(("b", "a", "c"), ("c", "b", "a")), (("b", "d"), ("b", "d")), (("a", "b"), ("a", "b"))]
)
def test_the_same_classes_keep_their_order_others_are_the_datas(
    labels: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    examples = [Example(id=label, label=label) for label in labels]
    stored = assets("c", "b", "a", offset=1)
    found = continued_assets(CLASSIFIER, stored, examples, ClassifierArguments(num_classes=4))
    assert (found.classes, found.class_offset) == (expected, 1)


def test_a_vocabulary_is_kept_as_it_is() -> None:
    stored = Assets(files={"vocabulary.json": b"{}"})
    assert continued_assets(CAPTIONER, stored, [], None) is stored
