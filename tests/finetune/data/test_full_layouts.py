"""COCO, Flickr8k and Flickr30k as their authors hand them round, cut to a few photos: file names, fields, known faults.

docs/captioner.md has the commands for the whole of them.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune.data.build import build_shards
from finetune.data.sources import open_source
from finetune.data.split_karpathy import InvalidKarpathySplit
from finetune.data.splits import InvalidSplit, SplitChanged, split_examples
from finetune.data.trees.tree import NoData
from finetune.models.heads.captioner import CAPTIONER, CaptionerArguments

WORDS = [
    "a",
    "man",
    "in",
    "black",
    "shirt",
    "plays",
    "with",
    "his",
    "brown",
    "dog",
    "on",
    "wet",
    "grass",
    "red",
    "boat",
]


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 30, 3), np.uint8)
    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "JPEG")
    return written.getvalue()


def sentences(seed: int) -> list[str]:
    chance = np.random.default_rng(seed)
    return [" ".join(chance.choice(WORDS, 7)).capitalize() + " ." for _ in range(5)]


def put(path: Path, data: bytes | str | object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(data, bytes):
        path.write_bytes(data)
    else:
        path.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")


def coco_images(year: int, part: str, numbers: list[int]) -> list[dict[str, Any]]:
    prefix = f"COCO_{part}{year}_" if year == 2014 else ""
    return [
        {
            "license": 3,
            "file_name": f"{prefix}{number:012}.jpg",
            "coco_url": f"http://images.cocodataset.org/{part}{year}/{prefix}{number:012}.jpg",
            "height": 20,
            "width": 30,
            "date_captured": "2013-11-14 11:18:45",
            "flickr_url": f"http://farm9.staticflickr.com/8186/{number}_z.jpg",
            "id": number,
        }
        for number in numbers
    ]


def coco(root: Path, year: int, parts: dict[str, list[int]]) -> None:
    """annotations_trainval*.zip and the zips of photos, unpacked into one folder."""
    for part, numbers in parts.items():
        images = coco_images(year, part, numbers)
        about = {
            "info": {"description": f"COCO {year} Dataset", "version": "1.0", "year": year},
            "licenses": [
                {"url": "http://creativecommons.org/licenses/by/2.0/", "id": 3, "name": "Attribution License"}
            ],
            "images": images,
        }
        captions = [
            {"image_id": number, "id": 10 * number + place, "caption": caption}
            for number in numbers
            for place, caption in enumerate(sentences(number))
        ]
        put(root / "annotations" / f"captions_{part}{year}.json", {**about, "annotations": captions})
        box = {"segmentation": [[1.0, 2.0, 3.0]], "area": 9.5, "iscrowd": 0, "bbox": [1, 2, 3, 4], "category_id": 18}
        instances = [{**box, "image_id": number, "id": number} for number in numbers]
        categories = [{"supercategory": "animal", "id": 18, "name": "dog"}]
        for what in ("instances", "person_keypoints"):
            value = {**about, "annotations": instances, "categories": categories}
            put(root / "annotations" / f"{what}_{part}{year}.json", value)
        for image in images:
            put(root / f"{part}{year}" / image["file_name"], picture(image["id"]))


def test_coco_2017_in_shards(tmp_path: Path) -> None:
    coco(tmp_path / "coco", 2017, {"train": [9, 25, 30, 34, 36, 42, 49, 61], "val": [139, 285, 632]})
    location = f"coco:{tmp_path}/coco/annotations/captions_*2017.json"
    source = open_source(location)
    assert [e.id for e in source.examples][-3:] == [f"val2017/{number:012}.jpg" for number in (139, 285, 632)]
    assert source.image_ids["val2017/000000000285.jpg"] == 285  # type: ignore[attr-defined]
    assert source.classes is None  # neither instances nor keypoints are read
    assert open_source(source.location).examples == source.examples
    place = [e.id for e in source.examples].index("val2017/000000000285.jpg")
    assert source.read(place) == picture(285)
    split = split_examples(source.examples, "source", seed=1)
    assert (len(split.train), len(split.validation)) == (8, 3)

    built = build_shards(location, tmp_path / "shards", rule="source", shards=2, workers=1)
    assert built.num_examples == {"train": 8, "validation": 3}
    shards = open_source(f"tfrecord:{tmp_path}/shards")
    again = split_examples(shards.examples, "source", seed=1)
    assert (len(again.train), len(again.validation)) == (8, 3)
    by_number = {int(Path(e.id).stem): e.captions for e in shards.examples}
    assert by_number[285] == tuple(sentences(285))
    learnt = CAPTIONER.learn_assets([shards.examples[i] for i in again.train], CaptionerArguments(min_count=4))
    assert learnt.vocabulary_size is not None
    assert learnt.vocabulary_size > 10


def karpathy(dataset: str, images: list[dict[str, Any]]) -> dict[str, Any]:
    for number, image in enumerate(images):
        texts = sentences(number)
        image["imgid"] = number
        image["sentids"] = [5 * number + place for place in range(5)]
        image["sentences"] = [
            {"tokens": text.lower().split()[:-1], "raw": text, "imgid": number, "sentid": 5 * number + place}
            for place, text in enumerate(texts)
        ]
    return {"images": images, "dataset": dataset}


def test_coco_2014_by_karpathys_split(tmp_path: Path) -> None:
    coco(tmp_path / "coco", 2014, {"train": [57870, 384029], "val": [391895, 522418, 184613, 318219]})
    images = [
        {"filepath": f"{part}2014", "filename": f"COCO_{part}2014_{number:012}.jpg", "split": split, "cocoid": number}
        for part, number, split in (
            ("val", 391895, "test"),
            ("val", 522418, "restval"),
            ("val", 184613, "val"),
            ("val", 318219, "test"),
            ("train", 57870, "train"),
            ("train", 384029, "train"),
        )
    ]
    file = tmp_path / "dataset_coco.json"
    put(file, karpathy("coco", images))
    source = open_source(f"coco:{tmp_path}/coco/annotations/captions_*2014.json")
    split = split_examples(source.examples, f"file:{file}", seed=1)

    def numbers(part: Any) -> list[int]:
        return sorted(source.image_ids[source.examples[i].id] for i in part)  # type: ignore[attr-defined]

    assert numbers(split.train) == [57870, 384029, 522418]
    assert numbers(split.validation) == [184613]
    assert numbers(split.test) == [318219, 391895]

    images[0]["filename"] = "COCO_val2014_000000000001.jpg"
    put(file, karpathy("coco", images))
    with pytest.raises(SplitChanged, match="COCO_val2014_000000000001"):
        split_examples(source.examples, f"file:{file}", seed=1)
    images[0]["split"] = "minival"
    put(file, karpathy("coco", images))
    with pytest.raises(InvalidKarpathySplit, match="image 0"):
        split_examples(source.examples, f"file:{file}", seed=1)
    put(file, {"images": [], "dataset": "coco"})
    with pytest.raises(InvalidSplit, match="'train' lists no ids"):
        split_examples(source.examples, f"file:{file}", seed=1)


def test_several_sets_of_coco_are_named_by_a_pattern(tmp_path: Path) -> None:
    coco(tmp_path, 2017, {"train": [9], "val": [139]})
    with pytest.raises(NoData, match="several annotation files") as caught:
        open_source(f"coco:{tmp_path}")
    assert "with a * in it" in str(caught.value.hint)
    with pytest.raises(NoData, match="no file like annotations/labels_"):
        open_source(f"coco:{tmp_path}/annotations/labels_*.json")
    with pytest.raises(NoData, match=r"person_keypoints_train2017\.json isn't named"):
        open_source(f"coco:{tmp_path}/annotations/*2017.json")
    (tmp_path / "val2017" / "000000000139.jpg").unlink()
    with pytest.raises(NoData, match="none of the photos of annotations/captions_val2017"):
        open_source(f"coco:{tmp_path}/annotations/captions_*.json")


NAMES = [
    "1000268201_693b08cb0e.jpg",
    "1001773457_577c3a7d70.jpg",
    "1002674143_1b742ab4b8.jpg",
    "103631543_558d5dda8c.jpg",
]


def token_lines(names: list[str]) -> str:
    return "".join(f"{n}#{i}\t{c}\n" for s, n in enumerate(names) for i, c in enumerate(sentences(s)))


def test_flickr8k_as_its_authors_have_it(tmp_path: Path) -> None:
    # Flickr8k_text.zip and Flickr8k_Dataset.zip; five captions are of a photo with a name that no photo has.
    put(tmp_path / "Flickr8k.token.txt", token_lines([*NAMES, "2258277193_586949ec62.jpg.1"]))
    put(tmp_path / "readme.txt", "If you use this corpus / data:")
    for seed, name in enumerate(NAMES):
        put(tmp_path / "Flicker8k_Dataset" / name, picture(seed))
    source = open_source(f"flickr:{tmp_path}")
    assert [(e.id, len(e.captions)) for e in source.examples] == [(name, 5) for name in NAMES]
    assert [record.id for record in source.bad_records] == ["2258277193_586949ec62.jpg.1"]
    images = [{"filename": n, "split": s} for n, s in zip(NAMES, ["train", "train", "val", "test"], strict=True)]
    put(tmp_path / "dataset_flickr8k.json", karpathy("flickr8k", images))
    split = split_examples(source.examples, f"file:{tmp_path}/dataset_flickr8k.json", seed=1)
    assert (split.train, split.validation, split.test) == ([0, 1], [2], [3])


def test_flickr30k_as_its_authors_have_it(tmp_path: Path) -> None:
    put(tmp_path / "results_20130124.token", token_lines(NAMES))
    for seed, name in enumerate(NAMES):
        put(tmp_path / "flickr30k-images" / name, picture(seed))
    source = open_source(f"flickr:{tmp_path}")
    assert [(e.id, e.captions) for e in source.examples] == [
        (name, tuple(sentences(seed))) for seed, name in enumerate(NAMES)
    ]
    assert source.bad_records == ()


def test_flickr30k_as_kaggle_has_it(tmp_path: Path) -> None:
    lines = ["image_name| comment_number| comment"]
    lines += [f"{n}| {i}| {c}" for s, n in enumerate(NAMES) for i, c in enumerate(sentences(s))]
    lines[15] = lines[15].replace("| 4| ", "| 4   ")  # 2199200615.jpg's fifth caption has lost its bar there
    put(tmp_path / "results.csv", "\n".join(lines) + "\n")
    for seed, name in enumerate(NAMES):
        put(tmp_path / "flickr30k_images" / name, picture(seed))
    source = open_source(f"flickr:{tmp_path}")
    assert [len(e.captions) for e in source.examples] == [5, 5, 4, 5]
    assert source.examples[0].captions == tuple(sentences(0))
    assert [record.id for record in source.bad_records] == ["results.csv:16"]
