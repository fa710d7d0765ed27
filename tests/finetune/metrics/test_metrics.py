"""The scorers against pycocoevalcap's values.

`golden_pycocoevalcap.json` holds what pycocoevalcap 1.2 (Bleu(4), Rouge, Cider) computed for these sentences of ours,
split at spaces (its own tokenizer needs Java and wasn't used).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from finetune.metrics.bleu import bleu
from finetune.metrics.captions import UnpairedCaptions, caption_metrics
from finetune.metrics.cider import CiderScorer, DocumentFrequencies
from finetune.metrics.rouge import longest_common_subsequence, rouge_l
from finetune.text.tokenizer import NotText

GOLDEN: list[dict[str, Any]] = json.loads((Path(__file__).parent / "golden_pycocoevalcap.json").read_text("utf-8"))
PLAIN = GOLDEN[0]


def _words(golden: dict[str, Any]) -> tuple[list[list[str]], list[list[list[str]]]]:
    return [c.split() for c in golden["candidates"]], [[r.split() for r in rs] for rs in golden["references"]]


@pytest.mark.parametrize("golden", GOLDEN, ids=[golden["case"] for golden in GOLDEN])
def test_scores_equal_those_of_pycocoevalcap(golden: dict[str, Any]) -> None:
    candidates, references = _words(golden)
    assert bleu(candidates, references) == pytest.approx(golden["bleu"], rel=1e-9, abs=1e-12)
    assert rouge_l(candidates, references) == pytest.approx(golden["rouge_l"], abs=1e-9)
    assert CiderScorer(references).scores(candidates) == pytest.approx(golden["ciders"], abs=1e-9)


@pytest.mark.parametrize("golden", GOLDEN, ids=[golden["case"] for golden in GOLDEN])
def test_caption_metrics_are_those_scores_of_the_tokenized_text(golden: dict[str, Any]) -> None:
    candidates = [caption.upper() + " !" for caption in golden["candidates"]]  # the tokenizer takes this away
    metrics = caption_metrics(candidates, golden["references"])
    assert [metrics[f"bleu_{n}"] for n in (1, 2, 3, 4)] == pytest.approx(golden["bleu"], rel=1e-6, abs=1e-9)
    assert metrics["rouge_l"] == pytest.approx(golden["rouge_l"], abs=1e-6)
    assert metrics["cider"] == pytest.approx(golden["cider"], abs=1e-6)


def test_one_image_has_no_cider_and_the_metrics_say_so() -> None:
    metrics = caption_metrics(["a brown dog"], [["a brown dog", "a dog"]])
    assert metrics["cider"] == 0
    assert any("single image" in warning for warning in metrics["warnings"])
    assert caption_metrics(PLAIN["candidates"], PLAIN["references"])["warnings"] == []


def test_one_image_has_a_cider_when_frequencies_come_from_elsewhere() -> None:
    _, references = _words(PLAIN)
    frequencies = DocumentFrequencies.learn(references)
    metrics = caption_metrics(PLAIN["candidates"][:1], PLAIN["references"][:1], frequencies=frequencies)
    assert metrics["cider"] == pytest.approx(PLAIN["ciders"][0], abs=1e-9)
    assert metrics["warnings"] == []


def test_candidates_without_a_word_are_counted() -> None:
    metrics = caption_metrics(["", "...", "a dog"], PLAIN["references"][:3])
    assert metrics["warnings"] == ["2 of 3 candidates hold no word"]


def test_line_ends_inside_captions_shift_nothing() -> None:
    broken = [caption.replace(" ", "\u2028", 1).replace(" ", "\r", 1) for caption in PLAIN["candidates"]]
    assert caption_metrics(broken, PLAIN["references"]) == caption_metrics(PLAIN["candidates"], PLAIN["references"])


def test_the_order_of_references_and_of_images_does_not_matter() -> None:
    turned = [list(reversed(captions)) for captions in reversed(PLAIN["references"])]
    metrics = caption_metrics(list(reversed(PLAIN["candidates"])), turned)
    straight = caption_metrics(PLAIN["candidates"], PLAIN["references"])
    assert metrics == {k: v if k == "warnings" else pytest.approx(v, rel=1e-12) for k, v in straight.items()}


@pytest.mark.parametrize(
    ("candidates", "references", "says"),
    [
        (["a", "b"], [["a"]], "2 candidates for the references of 1"),
        ([], [], "no caption"),
        (["a"], [[]], "image 0 has no reference"),
        ("a dog", ["a dog"], "candidates must be a list"),
        (["a dog"], ["a dog"], "image 0: references must be a list"),
    ],
)
def test_what_does_not_pair_is_refused(candidates: Any, references: Any, says: str) -> None:
    with pytest.raises(UnpairedCaptions, match=says):
        caption_metrics(candidates, references)


def test_a_caption_must_be_text() -> None:
    with pytest.raises(NotText, match="bytes"):
        caption_metrics([b"a dog"], [["a dog"]])  # type: ignore[list-item]


def test_of_two_references_as_close_the_shorter_counts() -> None:
    scores = bleu([["a", "b", "c"]], [[["a", "b"], ["a", "b", "c", "d"]]])
    assert scores[0] == pytest.approx(1.0, abs=1e-8)  # length 3 against 2: no brevity penalty
    shorter = bleu([["a", "b", "c"]], [[["a", "b", "c", "d"]]])
    assert shorter[0] == pytest.approx(math.exp(1 - 4 / 3), abs=1e-8)


def test_longest_common_subsequence_keeps_order() -> None:
    assert longest_common_subsequence(["a", "b", "c", "d"], ["a", "c", "b", "d"]) == 3
    assert longest_common_subsequence([], ["a"]) == 0


def test_scorer_refuses_another_number_of_candidates() -> None:
    with pytest.raises(ValueError, match="1 candidates"):
        CiderScorer([[["a"]], [["b"]]]).scores([["a"]])
