"""`finetune vocabulary`: words of data, of a captioner and of im2txt's file; each read and written as the other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from finetune.cli.main import app
from finetune.text.tokenizers import WordOptions, learn_tokenizer
from finetune.text.vocabulary import Vocabulary
from finetune.text.word_counts import NoWordCounts, never_said, read_vocabulary, write_vocabulary
from tests.finetune.test_predictor import publish_head
from tests.tiny import tiny_backbone_version
from zoo.catalog import open_catalog
from zoo.errors import ZooError
from zoo.im2txt_vocabulary import InvalidWordCounts, MissingWordCounts, read_word_counts

CAPTIONS = ["A dog runs.", "a dog sits", "the dog runs, a lot", "Zebras graze!"]


@pytest.fixture
def data(tmp_path: Path) -> str:
    (tmp_path / "images").mkdir()
    lines = ["image,caption"]
    for place, caption in enumerate(CAPTIONS):
        (tmp_path / "images" / f"{place}.jpg").write_bytes(b"no one looks at it")
        lines.append(f'{place}.jpg,"{caption}"')
    (tmp_path / "captions.txt").write_text("\n".join(lines) + "\n")
    return f"flickr:{tmp_path}"


def ask(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["vocabulary", *arguments, "--format", "json"])
    if isinstance(done.exception, ZooError):
        raise done.exception
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_words_are_learnt_from_data_and_written_as_im2txt_does(tmp_path: Path, data: str) -> None:
    file = tmp_path / "word_counts.txt"
    found = ask(data, "--split", "all", "--min-count", "1", "--write", str(file))
    assert (found["words"], found["size"], found["tokenizer"]) == (8, 12, "words@1")
    assert found["commonest"][:2] == ["a", "dog"]
    lines = file.read_text().splitlines()
    assert lines[:5] == ["<S> 4", "</S> 4", "a 3", "dog 3", "runs 2"]
    assert len(lines) == 10
    assert read_word_counts(file).numbers["dog"] == 3  # what im2txt takes for its number
    again = ask(str(file), "--data", data, "--split", "train", "--set", "data.split=ordered:3,1")
    assert again["words"] == 8
    assert again["coverage"] == {"captions": 3, "words": 11, "share": 1.0, "unknown_words": {}}


def test_what_other_captions_say_that_it_has_no_word_for(tmp_path: Path, data: str) -> None:
    coverage = ask(data, "--split", "train", "--set", "data.split=ordered:2,2", "--min-count", "2", "--data", data)
    assert coverage["words"] == 2
    assert coverage["coverage"] == {
        "captions": 2,
        "words": 6,
        "share": pytest.approx(4 / 6),
        "unknown_words": {"runs": 1, "sits": 1},
    }


def test_a_published_vocabulary_is_written_and_read_back(tmp_path: Path) -> None:
    store = f"file://{tmp_path}/store"
    catalog = open_catalog(store)
    publish_head(catalog, tiny_backbone_version(catalog), "captioner", "cap", tmp_path)
    found = ask("cap", "--store", store, "--write", str(tmp_path / "words.txt"))
    published = catalog.get("cap").manifest.vocabulary
    assert published is not None
    assert found["size"] == published.size
    read = read_vocabulary(tmp_path / "words.txt")
    assert list(read.words[:3]) == found["commonest"][:3]
    assert (tmp_path / "words.txt").read_text().startswith("<S> 0\n</S> 0\n")  # a version doesn't say how many
    with pytest.raises(ZooError, match="no captioner"):
        ask("tiny", "--store", store)


def test_files_that_are_no_vocabulary_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    with pytest.raises(MissingWordCounts):
        ask(str(file))
    for text, says in (
        ("a 3\ndog 2\n", "not <S> and </S>"),
        ("<S> 3\na 3\n", "not </S>"),
        ("<S> 1\n</S> 1\n", "no word"),
    ):
        file.write_text(text)
        with pytest.raises(InvalidWordCounts, match=says):
            read_vocabulary(file)


def test_words_that_the_tokenizer_drops_are_named(tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("<S> 3\n</S> 3\na 3\n. 3\nDog 2\nt-shirt 1\n<UNK> 0\n")
    vocabulary = read_vocabulary(file)
    assert vocabulary.words == ("a", ".", "Dog", "t-shirt")
    assert never_said(vocabulary) == [".", "Dog"]
    kept = learn_tokenizer("words", WordOptions(keep_case=True, keep_punctuation=True), [], pieces=8)
    assert never_said(read_vocabulary(file, kept)) == []


def test_pieces_have_no_list_of_words(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    texts = CAPTIONS * 3
    pieces = Vocabulary.learn(texts, 1, tokenizer=learn_tokenizer("sentencepiece", WordOptions(), texts, pieces=40))
    assert never_said(pieces) == []
    with pytest.raises(NoWordCounts, match="without their model"):
        write_vocabulary(tmp_path / "x.txt", pieces)
