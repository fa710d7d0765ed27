"""An export's folder is there whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.export.folder import FolderTaken, check_free, listed, whole_folder
from zoo.atomic_file import NotADirectory


def test_a_folder_appears_when_it_is_finished(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with whole_folder(target) as temporary:
        (temporary / "1").mkdir()
        (temporary / "1" / "model.bin").write_bytes(b"xyz")
        assert not target.exists()
        assert temporary.parent == target.parent  # the same file system, so that a rename moves it
    assert [path.name for path in target.parent.iterdir()] == ["b"]
    digest = "sha256:3608bca1e44ea6c4d268eb6db02260269892c0b42b86bbf1e77a6fa16c3c9282"
    assert listed(target) == [{"path": "1/model.bin", "bytes": 3, "digest": digest}]


def test_an_empty_folder_is_taken_over(tmp_path: Path) -> None:
    target = tmp_path / "empty"
    target.mkdir()
    with whole_folder(target) as temporary:
        (temporary / "file").write_text("x")
    assert [path.name for path in target.iterdir()] == ["file"]


def test_nothing_is_left_of_a_failure(tmp_path: Path) -> None:
    def halfway() -> None:
        with whole_folder(tmp_path / "b") as temporary:
            (temporary / "half").write_text("x")
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        halfway()
    assert list(tmp_path.iterdir()) == []


def test_what_is_in_the_way_is_named_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(FolderTaken, match=r"isn't empty: it has mine\.txt"), whole_folder(tmp_path):
        pytest.fail("nothing is written into a folder that isn't empty")
    for path in (tmp_path / "mine.txt", tmp_path / "mine.txt" / "below"):
        with pytest.raises(NotADirectory):
            check_free(path)
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_whoever_comes_second_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "race"

    def second() -> None:
        with whole_folder(target) as temporary:
            (temporary / "second").write_text("x")
            target.mkdir()
            (target / "first").write_text("x")

    with pytest.raises(FolderTaken, match="has first"):
        second()
    assert [path.name for path in tmp_path.iterdir()] == ["race"]
    assert [path.name for path in target.iterdir()] == ["first"]
