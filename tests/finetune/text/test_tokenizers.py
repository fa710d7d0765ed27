"""What a token is: words, characters, pieces, and what is kept of case and punctuation."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune.text import sentencepieces
from finetune.text.sentencepieces import CannotLearnPieces, DamagedPieces, NoSentencePiece
from finetune.text.tokenizer import NotText, tokenize
from finetune.text.tokenizers import (
    CharacterTokenizer,
    OtherTokenizer,
    Tokenizer,
    WordOptions,
    WordTokenizer,
    kind_for_language,
    learn_tokenizer,
    open_tokenizer,
)
from finetune.text.vocabulary import SPECIALS, UNKNOWN, DamagedVocabulary, Vocabulary
from zoo.vocabulary_file import PIECES_FILE, VOCABULARY_FILE

OPTIONS = [WordOptions(keep_case=case, keep_punctuation=kept) for case in (False, True) for kept in (False, True)]
ALL = WordOptions(keep_case=True, keep_punctuation=True)
_PARTS = st.sampled_from(
    [*"abs's- ’éẞΣİSs青カกि\u0301\u3099\u200d\u2063\r1🐕.,(!)\"。「▁<>", "'s", "<unk>", "'S", "\ud83d"]
)
TEXTS = st.one_of(st.text(), st.lists(_PARTS).map("".join))
CAPTIONS = [
    "ペンギンの かち！",
    "しろい クジャクのメス",
    "カエル",
    "白いカエルとペンギン",
    "A black dog runs across wet grass.",
    "Two dogs run across the grass.",
    "A brown dog jumps over the wall.",
]


@pytest.mark.parametrize(
    ("options", "text", "words"),
    [
        (WordOptions(keep_case=True), "A Man's hat. THE END", ["A", "Man", "'s", "hat", "THE", "END"]),
        (
            WordOptions(keep_punctuation=True),
            "“A dog”, (wet) – don't! 🐕‍🦺 3.5",
            ["“", "a", "dog", "”", ",", "(", "wet", ")", "–", "don't", "!", "🐕", "🦺", "3", ".", "5"],
        ),
        (WordOptions(keep_punctuation=True), "青蛙。<unk>", ["青", "蛙", "。", "<", "unk", ">"]),
        (ALL, "Il dit: « Oui »", ["Il", "dit", ":", "«", "Oui", "»"]),
    ],
)
def test_case_and_punctuation_are_kept_where_asked(options: WordOptions, text: str, words: list[str]) -> None:
    assert WordTokenizer(options=options).tokenize(text) == words


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("A man 's hat , wet ( and red ) !", "A man's hat, wet (and red)!"),
        ("青蛙 。 白孔雀 （ 雌孔雀 ， 或孔雀 ） 。", "青蛙。白孔雀（雌孔雀，或孔雀）。"),
    ],
)
def test_punctuation_is_shown_as_a_reader_expects(text: str, shown: str) -> None:
    tokenizer = WordTokenizer(options=ALL)
    assert tokenizer.detokenize(tokenizer.tokenize(text)) == shown


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options.suffix or "plain")
@pytest.mark.parametrize("kind", [WordTokenizer, CharacterTokenizer])
@given(text=TEXTS)
def test_what_is_shown_has_the_same_tokens_and_none_is_special(kind: Any, options: WordOptions, text: str) -> None:
    tokenizer: Tokenizer = kind(options=options)
    tokens = tokenizer.tokenize(text)
    assert tokenizer.tokenize(tokenizer.detokenize(tokens)) == tokens
    assert not set(tokens) & set(SPECIALS)
    assert all(token and not any(char.isspace() for char in token) for token in tokens)


@given(text=TEXTS)
def test_characters_say_the_words(text: str) -> None:
    tokenizer = CharacterTokenizer()
    assert tokenize(tokenizer.detokenize(tokenizer.tokenize(text))) == tokenize(text)


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("A dog's", [*"a▁dog's"]),
        ("青蛙。ABC公司", [*"青蛙▁abc▁公司"]),
        ("しろい クジャク", [*"しろいクジャク"]),
        ("ضفدع ABC", [*"ضفدع▁abc"]),
        ("cafe\u0301 กิน", [*"café▁", "กิ", "น"]),
        ("a▁b", [*"a▁b"]),
        ("... 🐕", []),
        ("", []),
    ],
)
def test_characters(text: str, tokens: list[str]) -> None:
    assert CharacterTokenizer().tokenize(text) == tokens


def test_names_carry_rule_version_and_options() -> None:
    names = {tokenizer(options=o).name for tokenizer in (WordTokenizer, CharacterTokenizer) for o in OPTIONS}  # type: ignore[abstract]
    assert len(names) == 8
    for name in names:
        assert open_tokenizer(name, {}).name == name
    assert WordTokenizer().name == "words@1"
    for unknown in ("words@2", "words@1+colour", "bytes@1", ""):
        with pytest.raises(OtherTokenizer, match=r"words@1, characters@1, sentencepiece@1"):
            open_tokenizer(unknown, {})


@pytest.mark.parametrize(
    ("language", "kind"),
    [("ja", "characters"), ("zh-Hant", "characters"), ("zh_CN", "characters"), ("TH", "characters"), ("de", "words"),
     ("ko", "words"), ("jam", "words"), (None, "words"), ("", "words")],
)  # fmt: skip
def test_languages_without_spaces_go_by_characters(language: str | None, kind: str) -> None:
    assert kind_for_language(language) == kind


@pytest.mark.parametrize("kind", ["words", "characters", "sentencepiece"])
def test_a_vocabulary_keeps_its_tokenizer(kind: Any) -> None:
    if kind == "sentencepiece":
        pytest.importorskip("sentencepiece")
    vocabulary = Vocabulary.learn(CAPTIONS, 1, tokenizer=learn_tokenizer(kind, ALL, CAPTIONS, pieces=60))
    files = vocabulary.to_files()
    again = Vocabulary.from_files({**files, "other.json": b"{}"})
    assert again == vocabulary
    assert again.to_files() == files
    for caption in CAPTIONS:
        numbers = again.encode(again.words_of(caption, where="x"))
        assert UNKNOWN not in numbers
        assert again.text(numbers) == WordTokenizer(options=ALL).options.line(caption)
    assert Vocabulary.learn(CAPTIONS, 1, tokenizer=learn_tokenizer(kind, ALL, CAPTIONS, pieces=60)).to_files() == files


@pytest.fixture(scope="module")
def pieces() -> Vocabulary:
    pytest.importorskip("sentencepiece")
    texts = [*CAPTIONS, *["the word <unk> stands here", "<s> and </s> and <pad>"] * 20]
    return Vocabulary.learn(texts, 1, tokenizer=learn_tokenizer("sentencepiece", ALL, texts, pieces=120))


@given(text=TEXTS)
def test_pieces_say_the_words_and_none_is_special(pieces: Vocabulary, text: str) -> None:
    tokens = pieces.cutter.tokenize(text + " <unk><s></s><pad> UNK")
    assert not set(tokens) & set(SPECIALS)
    assert pieces.cutter.detokenize(tokens) == ALL.line(text.replace("▁", " ") + " <unk><s></s><pad> UNK")


def test_words_that_no_caption_had_are_put_together_from_pieces(pieces: Vocabulary) -> None:
    numbers = pieces.encode(pieces.words_of("A black wall jumps across dogs", where="x"))
    assert UNKNOWN not in numbers
    assert pieces.text(numbers) == "A black wall jumps across dogs"
    assert UNKNOWN in pieces.encode(pieces.words_of("ضفدع", where="x"))


def test_a_model_file_is_the_vocabularys_own(pieces: Vocabulary) -> None:
    files = pieces.to_files()
    assert json.loads(files[VOCABULARY_FILE])["files"] == {PIECES_FILE: hashlib.sha256(files[PIECES_FILE]).hexdigest()}
    with pytest.raises(DamagedVocabulary, match="isn't beside it"):
        Vocabulary.from_bytes(files[VOCABULARY_FILE])
    with pytest.raises(DamagedVocabulary, match="another vocabulary's"):
        Vocabulary.from_files({**files, PIECES_FILE: files[PIECES_FILE] + b"\0"})
    with pytest.raises(DamagedVocabulary, match=VOCABULARY_FILE):
        Vocabulary.from_files({PIECES_FILE: files[PIECES_FILE]})


@pytest.mark.parametrize("data", [b"", b"no model", b"\x0a" * 50, None, b"x" * ((16 << 20) + 1)])
def test_what_is_no_model_of_pieces_is_refused(data: bytes | None) -> None:
    pytest.importorskip("sentencepiece")
    with pytest.raises(DamagedPieces, match=PIECES_FILE):
        open_tokenizer("sentencepiece@1", {} if data is None else {PIECES_FILE: data})


def test_pieces_need_captions() -> None:
    pytest.importorskip("sentencepiece")
    for captions, says in (([], "no caption"), (["..."], "no caption"), (["word " * 20_000], "bytes")):
        with pytest.raises(CannotLearnPieces, match=says):
            learn_tokenizer("sentencepiece", WordOptions(), captions, pieces=60)
    with pytest.raises(NotText):
        learn_tokenizer("sentencepiece", WordOptions(), [b"a dog"], pieces=60)  # type: ignore[list-item]


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    with pytest.raises(NoSentencePiece) as caught:
        sentencepieces.SentencePieceTokenizer.learn(WordOptions(), CAPTIONS, pieces=60)
    assert caught.value.hint == "pip install 'modelzoo[sentencepiece]'"
