"""Vocabulary: learnt, encoded, stored."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetune.text.tokenizer import TOKENIZER, NotText, NotWords, tokenize
from finetune.text.vocabulary import (
    END,
    PAD,
    SPECIALS,
    START,
    UNKNOWN,
    DamagedVocabulary,
    EmptyCaption,
    NoCaptions,
    OtherTokenizer,
    Vocabulary,
)
from zoo.errors import InvalidArgument

CAPTIONS = ["A dog runs.", "a dog sleeps", "A cat sleeps on a red sofa"]


def test_words_come_by_count_then_by_code_point() -> None:
    vocabulary = Vocabulary.learn(CAPTIONS, 2)
    assert vocabulary.words == ("a", "dog", "sleeps")
    assert vocabulary.counts == (4, 2, 2)
    assert len(vocabulary) == 4 + 3
    assert (PAD, START, END, UNKNOWN) == (0, 1, 2, 3)
    assert Vocabulary.learn(reversed(CAPTIONS), 2) == vocabulary


def test_encode_and_decode() -> None:
    vocabulary = Vocabulary.learn(CAPTIONS, 2)
    numbers = vocabulary.encode(tokenize("a red dog sleeps"))
    assert numbers == [4, UNKNOWN, 5, 6]
    assert vocabulary.decode([START, *numbers, END, 4, PAD]) == ["a", "<unk>", "dog", "sleeps"]
    with pytest.raises(InvalidArgument, match="99"):
        vocabulary.decode([99])


def test_unknown_exists_without_a_rare_word() -> None:
    vocabulary = Vocabulary.learn(["a dog"], 1)
    assert vocabulary.encode(["zebra"]) == [UNKNOWN]


def test_special_tokens_typed_in_captions_are_only_words() -> None:
    vocabulary = Vocabulary.learn(["the word <unk> and <s> and </s>", "UNK <pad> <UNK>"], 1)
    assert {"unk", "s", "pad"} <= set(vocabulary.words)
    for text in ("<unk>", "<s>", "</s>", "<pad>", "UNK"):
        assert min(vocabulary.encode(tokenize(text))) > UNKNOWN
    assert not set(SPECIALS) & set(vocabulary.words)


def test_bytes_round_trip_and_are_utf_8() -> None:
    vocabulary = Vocabulary.learn(["Ein Frosch über dem Café", "青蛙", "ضفدع"], 1)
    data = vocabulary.to_bytes()
    assert "über".encode() in data
    assert "青".encode() in data
    assert Vocabulary.from_bytes(data) == vocabulary
    assert Vocabulary.from_bytes(data).to_bytes() == data


def test_another_tokenizer_is_refused() -> None:
    value = json.loads(Vocabulary.learn(CAPTIONS, 1).to_bytes())
    assert value["tokenizer"] == TOKENIZER
    value["tokenizer"] = "words@0"
    with pytest.raises(OtherTokenizer, match=r"words@0.*words@1"):
        Vocabulary.from_bytes(json.dumps(value).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"specials": ["<pad>", "<s>", "</s>"]},
        {"words": ["a", "<s>"], "counts": [1, 1]},
        {"words": ["a", "a"], "counts": [1, 1]},
        {"words": ["a"], "counts": [1, 1]},
        {"words": ["a", 3], "counts": [1, 1]},
        {"words": [], "counts": []},
        {"words": None},
    ],
)
def test_a_damaged_vocabulary_is_named(change: dict[str, Any]) -> None:
    value = json.loads(Vocabulary.learn(CAPTIONS, 1).to_bytes()) | change
    with pytest.raises(DamagedVocabulary, match="vocabulary"):
        Vocabulary.from_bytes(json.dumps(value).encode())


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"[]", b"{}", b'{"format": 1'])
def test_bytes_that_are_no_vocabulary(data: bytes) -> None:
    with pytest.raises(DamagedVocabulary, match=r"vocabulary\.json"):
        Vocabulary.from_bytes(data)


@pytest.mark.parametrize("caption", ["", "  ", "...", "\r\n", "🐕"])
def test_a_caption_without_a_word_is_named(caption: str) -> None:
    with pytest.raises(EmptyCaption, match="caption 2"):
        Vocabulary.learn(["a dog", caption], 1)


def test_nothing_to_learn_from() -> None:
    with pytest.raises(NoCaptions, match="no caption"):
        Vocabulary.learn([], 1)
    with pytest.raises(NoCaptions, match="'a'"):
        Vocabulary.learn(CAPTIONS, 99)


def test_slips_of_type_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="one string"):
        Vocabulary.learn("a dog runs", 1)
    with pytest.raises(NotText):
        Vocabulary.learn([b"a dog"], 1)  # type: ignore[list-item]
    with pytest.raises(NotWords):
        Vocabulary.learn(CAPTIONS, 1).encode("a dog")
