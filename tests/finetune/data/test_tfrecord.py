"""tfrecord: against files that TensorFlow itself wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from finetune.data.image_header import UnreadableImage
from finetune.data.record_file import framed
from finetune.data.sources import open_source
from finetune.data.splits import split_examples
from finetune.data.tfrecord import TfrecordSource
from finetune.data.trees.tree import MalformedData, NoData
from zoo.store import open_store


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODELZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def feature(value: Any) -> tf.train.Feature:
    values = value if isinstance(value, list) else [value]
    if isinstance(values[0], int):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
    texts = [v if isinstance(v, bytes) else v.encode() for v in values]
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=texts))


def example(**values: Any) -> bytes:
    features = {"image/" + key.replace("__", "/"): feature(value) for key, value in values.items()}
    return bytes(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())


def captioned(number: int, caption: str, image: bytes) -> bytes:
    """As im2txt's build_mscoco_data.py writes it."""
    words = ["<S>", *caption.split(), "</S>"]
    lists = {
        "image/caption": tf.train.FeatureList(feature=[feature(word) for word in words]),
        "image/caption_ids": tf.train.FeatureList(feature=[feature(place) for place in range(len(words))]),
    }
    context = tf.train.Features(feature={"image/image_id": feature(number), "image/data": feature(image)})
    record = tf.train.SequenceExample(context=context, feature_lists=tf.train.FeatureLists(feature_list=lists))
    return bytes(record.SerializeToString())


def write(path: Path, *records: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return path


def flowers(root: Path) -> Path:
    for number in range(2):
        write(
            root / f"flowers_train-0000{number}-of-00002.tfrecord",
            *(example(encoded=f"t{number}{n}".encode() * 99, class__label=n, format="jpg") for n in range(3)),
        )
    write(root / "flowers_validation-00000-of-00001.tfrecord", example(encoded=b"v", class__label=1))
    (root / "labels.txt").write_text("0:daisy\n1:roses\n2:sun flowers\n")
    return root


def test_slims_shards(tmp_path: Path) -> None:
    source = open_source(f"tfrecord:{flowers(tmp_path / 'data')}")
    assert len(source.examples) == 7
    assert source.classes == ("daisy", "roses", "sun flowers")
    first = source.examples[0]
    assert (first.id, first.label) == ("train/flowers_train-00000-of-00002.tfrecord#00000000", "daisy")
    assert source.read(0) == b"t00" * 99
    assert source.read(5) == b"t12" * 99
    assert source.read(6) == b"v"
    split = split_examples(source.examples, "source", seed=1)
    assert (len(split.train), len(split.validation)) == (6, 1)
    only = open_source(f"tfrecord:{tmp_path}/data/flowers_train-*")
    assert len(only.examples) == 6
    assert open_source(only.location).examples == only.examples
    assert len(open_source(f"tfrecord:{tmp_path}/data/flowers_train-00001-of-00002.tfrecord").examples) == 3


def test_im2txts_records_of_one_image_are_one_example(tmp_path: Path) -> None:
    write(tmp_path / "train-00000-of-00001", captioned(7, "a red cube .", b"seven"), captioned(3, "a dog", b"three"))
    write(tmp_path / "val-00000-of-00001", captioned(9, "nine", b"nine"), captioned(9, "a nine", b"nine"))
    source = open_source(f"tfrecord:{tmp_path}")
    assert [(e.id, e.captions) for e in source.examples] == [
        ("train/3", ("a dog",)),
        ("train/7", ("a red cube .",)),
        ("validation/9", ("nine", "a nine")),
    ]
    assert [source.read(index) for index in range(3)] == [b"three", b"seven", b"nine"]
    assert source.notes == ("1 records add a caption to an image of another",)  # type: ignore[attr-defined]


def test_names_texts_and_several_labels(tmp_path: Path) -> None:
    write(
        tmp_path / "a.tfrecord",
        example(encoded=b"1", filename="x/one.jpg", class__label=4, class__text="cat"),
        example(encoded=b"2", filename="two.jpg", class__label=[4, 5], class__text=["cat", "dog"]),
        example(encoded=b"3", filename="three.jpg", class__label=4, class__text="hound"),
        example(encoded=b"4", filename="two.jpg", class__label=4, class__text="cat"),
    )
    source = open_source(f"tfrecord:{tmp_path}/a.tfrecord")
    assert [(e.id, e.label, e.labels) for e in source.examples] == [
        ("two.jpg", None, ("cat", "dog")),
        ("x/one.jpg", "cat", ()),
    ]
    assert {record.id: record.reason for record in source.bad_records} == {
        "a.tfrecord#2": "label 4 is 'hound' here, but 'cat' in another record",
        "a.tfrecord#3": "a second record of image 'two.jpg'",
    }


def test_the_index_is_made_once_and_anew_when_a_shard_changes(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "a.tfrecord", example(encoded=b"1", filename="one"))
    before = open_source(f"tfrecord:{path}")
    [kept] = (cache / "tfrecord").iterdir()
    stamp = kept.stat().st_mtime_ns
    assert open_source(f"tfrecord:{path}").examples == before.examples
    assert kept.stat().st_mtime_ns == stamp
    write(path, example(encoded=b"1", filename="one"), example(encoded=b"2", filename="two"))
    assert [e.id for e in open_source(f"tfrecord:{path}").examples] == ["one", "two"]
    kept.write_bytes(b"damaged")
    assert [e.id for e in open_source(f"tfrecord:{path}").examples] == ["one", "two"]


def test_damaged_records_lose_only_what_they_must(tmp_path: Path) -> None:
    records = [example(encoded=bytes([n]) * 100, filename=str(n)) for n in range(4)]
    whole = write(tmp_path / "whole.tfrecord", *records).read_bytes()
    assert whole == b"".join(framed(record) for record in records)

    (tmp_path / "cut.tfrecord").write_bytes(whole[:-30])
    cut = open_source(f"tfrecord:{tmp_path}/cut.tfrecord")
    assert [e.id for e in cut.examples] == ["0", "1", "2"]
    [record] = cut.bad_records
    assert record.id == "cut.tfrecord#3"
    assert record.reason.startswith("cut short: a record of ")

    flipped = bytearray(whole)
    flipped[whole.index(b"\x01" * 100) + 5] ^= 1
    (tmp_path / "flipped.tfrecord").write_bytes(flipped)
    source = open_source(f"tfrecord:{tmp_path}/flipped.tfrecord")
    assert [e.id for e in source.examples] == ["0", "2", "3"]
    assert [record.id for record in source.bad_records] == ["flipped.tfrecord#1"]

    flipped = bytearray(whole)
    flipped[len(framed(records[0])) + 2] ^= 1  # the length of record 1
    (tmp_path / "lost.tfrecord").write_bytes(flipped)
    source = open_source(f"tfrecord:{tmp_path}/lost.tfrecord")
    assert [e.id for e in source.examples] == ["0"]
    assert source.bad_records[0].reason.endswith("; what follows is lost")

    (tmp_path / "other.tfrecord").write_bytes(framed(b"not a record") + framed(example(format="jpg")))
    reasons = [record.reason for record in open_source(f"tfrecord:{tmp_path}/other.tfrecord").bad_records]
    assert reasons[0] in ("neither a tf.Example nor a tf.SequenceExample",) or "no image under" in reasons[0]
    assert reasons[1] == "no image under image/encoded or image/data; its keys are image/format"


def test_a_shard_that_changes_meanwhile_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tfrecord", example(encoded=b"1" * 500, filename="one"))
    source = TfrecordSource.open(str(path))
    with path.open("r+b") as file:
        file.truncate(200)
    with pytest.raises(UnreadableImage, match=r"cannot read image 'one': .*a\.tfrecord: cut short"):
        source.read(0)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(NoData, match="does not exist"):
        open_source(f"tfrecord:{tmp_path}/nowhere/x")
    (tmp_path / "empty").mkdir()
    with pytest.raises(NoData, match=r"looked for NAME-00000-of-00010 and \*\.tfrecord in .*; it has no files"):
        open_source(f"tfrecord:{tmp_path}/empty")
    write(tmp_path / "train-00001-of-00003", example(encoded=b"1"))
    with pytest.raises(NoData, match="2 of 3 shards of 'train' are missing: train-00000-of-00003"):
        open_source(f"tfrecord:{tmp_path}")
    (tmp_path / "labels.txt").write_text("daisy\n")
    with pytest.raises(MalformedData, match=r"labels\.txt, line 1: expected NUMBER:NAME"):
        open_source(f"tfrecord:{tmp_path}/train-00001-of-00003")


def test_shards_in_a_bucket(s3_url: str, tmp_path: Path, cache: Path) -> None:
    store = open_store(f"{s3_url}/flowers")
    for path in flowers(tmp_path / "data").iterdir():
        store.put(path.name, path.read_bytes())
    source = open_source(f"tfrecord:{s3_url}/flowers")
    assert [source.read(index) for index in (0, 5, 6)] == [b"t00" * 99, b"t12" * 99, b"v"]
    assert len([path for path in (cache / "images").rglob("*") if path.is_file()]) == 3
    assert source.classes == ("daisy", "roses", "sun flowers")
