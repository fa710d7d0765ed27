"""The same folder on a disk, in archives and in a bucket: every source must see the same in each."""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from finetune.data.image_header import UnreadableImage
from finetune.data.sources import open_source
from finetune.data.trees import open_tree
from finetune.data.trees.byte_cache import ByteCache
from finetune.data.trees.tree import MalformedData, NoData
from zoo.store import open_store

FILES = {
    "cats/a.jpg": b"a cat" * 50,
    "cats/deep/b.jpg": b"another" * 1000,
    "dogs/c d.jpg": bytes(range(256)) * 20,
    "dogs/é.png": b"\x89PNG",
    "readme.txt": b"beside",
    ".hidden/x.jpg": b"x",
    "cats/.DS_Store": b"x",
}
IMAGES = sorted(name for name in FILES if "/" in name and ".hidden" not in name and "DS_Store" not in name)


def on_disk(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


@pytest.fixture(params=["disk", "zip", "deflated", "tar", "folder-in-zip", "bucket", "zip-in-bucket"])
def put(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[dict[str, bytes]], str]:
    """Puts files at a place of each kind; gives its location."""
    kind: str = request.param

    def put(files: dict[str, bytes]) -> str:
        top = on_disk(tmp_path / "files", files)
        if kind == "disk":
            return str(top)
        if kind == "tar":
            with tarfile.open(tmp_path / "photos.tar", "w") as tar:
                tar.add(top, ".")
            return str(tmp_path / "photos.tar")
        if kind == "bucket":
            url = request.getfixturevalue("s3_url") + "/photos"
            for name, data in files.items():
                open_store(url).put(name, data)
            return str(url)
        method = zipfile.ZIP_DEFLATED if kind == "deflated" else zipfile.ZIP_STORED
        below = "some/folder/" if kind == "folder-in-zip" else ""
        with zipfile.ZipFile(tmp_path / "photos.zip", "w", method) as archive:
            for name, data in files.items():
                archive.writestr(below + name, data)
        if kind == "zip-in-bucket":
            url = request.getfixturevalue("s3_url")
            open_store(url).put("photos.zip", (tmp_path / "photos.zip").read_bytes())
            return f"{url}/photos.zip"
        return str(tmp_path / "photos.zip") + (f"/{below[:-1]}" if below else "")

    return put


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELZOO_CACHE", str(tmp_path / "cache"))


def test_a_folder_is_the_same_everywhere(put: Callable[[dict[str, bytes]], str]) -> None:
    location = put(FILES)
    source = open_source(f"folder:{location}")
    assert [example.id for example in source.examples] == IMAGES
    assert source.classes == ("cats", "dogs")
    assert [source.read(index) for index in range(len(IMAGES))] == [FILES[name] for name in IMAGES]
    assert list(source.notes) == [  # type: ignore[attr-defined]
        "2 hidden files and folders ignored",
        "1 files beside the class folders ignored: readme.txt",
    ]
    again = open_source(source.location)
    assert again.examples == source.examples
    with ThreadPoolExecutor(8) as threads:
        read = list(threads.map(again.read, list(range(len(IMAGES))) * 20))
    assert read == [FILES[name] for name in IMAGES] * 20


def test_captions_are_the_same_everywhere(put: Callable[[dict[str, bytes]], str]) -> None:
    lines = [{"image": "images/a.jpg", "captions": ["a cat", "one cat"]}, {"image": "images/gone.jpg", "caption": "x"}]
    location = put(
        {
            "captions.txt": b"image,caption\na.jpg,a cat\na.jpg,one cat\ngone.jpg,nothing\n",
            "images/a.jpg": b"a cat",
            "images/without.jpg": b"no caption",
            "list.jsonl": "\n".join(json.dumps(line) for line in lines).encode(),
        }
    )
    flickr = open_source(f"flickr:{location}")
    [example] = flickr.examples
    assert (example.id, example.captions, flickr.read(0)) == ("a.jpg", ("a cat", "one cat"), b"a cat")
    assert {record.id for record in flickr.bad_records} == {"gone.jpg", "without.jpg"}
    listed = open_source(f"jsonl:{location}/list.jsonl")
    [example] = listed.examples
    assert (example.id, example.captions, listed.read(0)) == ("images/a.jpg", ("a cat", "one cat"), b"a cat")
    assert [record.id for record in listed.bad_records] == ["images/gone.jpg"]
    assert open_source(listed.location).examples == listed.examples


def test_what_is_not_there(put: Callable[[dict[str, bytes]], str]) -> None:
    location = put({"a/b.jpg": b"x"})
    tree = open_tree("folder", location)
    assert not tree.has("a/c.jpg")
    assert tree.has_folder("a")
    assert not tree.has_folder("b")
    with pytest.raises(UnreadableImage, match=r"cannot read image 'a/c.jpg'"):
        tree.read("a/c.jpg")
    with pytest.raises(NoData):
        tree.read_index("captions.txt")
    with pytest.raises(NoData, match="looked for a file list"):
        open_source(f"jsonl:{location}/list.jsonl")


def test_archives_that_are_damaged_or_want_out(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/good.jpg", b"good" * 100)
        archive.writestr("../out.jpg", b"x")
        archive.writestr("/absolute.jpg", b"x")
        link = zipfile.ZipInfo("a/link.jpg")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    source = open_source(f"folder:{path}")
    assert [example.id for example in source.examples] == ["a/good.jpg"]
    assert {record.id: record.reason for record in source.bad_records} == {
        "../out.jpg": "its name leads out of the archive",
        "/absolute.jpg": "its name leads out of the archive",
        "a/link.jpg": "it is a link",
    }
    data = bytearray(path.read_bytes())
    data[data.index(b"goodgood") + 7] ^= 1
    (tmp_path / "flipped.zip").write_bytes(data)
    with pytest.raises(UnreadableImage, match=r"'a/good.jpg': damaged: 400 bytes of 400, or another checksum"):
        open_source(f"folder:{tmp_path}/flipped.zip").read(0)
    (tmp_path / "cut.zip").write_bytes(path.read_bytes()[:-40])
    with pytest.raises(MalformedData, match=r"cut\.zip can't be read as an archive"):
        open_source(f"folder:{tmp_path}/cut.zip")
    with tarfile.open(tmp_path / "y.tar", "w") as tar:
        tar.add(on_disk(tmp_path / "tree", {"a/one.jpg": b"1" * 2000}), ".")
    (tmp_path / "cut.tar").write_bytes((tmp_path / "y.tar").read_bytes()[:2000])
    with pytest.raises(MalformedData, match=r"cut\.tar can't be read"):
        open_source(f"folder:{tmp_path}/cut.tar")
    with pytest.raises(NoData, match=r"x\.zip holds no files below nowhere/"):
        open_source(f"folder:{path}/nowhere")


def test_objects_are_fetched_once_and_again_when_replaced(s3_url: str, tmp_path: Path) -> None:
    store = open_store(s3_url)
    store.put("a/x.jpg", b"first")
    source = open_source(f"folder:{s3_url}")
    assert source.read(0) == b"first"
    kept = [path for path in (tmp_path / "cache" / "images").rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in kept] == [b"first"]
    kept[0].write_bytes(b"from the disk")
    assert source.read(0) == b"from the disk"
    store.put("a/x.jpg", b"second one")
    assert open_source(f"folder:{s3_url}").read(0) == b"second one"
    with pytest.raises(NoData, match="looked for objects below"):
        open_source(f"folder:{s3_url}/nothing")


def test_the_byte_cache_stays_below_its_cap(tmp_path: Path) -> None:
    cache = ByteCache(tmp_path, limit=10_000)
    for number in range(200):
        assert cache.get(f"key {number}", lambda: b"x" * 1000) == b"x" * 1000
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert 0 < len(kept) <= 10 + 64
    (tmp_path / "no").mkdir()
    blocked = ByteCache(tmp_path / "no" / "file", limit=0)
    (tmp_path / "no" / "file").write_bytes(b"in the way")
    assert blocked.get("key", lambda: b"still") == b"still"
