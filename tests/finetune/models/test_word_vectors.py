"""Files of pretrained word vectors: both layouts, what is found, and what is refused."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from finetune.models.word_vectors import InvalidWordVectors, NoSuchWordVectors, WordVectors, read_word_vectors

WORDS = ("dog", "cat", "a b", "rome")


def _file(folder: Path, text: str, name: str = "vectors.txt") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("header", ["", "5 2\n"])
def test_both_layouts_are_read(tmp_path: Path, header: str) -> None:
    text = header + "dog 1 2\nhorse 9 9\nRome 5 6\na b 3 -4e-1\nDog 7 7\n"
    found = read_word_vectors(_file(tmp_path, text), WORDS, size=2)
    assert found.found.tolist() == [True, False, True, True]
    np.testing.assert_allclose(found.vectors[found.found], [[1, 2], [3, -0.4], [5, 6]], rtol=1e-6)
    assert found.summary() == "word vectors: 3 of 4 words are in vectors.txt; the other 1 begin at random"
    np.testing.assert_array_equal(WordVectors.from_bytes(found.to_bytes()).vectors, found.vectors)


def test_the_exact_spelling_comes_first(tmp_path: Path) -> None:
    found = read_word_vectors(_file(tmp_path, "DOG 1 1\ndog 2 2\nDog 3 3\n"), WORDS, size=2)
    assert found.vectors[0].tolist() == [2, 2]


def test_packed_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "vectors.txt.gz"
    path.write_bytes(gzip.compress(b"dog 1 2\n"))
    assert read_word_vectors(path, WORDS, size=2).found.sum() == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("dog 1 2 3\n", "has vectors of 3 values, the captioner's embeddings have 2"),
        ("2 300\ndog 1 2\n", "has vectors of 300 values"),
        ("dog 1 2\ncat 1\n", "line 2: expected a word and 2 numbers"),
        ("dog 1 two\n", "line 1: the vector of 'dog' holds something that is no finite number"),
        ("dog 1 nan\n", "no finite number"),
        ("horse 1 2\n", "none of the vocabulary's 4 words"),
        ("", "none of the vocabulary's 4 words"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidWordVectors, match=said):
        read_word_vectors(_file(tmp_path, text), WORDS, size=2)


def test_a_missing_or_cut_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoSuchWordVectors, match=r"gone\.txt: No such file"):
        read_word_vectors(tmp_path / "gone.txt", WORDS, size=2)
    path = tmp_path / "cut.gz"
    path.write_bytes(gzip.compress(b"dog 1 2\n" * 1000)[:-20])
    with pytest.raises(NoSuchWordVectors, match=r"cut\.gz"):
        read_word_vectors(path, WORDS, size=2)
