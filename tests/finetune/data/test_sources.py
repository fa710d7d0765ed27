"""flickr, folder, jsonl: what is good comes through to the letter, what is bad is listed."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from finetune.data.scan import scan
from finetune.data.source import ExampleSource
from finetune.data.sources import UnknownSource, data_defaults, open_source
from finetune.data.trees.tree import MalformedData, NoData
from zoo.errors import InvalidArgument


def picture() -> bytes:
    with io.BytesIO() as buffer:
        Image.new("RGB", (8, 6), "red").save(buffer, "JPEG")
        return buffer.getvalue()


def flickr(
    root: Path, captions: bytes, *names: str, file: str = "captions.txt", folder: str = "images"
) -> ExampleSource:
    (root / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        (root / folder / name).write_bytes(picture())
    (root / file).write_bytes(captions)
    return open_source(f"flickr:{root}")


def captions_of(source: ExampleSource) -> dict[str, list[str]]:
    return {example.id: list(example.captions) for example in source.examples}


def bad(source: ExampleSource) -> dict[str, str]:
    return {record.id: record.reason for record in source.bad_records}


def test_captions_keep_commas_quotes_and_line_ends_of_other_kinds(tmp_path: Path) -> None:
    text = (
        "image,caption\n"
        'b.jpg,"A dog, a cat , and ""Rex"" ."\r\n'
        "a.jpg,A man , sitting .\n"
        "a.jpg,one\rtwo\u2028three\u2063\x0b\x85 <unk> UNK\n"
        'a.jpg,He says "hi" twice\n'
        'a.jpg,"Hello" she said\n'
        'c.jpg,"two\nlines"\n'
        "c.jpg,犬が走る 🐕\n"
    )
    source = flickr(tmp_path, text.encode(), "a.jpg", "b.jpg", "c.jpg")
    assert captions_of(source) == {
        "a.jpg": [
            "A man , sitting .",
            "one\rtwo\u2028three\u2063\x0b\x85 <unk> UNK",
            'He says "hi" twice',
            '"Hello" she said',
        ],
        "b.jpg": ['A dog, a cat , and "Rex" .'],
        "c.jpg": ["two\nlines", "犬が走る 🐕"],
    }
    assert not source.bad_records
    assert source.read(1) == picture()


def test_bad_records_are_listed_one_by_one(tmp_path: Path) -> None:
    text = (
        "image,caption\ngone.jpg,a\ngone.jpg,b\nhalf.jpg,\nhalf.jpg,fine\nempty.jpg,...\n\njust words\n"
        'open.jpg,"never closed\nafter.jpg,still here\n../secret.jpg,x\n'
    )
    names = ("half.jpg", "empty.jpg", "none.jpg", "open.jpg", "after.jpg", ".DS_Store")
    source = flickr(tmp_path, b"\xef\xbb\xbf" + text.encode(), *names)
    assert captions_of(source) == {"half.jpg": ["fine"], "after.jpg": ["still here"]}
    assert bad(source) == {
        "gone.jpg": "the image is missing; line 2 and 1 more describe it",
        "captions.txt:4": "the caption of half.jpg is empty",
        "captions.txt:6": "the caption of empty.jpg has no word",
        "captions.txt:8": "expected image,caption, got 'just words'",
        "open.jpg": "captions.txt, line 9: a quote is opened and never closed",
        "../secret.jpg": "the image is missing; line 11 describes it",
        "none.jpg": "no caption in captions.txt",
    }


def test_the_older_layout(tmp_path: Path) -> None:
    text = "a.jpg#0\tA dog , running .\na.jpg#1\tTwo\tdogs\nb.jpg#0\tx\nnonsense\n"
    source = flickr(tmp_path, text.encode(), "a.jpg", file="Flickr8k.token.txt", folder="Flicker8k_Dataset")
    assert captions_of(source) == {"a.jpg": ["A dog , running .", "Two\tdogs"]}
    assert set(bad(source)) == {"b.jpg", "Flickr8k.token.txt:4"}


def test_names_match_whatever_their_unicode_form(tmp_path: Path) -> None:
    source = flickr(tmp_path, "image,caption\nCafe\u0301.jpg,x\n".encode(), "Caf\u00e9.jpg")
    assert captions_of(source) == {"Caf\u00e9.jpg": ["x"]}


def test_a_line_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    with pytest.raises(MalformedData, match=r"captions.txt, line 3: not UTF-8 \(byte 0xe9 at column 10\)"):
        flickr(tmp_path, "image,caption\na.jpg,ok\na.jpg,caf\xe9\n".encode("latin1"), "a.jpg")


def test_another_header_is_named(tmp_path: Path) -> None:
    with pytest.raises(MalformedData, match=r"line 1: expected the header 'image,caption'.*photo\|comment"):
        flickr(tmp_path, b"photo|comment\n", "a.jpg")


def test_what_is_not_there_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(NoData, match=r"looked for a folder at .*/nowhere; it does not exist"):
        open_source(f"flickr:{tmp_path}/nowhere")
    with pytest.raises(NoData, match=r"no caption file; looked for captions.txt, Flickr8k.token.txt"):
        open_source(f"flickr:{tmp_path}")
    (tmp_path / "captions.txt").write_text("image,caption\n")
    with pytest.raises(NoData, match="no image folder; looked for images, Images"):
        open_source(f"flickr:{tmp_path}")
    for location in ("photos", "csvv:x", ""):
        with pytest.raises(
            UnknownSource,
            match="KIND:LOCATION with one of the kinds coco, csv, flickr, folder, jsonl, scenes, tfrecord",
        ):
            open_source(location)
    with pytest.raises(InvalidArgument, match=r"data.language 'de' has no meaning for flickr:"):
        open_source(f"flickr:{tmp_path}", language="de")


def test_a_location_opens_the_same_source_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flickr(tmp_path / "data", b"image,caption\na.jpg,x\n", "a.jpg")
    monkeypatch.chdir(tmp_path)
    source = open_source("flickr:data")
    monkeypatch.chdir("/")
    assert open_source(source.location).examples == source.examples


def test_what_a_kind_of_data_wants() -> None:
    assert data_defaults("scenes:count=50") == {"split": "source", "views": 1}
    assert data_defaults("flickr:x") == {}
    with pytest.raises(UnknownSource):
        data_defaults("nonsense")


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture())


def test_folders_are_classes_with_their_own_names(tmp_path: Path) -> None:
    put(tmp_path, "猫/a.png", "狗/a.png", "10/x.jpg", "2/deep/er/y.jpg", "A b/z", "10/.hidden.jpg", ".git/config")
    put(tmp_path, "lost.jpg", "labels.txt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "2/deep/loop").symlink_to(tmp_path / "2")
    (tmp_path / "10/dangling.jpg").symlink_to(tmp_path / "nothing")
    source = open_source(f"folder:{tmp_path}")
    assert [(example.id, example.label) for example in source.examples] == [
        ("10/x.jpg", "10"),
        ("2/deep/er/y.jpg", "2"),
        ("A b/z", "A b"),
        ("狗/a.png", "狗"),
        ("猫/a.png", "猫"),
    ]
    assert source.classes == ("10", "2", "A b", "狗", "猫")
    assert bad(source) == {
        "10/dangling.jpg": "a link to nothing, or no ordinary file",
        "empty/": "the class folder holds no files",
        "lost.jpg": "the image lies in no class folder",
    }
    assert list(source.notes) == [  # type: ignore[attr-defined]
        "2 hidden files and folders ignored",
        "2/deep/loop/ links back to a folder it lies in; not followed",
        "1 files beside the class folders ignored: labels.txt",
    ]


def test_a_file_name_that_is_not_utf8_is_a_bad_record(tmp_path: Path) -> None:
    put(tmp_path, "a/x.jpg")
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/a/\xff.jpg"))).write_bytes(picture())
    source = open_source(f"folder:{tmp_path}")
    assert [example.id for example in source.examples] == ["a/x.jpg"]
    assert bad(source) == {"a/\\udcff.jpg": "the file name is not UTF-8"}


def test_a_folder_without_classes_or_images(tmp_path: Path) -> None:
    with pytest.raises(NoData, match="a folder per class; there is none"):
        open_source(f"folder:{tmp_path}")
    (tmp_path / "cats").mkdir()
    with pytest.raises(NoData, match="its 1 class folders hold no files"):
        open_source(f"folder:{tmp_path}")


def jsonl(root: Path, *lines: object) -> Path:
    put(root, "a.png", "sub/b.png", "c.png")
    path = root / "data.jsonl"
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines), "utf-8")
    return path


def test_jsonl_captions_in_languages(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path,
        {"image": "a.png", "label": "x", "captions": {"en": "A dog.", "zh": ["狗", "一条狗"]}},
        {"image": "sub/b.png", "label": "y", "captions": {"en": "A\u2028cat."}},
    )
    assert captions_of(open_source(f"jsonl:{path}", language="zh")) == {"a.png": ["狗", "一条狗"]}
    assert captions_of(open_source(f"jsonl:{path}", language="en"))["sub/b.png"] == ["A\u2028cat."]
    source = open_source(f"jsonl:{path}")
    assert captions_of(source) == {"a.png": [], "sub/b.png": []}
    assert source.classes == ("x", "y")
    assert "choose data.language: en, zh" in source.notes[0]  # type: ignore[attr-defined]
    with pytest.raises(InvalidArgument, match="no captions in language 'fr'; there are en, zh"):
        open_source(f"jsonl:{path}", language="fr")


def test_jsonl_bad_lines_are_listed(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path,
        {"image": "a.png", "captions": "one text, not letters"},
        {"image": "a.png", "caption": "a second"},
        "{",
        {"image": "gone.png", "label": "x"},
        {"image": "../secret.png", "label": "x"},
        {"image": "c.png"},
        {"image": "c.png", "lable": "x"},
        {"image": "c.png", "captions": [1, 2]},
        {"image": "c.png", "captions": ["ok", " "]},
        ["c.png"],
    )
    source = open_source(f"jsonl:{path}")
    assert captions_of(source) == {"a.png": ["one text, not letters", "a second"]}
    reasons = " / ".join(record.reason for record in source.bad_records)
    for number, said in enumerate(
        (
            "Expecting",
            "is missing",
            "must lie below",
            "neither",
            "unknown keys lable",
            "a list of texts",
            "is empty or has no word",
        ),
        3,
    ):
        assert f"line {number}: " in reasons
        assert said in reasons
    assert len(source.bad_records) == 8


def test_the_scan_finds_what_headers_show(tmp_path: Path) -> None:
    names = ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"]
    text = "image,caption\n" + "".join(f"{name},x\n" for name in names)
    source = flickr(tmp_path, text.encode(), *names)
    (tmp_path / "images/b.jpg").write_bytes(b"")
    (tmp_path / "images/c.jpg").write_bytes(b"<html>")
    (tmp_path / "images/d.jpg").unlink()
    found = {record.id: record.reason for record in scan(source, range(5), 48)}
    assert list(found) == ["b.jpg", "c.jpg", "d.jpg"]
    assert "zero bytes" in found["b.jpg"]
    assert "not an image" in found["c.jpg"]
    assert "cannot read image 'images/d.jpg': No such file" in found["d.jpg"]
    assert [record.id for record in scan(source, [0], 47)] == ["a.jpg"]


def test_real_photos(shared: Path) -> None:
    source = open_source(f"flickr:{shared}/data/flickr1k")
    assert len(source.examples) == 900
    assert {len(example.captions) for example in source.examples} == {5}
    assert not source.bad_records
    assert scan(source, range(900), 250_000) == []


def test_real_stamps(shared: Path) -> None:
    folder = open_source(f"folder:{shared}/data/stamps")
    lines = open_source(f"jsonl:{shared}/data/stamps/captions.jsonl", language="ja")
    assert len(folder.examples) == 670
    assert folder.classes == lines.classes
    assert len(folder.classes or ()) == 16
    assert not lines.bad_records
