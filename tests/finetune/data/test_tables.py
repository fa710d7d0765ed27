"""csv: and coco:, jsonl: with several labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune.data.sources import open_source
from finetune.data.trees.tree import MalformedData, NoData


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())


def csv(root: Path, text: str) -> str:
    (root / "list.csv").write_text(text, encoding="utf-8")
    return f"csv:{root}/list.csv"


def test_a_table_of_labels(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "b/c, d.jpg")
    source = open_source(
        csv(
            tmp_path,
            'Filename,width,Class\r\na.jpg,10,"cats, small"\r\n"b/c, d.jpg",20,dog\ngone.jpg,1,x\na.jpg,1,dog\n',
        )
    )
    assert [(e.id, e.label, e.labels) for e in source.examples] == [
        ("a.jpg", "cats, small", ()),
        ("b/c, d.jpg", "dog", ()),
    ]
    assert source.read(1) == b"b/c, d.jpg"
    assert source.classes == ("cats, small", "dog")
    assert source.notes == ("columns ignored: width",)  # type: ignore[attr-defined]
    assert [(record.id, record.reason) for record in source.bad_records] == [
        ("gone.jpg", "line 4: the image is missing"),
        ("a.jpg", "line 5: label 'dog', but an earlier line has 'cats, small'"),
    ]


def test_a_table_of_several_labels_and_of_captions(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "b.jpg")
    several = open_source(csv(tmp_path, "image,labels\na.jpg,dog; cat\na.jpg,cat;bird\nb.jpg,\n"))
    assert [(e.id, e.labels) for e in several.examples] == [("a.jpg", ("dog", "cat", "bird")), ("b.jpg", ())]
    assert several.classes == ("bird", "cat", "dog")
    captions = open_source(csv(tmp_path, 'image,caption\na.jpg,"one, two"\na.jpg,three\nb.jpg,!\n'))
    assert [(e.id, e.captions) for e in captions.examples] == [("a.jpg", ("one, two", "three"))]
    assert [record.reason for record in captions.bad_records] == ["line 4: a caption is empty or has no word"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected a header with image and label"),
        ("a.jpg,cat\n", "expected a header"),
        ("image,weight\na.jpg,1\n", "expected a header"),
        ("image,label,class\na.jpg,x,y\n", "two columns mean label: 'label' and 'class'"),
        ("image;label\na.jpg;x\n", "expected a header"),
    ],
)
def test_tables_that_cannot_be_read(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(MalformedData, match=reason):
        open_source(csv(tmp_path, text))


def test_bad_lines_of_a_table_lose_only_themselves(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "b.jpg")
    source = open_source(csv(tmp_path, 'image,label\n"a.jpg,never closed\n../x,dog\na.jpg\nb.jpg,dog\na.jpg, \n'))
    assert [e.id for e in source.examples] == ["b.jpg"]
    assert [record.reason.partition(":")[0] for record in source.bad_records] == [
        "line 2", "line 3", "line 4", "line 6",
    ]  # fmt: skip


def annotations(root: Path, name: str, **lists: Any) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(lists))


IMAGES = [
    {"id": 9, "file_name": "b.jpg", "license": 3},
    {"id": 4, "file_name": "a.jpg"},
    {"id": 5, "file_name": "gone.jpg"},
    {"id": 6, "file_name": "c.jpg"},
]
CATEGORIES = [{"id": 18, "name": "dog", "supercategory": "animal"}, {"id": 1, "name": "person"}]


def test_coco_as_it_is_handed_round(tmp_path: Path) -> None:
    put(tmp_path, "val2017/a.jpg", "val2017/b.jpg", "val2017/c.jpg")
    annotations(
        tmp_path,
        "annotations/captions_val2017.json",
        images=IMAGES,
        annotations=[
            {"id": 1, "image_id": 4, "caption": "A dog.\n"},
            {"id": 2, "image_id": 4, "caption": "Some dog"},
            {"id": 3, "image_id": 9, "caption": " . "},
            {"id": 4, "image_id": 77, "caption": "who?"},
        ],
    )
    captions = open_source(f"coco:{tmp_path}/annotations/captions_val2017.json")
    assert [(e.id, e.captions) for e in captions.examples] == [("a.jpg", ("A dog.", "Some dog"))]
    assert captions.read(0) == b"val2017/a.jpg"
    assert captions.notes == ("2 images without a caption left out",)  # type: ignore[attr-defined]
    assert {record.id for record in captions.bad_records} == {
        "annotations/captions_val2017.json#2",
        "annotations/captions_val2017.json#3",
        "gone.jpg",
    }
    annotations(
        tmp_path,
        "annotations/instances_val2017.json",
        images=IMAGES,
        categories=CATEGORIES,
        annotations=[
            {"id": 1, "image_id": 4, "category_id": 18, "segmentation": [[1.0, 2.0]], "iscrowd": 0},
            {"id": 2, "image_id": 4, "category_id": 18},
            {"id": 3, "image_id": 4, "category_id": 1},
            {"id": 4, "image_id": 9, "category_id": 5},
        ],
    )
    instances = open_source(f"coco:{tmp_path}/annotations/instances_val2017.json")
    assert [(e.id, e.labels) for e in instances.examples] == [
        ("a.jpg", ("dog", "person")),
        ("b.jpg", ()),
        ("c.jpg", ()),
    ]
    assert instances.classes == ("dog", "person")
    assert "annotation 3: category 5 is not listed" in [record.reason for record in instances.bad_records]
    both = open_source(f"coco:{tmp_path}")
    assert [(e.id, len(e.captions), e.labels) for e in both.examples] == [
        ("a.jpg", 2, ("dog", "person")),
        ("b.jpg", 0, ()),
        ("c.jpg", 0, ()),
    ]
    for source in (captions, instances, both):
        assert open_source(source.location).examples == source.examples


def test_coco_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(NoData, match=r"looked for captions\*\.json"):
        open_source(f"coco:{tmp_path}")
    annotations(tmp_path, "captions_a.json", images=IMAGES, annotations=[])
    with pytest.raises(NoData, match=r"none of the photos .* such as b\.jpg; looked in images/a/, a/, images/, /"):
        open_source(f"coco:{tmp_path}")
    annotations(tmp_path, "captions_b.json", images=[], annotations=[])
    with pytest.raises(NoData, match="several annotation files"):
        open_source(f"coco:{tmp_path}")
    (tmp_path / "captions_b.json").write_text('{"images": [')
    with pytest.raises(MalformedData, match="is not JSON"):
        open_source(f"coco:{tmp_path}/captions_b.json")
    (tmp_path / "captions_b.json").write_text("[]")
    with pytest.raises(MalformedData, match="expected an object with lists"):
        open_source(f"coco:{tmp_path}/captions_b.json")


def test_json_lines_with_several_labels(tmp_path: Path) -> None:
    put(tmp_path, "a.jpg", "b.jpg")
    lines = [
        {"image": "a.jpg", "labels": ["x", "y", "x"]},
        {"image": "b.jpg", "labels": []},
        {"image": "b.jpg", "labels": "x"},
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = open_source(f"jsonl:{tmp_path}/list.jsonl")
    assert [(e.id, e.labels) for e in source.examples] == [("a.jpg", ("x", "y")), ("b.jpg", ())]
    assert source.classes == ("x", "y")
    assert [record.reason for record in source.bad_records] == ["line 3: \"labels\" must be a list of texts, got 'x'"]
