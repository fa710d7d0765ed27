"""Captions of every kind through the captioner: what it learns to say is what was written, token by token."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from finetune.data.source import Example
from finetune.models.heads.captioner import CAPTIONER, AnotherVocabulary, CaptionerArguments
from finetune.text.vocabulary import END, PAD, UNKNOWN, EmptyCaption, Vocabulary
from tests.finetune.models.toy_captioner import examples_of, features_of, make, train
from zoo.im2txt_vocabulary import MissingWordCounts

ODD = [
    "a dog 🐕 runs",
    "ضفدع أخضر يقفز",
    "青蛙 and カエル в пруду",
    "half of a \ud83d pair",
    "one\rtwo\u2028three\u2063four",
    "the word <unk> or UNK",
    "A “Quoted” Sign!",
]
WORDS = [
    "a dog runs",
    "ضفدع أخضر يقفز",
    "青蛙 and カエル в пруду",
    "half of a pair",
    "one two three four",
    "the word unk or unk",
    "a quoted sign",
]


@pytest.mark.parametrize("kind", ["words", "characters", "sentencepiece"])
def test_odd_captions_are_learnt_and_said(kind: str) -> None:
    if kind == "sentencepiece":
        pytest.importorskip("sentencepiece")
    layer, table, assets, _ = make(ODD, tokenizer=kind, max_words=32, units=64, pieces=90)
    assert UNKNOWN not in table.arrays["tokens"]
    assert assets.tokenizer == f"{kind}@1"
    train(layer, table, features_of(len(ODD)), steps=150 if kind == "words" else 300, rate=0.02)
    assert [beams[0].text for beams in layer.captions(features_of(len(ODD)))] == WORDS


def test_case_and_punctuation_are_said_where_they_were_kept() -> None:
    layer, table, assets, arguments = make(ODD, keep_case=True, keep_punctuation=True, units=32)
    assert assets.tokenizer == "words@1+case+punctuation"
    train(layer, table, features_of(len(ODD)), steps=150, rate=0.02)
    said = [beams[0].text for beams in layer.captions(features_of(len(ODD)))]
    assert said[0] == "a dog 🐕 runs"
    assert said[5] == "the word < unk > or UNK"
    assert said[6] == "A “Quoted” Sign!"
    metrics = layer.evaluate(features_of(len(ODD)), examples_of(ODD))
    assert metrics["bleu_4"] == pytest.approx(1, abs=1e-6)  # scored by plain words, whatever is kept
    stored = json.loads(json.dumps(CAPTIONER.resolved(arguments, assets)))
    assert (stored["tokenizer"], stored["keep_case"], stored["keep_punctuation"]) == ("words", True, True)


@pytest.mark.parametrize("kind", ["words", "characters", "sentencepiece"])
@pytest.mark.parametrize("caption", ["", "   ", "\u2063", "🐕 !!", "\ud83d"])
def test_a_caption_without_a_word_is_named(kind: Any, caption: str) -> None:
    if kind == "sentencepiece":
        pytest.importorskip("sentencepiece")
    arguments = CaptionerArguments(min_count=1, tokenizer=kind, pieces=40)
    with pytest.raises(EmptyCaption, match=r"photo-001\.jpg"):
        CAPTIONER.learn_assets(examples_of(["a dog runs over the hill", caption]), arguments)


def test_a_caption_of_400_words_is_cut_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        _, table, _, _ = make(["a dog runs", " ".join(f"word{i}" for i in range(400))], max_words=20)
    assert "1 of 2 captions are longer than max_words = 20" in caplog.text
    assert (table.arrays["tokens"][1] != PAD).sum() == 20
    assert END not in table.arrays["tokens"][1]


def test_captions_of_unknown_words_only_are_trained_as_such_and_never_said() -> None:
    layer, _, assets, arguments = make(["a dog runs", "a dog sits"])
    strange = examples_of(["zebras graze", "ein Hund"])
    tokens = CAPTIONER.targets(strange, arguments, assets).arrays["tokens"]
    assert tokens[:, :3].tolist() == [[UNKNOWN, UNKNOWN, END]] * 2
    metrics = layer.evaluate(features_of(2), strange)
    assert metrics["bleu_1"] < 1e-6
    assert all("<unk>" not in beams[0].text for beams in layer.captions(features_of(2)))


def test_duplicate_captions_count_as_often_as_they_stand() -> None:
    _, table, assets, _ = make([["a dog", "a dog", "a dog"], "a dog"])
    assert len(table.image_index) == 4
    assert Vocabulary.from_files(assets.files).counts == (4, 4)


def test_a_vocabulary_of_another_model_is_refused() -> None:
    _, _, assets, arguments = make(["a dog runs"])
    _, _, others, _ = make(["a dog runs over a hill"])
    mixed = type(assets)(files=others.files, vocabulary_size=assets.vocabulary_size, tokenizer=assets.tokenizer)
    with pytest.raises(AnotherVocabulary, match="9 words, the model was made for 7"):
        CAPTIONER.build(arguments=arguments, feature_dim=4, assets=mixed, seed=1)
    for asked, says in (({"tokenizer": "characters"}, "tokenizer=characters"), ({"keep_case": True}, "keep_case=True")):
        with pytest.raises(AnotherVocabulary, match=says):
            CAPTIONER.targets([Example(id="x", captions=("a dog",))], arguments.model_copy(update=asked), assets)
    characters = make(["a dog runs"], tokenizer="characters")[2]
    table = CAPTIONER.targets(examples_of(["dog"]), arguments, characters)  # None: what the vocabulary has
    assert (table.arrays["tokens"] != PAD).sum() == 4


def test_the_words_of_im2txts_file_are_taken_in_its_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "word_counts.txt"
    file.write_text("a 9\n<S> 5\n</S> 5\n. 5\ndog 4\nruns 1\nzebra 1\n<UNK> 0\n")
    layer, table, assets, arguments = make(["A dog runs.", "a dog sits"], word_counts=str(file), min_count=4)
    vocabulary = Vocabulary.from_files(assets.files)
    assert vocabulary.words == ("a", ".", "dog", "runs", "zebra")  # min_count is the file's business
    assert table.arrays["tokens"][1, :4].tolist() == [4, 6, UNKNOWN, END]
    assert "1 of the 5 words" in capsys.readouterr().err
    assert len(layer.vocabulary) == 9
    assert CAPTIONER.resolved(arguments, assets)["word_counts"] is None  # the vocabulary is an asset
    kept = make(["A dog runs."], word_counts=str(file), keep_punctuation=True)[1]
    assert kept.arrays["tokens"][0, :5].tolist() == [4, 6, 7, 5, END]
    with pytest.raises(MissingWordCounts):
        make(["a dog"], word_counts=str(tmp_path / "none.txt"))
    with pytest.raises(ValidationError, match="pieces of tokenizer=sentencepiece"):
        CaptionerArguments(word_counts=str(file), tokenizer="sentencepiece")
