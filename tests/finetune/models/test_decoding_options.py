"""Options of decoding: what they ask for holds in every caption, and log-probabilities stay the model's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from finetune.models.decoding_options import Decoding, DecodingRequest, InvalidDecoding
from finetune.models.heads.captioner import CaptionerArguments
from finetune.models.heads.captioner_layer import CaptionerLayer
from finetune.text.vocabulary import END, SPECIALS
from tests.finetune.models.toy_captioner import make, rows_for, sharpen, teacher_forced_log_prob

WORDS = "one two three four five six"
IMAGES = 8


@pytest.fixture(scope="module")
def chatty() -> CaptionerLayer:
    """Random weights that say the same words again and again, with attention, for coverage to count."""
    layer, _, _, _ = make([WORDS], max_words=9, attention="soft", attention_units=8)
    sharpen(layer, 0.6, seed=3)
    layer.output_projection.bias.assign(np.where(np.arange(len(layer.vocabulary)) == END, -1.0, 0.0))
    return layer


def _said(layer: CaptionerLayer, **wanted: Any) -> list[list[tuple[tuple[int, ...], float, bool]]]:
    """(words, log_prob, finished) of every caption that there is, by image."""
    decoded = layer.decode(tf.constant(rows_for(layer, IMAGES)), **wanted)
    found = []
    for b in range(IMAGES):
        captions = []
        for k in range(decoded.tokens_BKT.shape[1]):
            if np.isfinite(float(decoded.log_probs_BK[b, k])):
                words = decoded.tokens_BKT[b, k, : int(decoded.lengths_BK[b, k])].numpy().tolist()
                captions.append((tuple(words), float(decoded.log_probs_BK[b, k]), bool(decoded.finished_BK[b, k])))
        found.append(captions)
    return found


def _repeats(words: tuple[int, ...], n: int) -> bool:
    grams = [words[i : i + n] for i in range(len(words) - n + 1)]
    return len(set(grams)) < len(grams)


@pytest.mark.parametrize(("n", "sample"), [(1, False), (2, True), pytest.param(3, False, marks=pytest.mark.slow)])
def test_no_words_in_a_row_are_said_twice(chatty: CaptionerLayer, n: int, sample: bool) -> None:
    free = [words for captions in _said(chatty, beam_size=3, sample=sample or None) for words, _, _ in captions]
    assert any(_repeats(words, n) for words in free), "nothing repeats by itself: this test shows nothing"
    kept = [
        words
        for captions in _said(chatty, beam_size=3, no_repeat_ngram=n, sample=sample or None)
        for words, _, _ in captions
    ]
    assert not any(_repeats(words, n) for words in kept)


def test_where_every_word_is_forbidden_a_caption_ends_however_short(chatty: CaptionerLayer) -> None:
    """Six words, none twice, and nine are asked for."""
    for captions in _said(chatty, beam_size=2, no_repeat_ngram=1, min_words=9):
        assert captions
        assert all(len(words) <= 6 and finished for words, _, finished in captions)


@pytest.mark.parametrize("sample", [False, True])
def test_captions_are_as_long_as_asked(chatty: CaptionerLayer, sample: bool) -> None:
    free = [w for captions in _said(chatty, beam_size=3, sample=sample or None) for w, _, _ in captions]
    assert min(len(words) for words in free) < 6
    for captions in _said(chatty, beam_size=3, min_words=6, max_words=8, sample=sample or None):
        assert all(6 <= len(words) <= 8 for words, _, _ in captions)


@pytest.mark.parametrize(
    "wanted",
    [
        {"beam_size": 4, "beam_groups": 2, "diversity": 2.0},
        pytest.param({"beam_size": 3, "no_repeat_ngram": 2, "min_words": 3, "coverage": 1.0}, marks=pytest.mark.slow),
        {"beam_size": 3, "sample": True, "temperature": 1.7, "top_k": 3, "top_p": 0.8, "no_repeat_ngram": 2},
    ],
)
def test_log_probs_stay_the_models_own(chatty: CaptionerLayer, wanted: dict[str, Any]) -> None:
    rows = rows_for(chatty, IMAGES)
    for row, captions in zip(rows[:3], _said(chatty, **wanted)[:3], strict=True):
        for words, log_prob, finished in captions:
            truth = teacher_forced_log_prob(chatty, row, words, end=finished)
            assert log_prob == pytest.approx(truth, abs=1e-4)


def test_groups_of_beams_differ(chatty: CaptionerLayer) -> None:
    plain = _said(chatty, beam_size=4, beam_groups=2, diversity=0.0)
    apart = _said(chatty, beam_size=4, beam_groups=2, diversity=50.0)
    same = [len({words for words, _, _ in captions}) < len(captions) for captions in plain]
    assert all(same), "groups that are charged nothing are one search twice"
    for captions in apart:  # the best of each group begin with other words
        assert len({words[:1] for words, _, _ in captions}) >= 2


def test_one_group_is_plain_beam_search(chatty: CaptionerLayer) -> None:
    assert _said(chatty, beam_size=3) == _said(chatty, beam_size=3, beam_groups=1, diversity=9.0)


def test_coverage_changes_the_order_only(chatty: CaptionerLayer) -> None:
    plain = _said(chatty, beam_size=6, length_penalty=0.0)
    covered = _said(chatty, beam_size=6, length_penalty=0.0, coverage=10.0)
    assert plain != covered
    first = [captions[0][1] for captions in plain], [captions[0][1] for captions in covered]
    assert all(best >= other - 1e-4 for best, other in zip(*first, strict=True))


def test_coverage_wants_attention() -> None:
    layer, _, _, _ = make([WORDS])
    with pytest.raises(InvalidDecoding, match="no attention"):
        layer.decode(tf.constant(rows_for(layer, 1)), coverage=0.5)


def test_draws_follow_the_models_probabilities() -> None:
    """The first word of 4,000 draws against the softmax, whole and narrowed."""
    layer, _, _, _ = make([WORDS], max_words=1)
    sharpen(layer, 0.5, seed=2)
    row = rows_for(layer, 1)
    state, memory = layer.start(tf.constant(row))
    logits_V = layer.logits(layer.advance(tf.constant([1]), state, memory).output_NU)[0].numpy().astype(np.float64)
    allowed = np.array([END, *range(len(SPECIALS), len(layer.vocabulary))])

    def expected(temperature: float, keep: int) -> np.ndarray:
        share = np.exp(logits_V[allowed] / temperature)
        share[np.argsort(-share)[keep:]] = 0
        return np.asarray(share / share.sum())

    def drawn(**wanted: Any) -> np.ndarray:
        count = np.zeros(len(logits_V))
        for seed in range(4):
            decoded = layer.decode(tf.constant(row), beam_size=1000, sample=True, seed=seed, **wanted)
            words = np.where(decoded.lengths_BK[0] > 0, decoded.tokens_BKT[0, :, 0], END)
            count += np.bincount(words, minlength=len(count))
        assert count.sum() == count[allowed].sum() == 4000
        return np.asarray(count[allowed] / 4000)

    np.testing.assert_allclose(drawn(), expected(1.0, 7), atol=0.03)
    np.testing.assert_allclose(drawn(temperature=0.5), expected(0.5, 7), atol=0.03)
    np.testing.assert_allclose(drawn(top_k=2), expected(1.0, 2), atol=0.03)
    share = np.sort(expected(1.0, 7))[::-1]
    np.testing.assert_allclose(drawn(top_p=float(share[:3].sum() - 0.01)), expected(1.0, 3), atol=0.03)


def test_a_seed_draws_the_same_in_any_company(chatty: CaptionerLayer) -> None:
    rows = rows_for(chatty, 6)
    wanted: dict[str, Any] = {"sample": True, "beam_size": 2, "seed": 4}
    together = chatty.captions(rows, **wanted)
    assert together == chatty.captions(rows, **wanted)
    alone = [chatty.captions(rows[b : b + 1], **wanted)[0] for b in range(3)]
    assert [[c.text for c in beams] for beams in together[:3]] == [[c.text for c in beams] for beams in alone]
    assert together != chatty.captions(rows, sample=True, beam_size=2, seed=5)


def test_a_narrow_draw_is_greedy(chatty: CaptionerLayer) -> None:
    greedy = _said(chatty, beam_size=1)
    for captions, best in zip(_said(chatty, beam_size=1, sample=True, top_k=1), greedy, strict=True):
        assert captions[0][0] == best[0][0]


def test_other_numbers_are_no_other_trace(chatty: CaptionerLayer) -> None:
    rows = tf.constant(rows_for(chatty, 1))
    chatty.decode(rows, beam_size=2, no_repeat_ngram=2)
    chatty.decode(rows, beam_size=2, sample=True)
    warm = chatty.decoding_traces
    for length in (1, 2, 5, 9):
        chatty.decode(rows, beam_size=2, no_repeat_ngram=2, max_words=length, min_words=1, length_penalty=length / 9)
        chatty.decode(
            rows, beam_size=2, sample=True, max_words=length, temperature=1 / length, top_k=length, seed=length
        )
    assert chatty.decoding_traces == warm


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"min_words": 40}, "min_words is 40, allowed is 0 to 30"),
        ({"beam_groups": 2}, "3 beams can't be dealt to 2 groups"),
        ({"beam_groups": 4}, "beam_groups is 4, allowed is 1 to 3"),
        ({"temperature": 0.5}, "words are searched for"),
        ({"sample": True, "beam_groups": 3}, "words are drawn"),
        ({"sample": True, "top_p": 0.0}, "top_p is 0.0"),
        ({"sample": True, "temperature": float("nan")}, "temperature is nan"),
        ({"no_repeat_ngram": 11}, "allowed is 0 to 10"),
    ],
)
def test_what_does_not_go_is_refused(wanted: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidDecoding, match=said):
        DecodingRequest(**wanted).resolved(CaptionerArguments())


def test_a_heads_own_options_are_where_a_request_says_nothing() -> None:
    head = CaptionerArguments(beam_size=6, beam_groups=3, min_words=4, no_repeat_ngram=2, diversity=1.0)
    assert DecodingRequest().resolved(head) == Decoding(
        beam_size=6, max_words=30, length_penalty=0.7, min_words=4, no_repeat_ngram=2, beam_groups=3, diversity=1.0
    )
    assert DecodingRequest(beam_size=4).resolved(head).beam_groups == 1  # 4 beams can't be dealt to 3
    assert DecodingRequest(max_words=2).resolved(head).min_words == 2
    for wrong in ({"min_words": 31}, {"beam_size": 3, "beam_groups": 2}, {"coverage": 0.1}):
        with pytest.raises(ValueError, match=r"min_words|beam_size|coverage"):
            CaptionerArguments.model_validate(wrong)
