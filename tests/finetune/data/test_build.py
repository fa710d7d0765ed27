"""finetune data build: the same examples and bytes come back, to us and to TensorFlow, whatever happened meanwhile."""

from __future__ import annotations

import io
import json
import multiprocessing
import signal
import subprocess
import sys
import time
from pathlib import Path

import google_crc32c
import pytest
import tensorflow as tf
from PIL import Image

from finetune.data.build import FolderInUse, OtherShards, build_shards
from finetune.data.image_header import check_image
from finetune.data.record_write import record_of
from finetune.data.source import Example
from finetune.data.sources import open_source
from finetune.data.splits import split_examples
from finetune.training.bad_records import TooManyBadRecords
from zoo.errors import Internal, InvalidArgument
from zoo.store import open_store


def picture(shade: int, kind: str = "JPEG", size: tuple[int, int] = (9, 7)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (shade % 256, shade // 256, 90)).save(out, kind)
    return out.getvalue()


def photos(root: Path, count: int = 40) -> Path:
    for n in range(count):
        path = root / f"class {'äbc'[n % 3]}" / f"{n:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(n, ("JPEG", "PNG", "GIF", "BMP", "WEBP")[n % 5]))
    return root


def shard_bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def test_the_same_examples_and_bytes_come_back(tmp_path: Path) -> None:
    source = open_source(f"folder:{photos(tmp_path / 'photos')}")
    told: list[tuple[int, int]] = []
    build = build_shards(
        source.location, tmp_path / "out", shards=3, workers=2, on_progress=lambda *at: told.append(at)
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name[0] != ".") == [
        *(f"all-0000{n}-of-00003" for n in range(3)),
        "index.json",
        "labels.txt",
    ]
    back = open_source(f"tfrecord:{tmp_path / 'out'}")
    assert back.examples == source.examples
    assert back.classes == source.classes
    assert [back.read(index) for index in range(40)] == [source.read(index) for index in range(40)]
    assert (build.made, build.kept, build.num_examples) == (3, 0, {"all": 40})
    assert (told[0], told[-1]) == ((0, 40), (40, 40))
    index = json.loads((tmp_path / "out" / "index.json").read_bytes())
    assert index["complete"] is True
    for entry in index["shards"]:
        data = (tmp_path / "out" / entry["name"]).read_bytes()
        assert (len(data), f"{google_crc32c.value(data):08x}") == (entry["bytes"], entry["crc32c"])
    # Shuffled: no shard holds its examples in the source's order.
    labels = [
        tf.train.Example.FromString(record.numpy()).features.feature["image/class/label"].int64_list.value[0]
        for record in tf.data.TFRecordDataset(str(tmp_path / "out" / "all-00000-of-00003"))
    ]
    assert labels != sorted(labels)


def test_tensorflow_reads_what_slim_would(tmp_path: Path) -> None:
    source = open_source(f"folder:{photos(tmp_path / 'photos', 10)}")
    build_shards(source.location, tmp_path / "out", shards=2, workers=1, rule="ordered:6,3")
    names = {"train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001"}
    assert names <= {path.name for path in (tmp_path / "out").iterdir()}
    seen = {}
    for record in tf.data.TFRecordDataset([str(tmp_path / "out" / name) for name in sorted(names)]):
        parsed = tf.io.parse_single_example(
            record,
            {
                "image/encoded": tf.io.FixedLenFeature((), tf.string),
                "image/format": tf.io.FixedLenFeature((), tf.string),
                "image/class/label": tf.io.FixedLenFeature((), tf.int64),
                "image/class/text": tf.io.FixedLenFeature((), tf.string),
                "image/height": tf.io.FixedLenFeature((), tf.int64),
                "image/width": tf.io.FixedLenFeature((), tf.int64),
                "image/filename": tf.io.FixedLenFeature((), tf.string),
            },
        )
        assert (int(parsed["image/height"]), int(parsed["image/width"])) == (7, 9)
        label, text = int(parsed["image/class/label"]), parsed["image/class/text"].numpy().decode()
        assert source.classes is not None
        assert source.classes[label] == text
        seen[parsed["image/filename"].numpy().decode()] = parsed["image/encoded"].numpy()
    assert seen == {source.examples[index].id: source.read(index) for index in range(9)}
    assert (tmp_path / "out" / "labels.txt").read_text() == "0:class b\n1:class c\n2:class ä\n"
    back = open_source(f"tfrecord:{tmp_path / 'out'}")
    split = split_examples(back.examples, "source", seed=1)
    assert (len(split.train), len(split.validation)) == (6, 3)
    assert back.examples[0].id == f"train/{source.examples[0].id}"


def test_a_record_is_what_tensorflow_writes() -> None:
    image = picture(3)
    example = Example(id="é/x", labels=("b", "a"), captions=("Ein  Hund. ", "犬" * 200))
    data = record_of(example, image, check_image(image, 100), name="é/x", numbers={"a": 0, "b": 70_000}, several=True)
    parsed = tf.train.Example.FromString(data)
    assert parsed.SerializeToString(deterministic=True) == data
    feature = parsed.features.feature
    assert list(feature["image/class/label"].int64_list.value) == [70_000, 0]
    assert [value.decode() for value in feature["image/caption"].bytes_list.value] == list(example.captions)
    assert feature["image/encoded"].bytes_list.value[0] == image


def test_captions_and_several_labels_come_back(tmp_path: Path) -> None:
    lines = [
        {"image": "a.png", "labels": ["cat", "dog"]},
        {"image": "b.png", "labels": ["cat"], "captions": ["a  cat , sitting", "Eine Katze\u2028ruht"]},
        {"image": "c.png", "labels": []},
    ]
    (tmp_path / "photos.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for number, line in enumerate(lines):
        (tmp_path / str(line["image"])).write_bytes(picture(number, "PNG"))
    source = open_source(f"jsonl:{tmp_path}/photos.jsonl")
    build_shards(source.location, tmp_path / "out")
    back = open_source(f"tfrecord:{tmp_path}/out")
    assert back.examples == source.examples
    assert [(e.label, e.labels) for e in back.examples] == [(None, ("cat", "dog")), (None, ("cat",)), (None, ())]


def test_scenes_keep_their_own_split_and_ids(tmp_path: Path) -> None:
    source = open_source("scenes:count=30,size=32")
    build_shards(source.location, tmp_path / "out", rule="source", shards=2)
    back = open_source(f"tfrecord:{tmp_path}/out")
    assert back.examples == source.examples
    assert back.read(4) == source.read(4)


def test_bytes_depend_on_nothing_but_the_data_and_the_seed(tmp_path: Path) -> None:
    location = f"folder:{photos(tmp_path / 'photos')}"
    for name, workers in (("one", 1), ("three", 3)):
        build_shards(location, tmp_path / name, shards=4, workers=workers, rule="hash:0.7,0.3", seed=5)
    assert shard_bytes(tmp_path / "one") == shard_bytes(tmp_path / "three")
    build_shards(location, tmp_path / "other", shards=4, rule="hash:0.7,0.3", seed=6)
    name = "train-00000-of-00004"
    assert (tmp_path / "other" / name).read_bytes() != (tmp_path / "one" / name).read_bytes()


def test_finished_shards_are_kept_and_others_made(tmp_path: Path) -> None:
    location, out = f"folder:{photos(tmp_path / 'photos')}", tmp_path / "out"
    build_shards(location, out, shards=4, workers=1)
    before = shard_bytes(out)
    stamp = (out / "all-00000-of-00004").stat().st_mtime_ns
    assert build_shards(location, out, shards=4).made == 0
    (out / "all-00001-of-00004").unlink()
    damaged = bytearray(before["all-00002-of-00004"])
    damaged[100] ^= 1
    (out / "all-00002-of-00004").write_bytes(damaged)
    (out / ".tmp-left").write_bytes(b"half")
    build = build_shards(location, out, shards=4)
    assert (build.made, build.kept) == (2, 2)
    assert shard_bytes(out) == before
    assert (out / "all-00000-of-00004").stat().st_mtime_ns == stamp
    assert not (out / ".tmp-left").exists()
    (out / "index.json").write_text("{")  # damaged: everything is made again
    assert build_shards(location, out, shards=4).made == 4
    assert shard_bytes(out) == before
    (tmp_path / "photos" / "class b" / "new.jpg").write_bytes(picture(99))
    assert build_shards(location, out, shards=4).made == 4
    assert len(open_source(f"tfrecord:{out}").examples) == 41


def test_shards_of_another_build_are_not_mixed_in(tmp_path: Path) -> None:
    location, out = f"folder:{photos(tmp_path / 'photos')}", tmp_path / "out"
    build_shards(location, out, shards=4, workers=1)
    with pytest.raises(OtherShards, match="holds 4 shards that are not of this build, such as all-00000-of-00004"):
        build_shards(location, out, shards=2)
    assert len(build_shards(location, out, shards=2, workers=1, again=True).shards) == 2
    assert len(open_source(f"tfrecord:{out}").examples) == 40
    (out / "mine-00000-of-00001").write_bytes(b"")
    with pytest.raises(OtherShards, match="such as mine-00000-of-00001"):
        build_shards(location, out, shards=2, again=True)


def test_a_bad_image_is_left_out_listed_and_counted(tmp_path: Path) -> None:
    root, out = photos(tmp_path / "photos"), tmp_path / "out"
    (root / "class b" / "001.jpg").write_bytes(b"")
    with pytest.raises(TooManyBadRecords, match=r"1 of 40 records .* \(2\.5%; .* allows 1\.0%\): class b/001\.jpg: "):
        build_shards(f"folder:{root}", out, shards=2, workers=1)
    build = build_shards(f"folder:{root}", out, shards=2, workers=1, max_bad_share=0.03)
    assert [record.id for record in build.bad_records] == ["class b/001.jpg"]
    assert build.num_examples == {"all": 39}
    assert len(open_source(f"tfrecord:{out}").examples) == 39
    (root / "class b" / "001.jpg").write_bytes(picture(1))
    mended = build_shards(f"folder:{root}", out, shards=2, workers=1)
    assert (mended.made, mended.bad_records, mended.num_examples) == (1, (), {"all": 40})


def test_wrong_numbers(tmp_path: Path) -> None:
    location = f"folder:{photos(tmp_path / 'photos', 5)}"
    with pytest.raises(InvalidArgument, match="--shards 6: from 1 to 5, for n = 5"):
        build_shards(location, tmp_path / "out", shards=6)
    with pytest.raises(InvalidArgument, match="--workers 0"):
        build_shards(location, tmp_path / "out", workers=0)


def test_class_names_that_no_line_holds(tmp_path: Path) -> None:
    for n, name in enumerate(("two\nlines", " space")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "x.png").write_bytes(picture(n, "PNG"))
    source = open_source(f"folder:{tmp_path}/photos")
    build = build_shards(source.location, tmp_path / "out")
    assert "no labels.txt" in build.notes[0]
    assert open_source(f"tfrecord:{tmp_path}/out").examples == source.examples


def test_killed_in_the_midst_and_started_again(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for n in range(600):
        path = root / "abc"[n % 3] / f"{n:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(n, "BMP", (80, 80)))
    location, out = f"folder:{root}", tmp_path / "out"
    code = (
        "import pathlib\nfrom finetune.data.build import build_shards\nif __name__ == '__main__':\n"
        f"    build_shards({location!r}, pathlib.Path({str(out)!r}), shards=60, workers=2)\n"
    )
    script = tmp_path / "build.py"
    script.write_text(code)
    said = tmp_path / "stderr"
    with said.open("wb") as file:
        process = subprocess.Popen([sys.executable, script], stderr=file)
    deadline = time.monotonic() + 60
    while len(list(out.glob("all-*"))) < 5:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGSTOP)  # so that it is there still
    with pytest.raises(FolderInUse, match="another process builds in"):
        build_shards(location, out, shards=60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = build_shards(location, out, shards=60, workers=2)
    assert again.made > 0
    assert again.kept > 0
    build_shards(location, tmp_path / "whole", shards=60, workers=2)
    assert shard_bytes(out) == shard_bytes(tmp_path / "whole")
    assert not list(out.glob(".tmp-*"))
    assert said.read_text() == ""  # its processes noticed, and had nothing to say


def test_a_process_that_dies_is_named_and_the_rest_kept(tmp_path: Path) -> None:
    location, out = f"folder:{photos(tmp_path / 'photos', 200)}", tmp_path / "out"

    def kill_one(done: int, total: int) -> None:
        if done > 20 and (children := multiprocessing.active_children()):
            children[0].kill()

    with pytest.raises(Internal, match=r"the process for all-000\d\d-of-00050 ended with -9 and no word"):
        build_shards(location, out, shards=50, workers=2, on_progress=kill_one)
    assert not multiprocessing.active_children()
    assert build_shards(location, out, shards=50).kept > 0
    assert len(open_source(f"tfrecord:{out}").examples) == 200


def test_from_a_bucket(s3_url: str, tmp_path: Path) -> None:
    store = open_store(f"{s3_url}/photos")
    for path in photos(tmp_path / "photos", 20).rglob("*.jpg"):
        store.put(path.relative_to(tmp_path / "photos").as_posix(), path.read_bytes())
    build_shards(f"folder:{s3_url}/photos", tmp_path / "far", shards=2, workers=2)
    local = open_source(f"folder:{tmp_path}/photos")
    back = open_source(f"tfrecord:{tmp_path}/far")
    assert back.examples == local.examples
    assert [back.read(index) for index in range(20)] == [local.read(index) for index in range(20)]
