"""Lists of class names: what is read, and which counts fit how many outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zoo.class_names import InvalidClassNames, MissingClassNames, check_class_names, read_class_names

NAMES = tuple(f"class {number}" for number in range(1002))


@pytest.mark.parametrize("form", ["lines", "lines without an end", "windows", "json", "with a mark"])
def test_lists_of_every_form(form: str, tmp_path: Path) -> None:
    names = ("cat", "Hund", "猫", "a\u2028b", " spaced ")
    text = {
        "lines": "\n".join(names) + "\n",
        "lines without an end": "\n".join(names),
        "windows": "\r\n".join(names) + "\r\n",
        "json": json.dumps(names),
        "with a mark": "\ufeff" + "\n".join(names),
    }[form]
    path = tmp_path / "names"
    path.write_bytes(text.encode())
    assert read_class_names(path) == names


@pytest.mark.parametrize(("listed", "outputs", "offset"), [(1000, 1000, 0), (1001, 1001, 0), (1000, 1001, 1)])
def test_counts_that_fit(listed: int, outputs: int, offset: int) -> None:
    """A list of one fewer than outputs: the first output is the background, as in TF-Slim's 1001 classes."""
    assert check_class_names(NAMES[:listed], outputs, "names.txt") == offset


@pytest.mark.parametrize(
    ("listed", "outputs", "allowed"),
    [(999, 1001, "1001 names, or 1000"), (1002, 1001, "1001 names, or 1000"), (1001, 1000, "1000 names, or 999")],
)
def test_counts_that_do_not(listed: int, outputs: int, allowed: str) -> None:
    told = f"names.txt names {listed} classes, the classifier has {outputs} outputs; allowed are {allowed}"
    with pytest.raises(InvalidClassNames, match=told):
        check_class_names(NAMES[:listed], outputs, "names.txt")


def test_a_background_that_the_network_does_not_have_is_pointed_out() -> None:
    with pytest.raises(InvalidClassNames) as caught:
        check_class_names(("background", *NAMES[:1000]), 1000, "names.txt")
    assert "'background'" in str(caught.value.hint)
    with pytest.raises(InvalidClassNames) as caught:
        check_class_names(NAMES[:1001], 1000, "names.txt")
    assert caught.value.hint is None


def test_without_a_classifier_there_is_nothing_to_name() -> None:
    with pytest.raises(InvalidClassNames, match="names 3 classes, but the checkpoint has no classifier"):
        check_class_names(NAMES[:3], None, "names.txt")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"cat\ndog\ncat\n", r"'cat' is named twice, in entries 1 and 3"),
        (b'["cat", "cat"]', r"'cat' is named twice, in entries 1 and 2"),
        (b"cat\n \n", "entry 2 of 2 is blank"),
        (b"", "names no classes"),
        (b"[]", "names no classes"),
        (b'{"cat": 0}', "list of strings, got a dict"),
        (b'["cat", 3]', "list of strings"),
        (b'["cat"', "begins like JSON but isn't"),
        (b"[" * 100_000, "begins like JSON but isn't"),
        (b"\xff\xfec\x00", "not UTF-8"),
    ],
)
def test_lists_that_are_none(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_bytes(content)
    with pytest.raises(InvalidClassNames, match=rf"names\.txt.*{told}"):
        read_class_names(path)


def test_no_list_at_all(tmp_path: Path) -> None:
    with pytest.raises(MissingClassNames, match=r"names\.txt"):
        read_class_names(tmp_path / "names.txt")
