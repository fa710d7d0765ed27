"""Rule words@1."""

from __future__ import annotations

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.text.tokenizer import NotText, NotWords, check_words, detokenize, tokenize
from finetune.text.vocabulary import SPECIALS


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A black dog, and a spotted dog .", ["a", "black", "dog", "and", "a", "spotted", "dog"]),
        ("A man 's hat; a man's hat; A MAN’S hat", ["a", "man", "'s", "hat"] * 3),
        ("don't l'homme o’clock", ["don't", "l'homme", "o'clock"]),
        ("a T-shirt -- tri‑colored", ["a", "t-shirt", "tri-colored"]),
        ("'soccer' players' \"ball\"", ["soccer", "players", "ball"]),
        ("<unk> UNK <s> </s> <pad>", ["unk", "unk", "s", "s", "pad"]),
        (
            "a\rdog\r\nruns\u2028fast\u2029in\u0085the\u2063wet\u200bgrass\x00!",
            ["a", "dog", "runs", "fast", "in", "the", "wet", "grass"],
        ),
        ("soft\u00adly \u200erun\u200dning\ufe0f", ["softly", "running"]),
        ("café cafe\u0301 CAFÉ", ["café"] * 3),
        ("青蛙。カエル！ABC公司", ["青", "蛙", "カ", "エ", "ル", "abc", "公", "司"]),
        ("か\u3099く", ["が", "く"]),
        ("กิน", ["กิ", "น"]),
        ("एक एडिलेड रोसेल्ला|", ["एक", "एडिलेड", "रोसेल्ला"]),
        ("ضفدع. Лягушка Bir kurbağa", ["ضفدع", "лягушка", "bir", "kurbağa"]),
        ("개구리 3.5 km", ["개구리", "3", "5", "km"]),
        ("🐕 & $ ... | ’ -", []),
        ("", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    assert tokenize(text) == words


@given(st.text())
def test_words_are_lower_case_nfc_without_space_and_never_special(text: str) -> None:
    for word in tokenize(text):
        assert word == unicodedata.normalize("NFC", word)
        assert word == word.lower()
        assert word
        assert not any(char.isspace() for char in word)
        assert word not in SPECIALS


_PARTS = st.sampled_from([*"abs's- ’éẞΣİ青カกि\u0301\u3099\u200d\u2063\r1🐕", "'s", "s'", "-s"])


@given(st.one_of(st.text(), st.lists(_PARTS).map("".join)))
def test_what_is_shown_has_the_same_words(text: str) -> None:
    words = tokenize(text)
    assert tokenize(detokenize(words)) == words


@given(st.lists(_PARTS).map("".join), st.lists(_PARTS).map("".join))
def test_words_do_not_depend_on_the_other_side_of_a_line_end(left: str, right: str) -> None:
    assert tokenize(left + "\u2028" + right) == tokenize(left + "\n" + right)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["a", "man", "'s", "hat"], "a man's hat"),
        (["青", "蛙", "abc", "公", "司"], "青蛙 abc 公司"),
        (["'s"], "'s"),
        ([], ""),
    ],
)
def test_detokenize(words: list[str], text: str) -> None:
    assert detokenize(words) == text


@pytest.mark.parametrize("value", [b"a dog", ["a", "dog"], None, 3])
def test_only_text_is_tokenized(value: Any) -> None:
    with pytest.raises(NotText, match=type(value).__name__):
        tokenize(value)


@pytest.mark.parametrize("value", ["a dog", b"a dog", None, ["a", 3], {"a"}])
def test_a_string_is_no_list_of_words(value: Any) -> None:
    with pytest.raises(NotWords, match="list of words"):
        check_words(value)
    with pytest.raises(NotWords):
        detokenize(value)


@pytest.mark.parametrize(
    ("text", "ptb", "alike"),
    [  # what pycocoevalcap 1.2's PTBTokenizer (Stanford CoreNLP 3.4.1, Java 17) made of them
        ("A man 's hat , and a T-shirt -- wet !", "a man 's hat and a t-shirt wet", True),
        ("Two men's dogs ( brown ) run .", "two men 's dogs -lrb- brown -rrb- run", False),
        ("The dog doesn't run 3.5 km", "the dog does n't run 3.5 km", False),
        ("We cannot see", "we can not see", False),
        ("A naïve café", "a naïve café", True),
        ("青蛙。", "青蛙 。", False),
    ],
)
def test_where_the_coco_servers_words_are_others(text: str, ptb: str, alike: bool) -> None:
    assert (tokenize(text) == ptb.split()) is alike
