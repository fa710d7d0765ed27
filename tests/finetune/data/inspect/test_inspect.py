"""finetune data inspect: what is wrong with data is found, named and counted; on the page nothing is fetched."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from finetune.data.inspect.inspection import Inspection, inspect_source
from finetune.data.inspect.page import page
from finetune.data.inspect.shown import shown_rows
from finetune.data.inspect.text import text_lines
from finetune.data.sources import open_source


def picture(shade: int, kind: str = "JPEG", size: tuple[int, int] = (40, 30)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (shade % 256, shade // 256 % 256, 77)).save(out, kind)
    return out.getvalue()


def put(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def folder(root: Path, counts: dict[str, int]) -> str:
    shade = 0
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for n in range(count):
            put(root / name / f"{n:03d}.jpg", picture(shade))
            shade += 3
    return f"folder:{root}"


def inspected(location: str, **options: object) -> Inspection:
    return inspect_source(open_source(location), **options)  # type: ignore[arg-type]


def kinds(found: Inspection) -> dict[str, tuple[str, ...]]:
    assert found.labels is not None
    return {problem.kind: problem.classes for problem in found.labels.problems}


def test_sound_data_have_no_problems(tmp_path: Path) -> None:
    found = inspected(folder(tmp_path, {"cat": 30, "dog": 25}))
    assert list(found.problems()) == []
    value = json.loads(json.dumps(found.to_json()))
    assert value["num_examples"] == 55
    assert value["labels"]["classes"] == [{"name": "cat", "images": 30}, {"name": "dog", "images": 25}]
    assert (value["labels"]["order"], value["labels"]["natural_order"]) == ("lexicographic", None)
    assert value["images"]["formats"] == {"JPEG": 55}
    assert value["images"]["width"] == {"least": 40, "median": 40, "greatest": 40}
    assert value["images"]["bytes"] == sum(path.stat().st_size for path in tmp_path.rglob("*.jpg"))
    assert [each["rule"] for each in value["splits"]] == ["hash:0.8,0.1,0.1", "stratified:0.8,0.1,0.1"]
    assert sum(value["splits"][1]["examples"].values()) == 55
    assert value["captions"] is None


def test_classes_that_invite_mistakes(tmp_path: Path) -> None:
    names = ["Cat", "cat", "cafe\u0301", "caf\u00e9", "cafe", "ice cream", "ice_cream", "10", "9", "猫", "狗"]
    found = inspected(folder(tmp_path, dict.fromkeys(names, 20) | {"rare": 1, "many": 40, "empty": 0}))
    problems = kinds(found)
    assert problems["alike_case"] == ("Cat", "cat")
    assert problems["alike_unicode_form"] == ("cafe\u0301", "caf\u00e9")
    assert problems["alike_accents"] == ("cafe", "cafe\u0301", "caf\u00e9")
    assert problems["alike_spaces"] == ("ice cream", "ice_cream")
    assert problems["empty_class"] == ("empty",)
    assert problems["few_images"] == ("rare",)
    assert problems["uneven"] == ("many", "rare")
    assert "order" in problems
    assert not any("猫" in classes for kind, classes in problems.items() if kind.startswith("alike"))
    assert found.labels is not None
    assert list(found.labels.counts)[:3] == ["10", "9", "Cat"]
    assert found.labels.natural_order is not None
    assert found.labels.natural_order[:2] == ("9", "10")
    assert any("differ only in Unicode form: 'cafe\\u0301', 'caf\\xe9'" in line for line in found.problems())


def test_one_class(tmp_path: Path) -> None:
    assert "one_class" in kinds(inspected(folder(tmp_path, {"only": 25})))


def test_unreadable_images_copies_and_lying_names(tmp_path: Path) -> None:
    location = folder(tmp_path, {"cat": 25, "dog": 25})
    put(tmp_path / "cat" / "empty.jpg", b"")
    put(tmp_path / "cat" / "text.jpg", b"no picture")
    put(tmp_path / "cat" / "cut.jpg", picture(999, size=(400, 400))[:-600])
    put(tmp_path / "dog" / "really.jpg", picture(1001, "PNG"))
    put(tmp_path / "dog" / "copy.jpg", (tmp_path / "dog" / "000.jpg").read_bytes())
    put(tmp_path / "dog" / "of a cat.jpg", (tmp_path / "cat" / "003.jpg").read_bytes())
    found = inspected(location)
    assert found.images.unreadable_causes == {"empty": 1, "not_an_image": 1}
    assert {record.id for record in found.images.unreadable_examples} == {"cat/empty.jpg", "cat/text.jpg"}
    assert found.images.misnamed_examples == ("dog/really.jpg",)
    assert (found.images.copies, found.images.copies_of_other_label) == (2, 1)
    assert found.images.groups[0].ids == ("cat/003.jpg", "dog/of a cat.jpg")
    assert found.images.groups[0].labels == ("cat", "dog")
    lines = list(found.problems())
    assert any("cat/003.jpg, dog/of a cat.jpg are the same bytes, labelled cat and dog" in line for line in lines)
    decoded = inspected(location, decode=True)
    assert decoded.images.unreadable == 3
    assert any(record.id == "cat/cut.jpg" for record in decoded.images.unreadable_examples)


def test_copies_across_the_parts_of_a_split_are_counted(tmp_path: Path) -> None:
    location = folder(tmp_path, {"a": 30})
    put(tmp_path / "a" / "029.jpg", (tmp_path / "a" / "000.jpg").read_bytes())
    put(tmp_path / "a" / "001.jpg", (tmp_path / "a" / "000.jpg").read_bytes())
    found = inspected(location, rules=["ordered:20,10", "hash-content:0.5,0.5", "ordered:29,2", "nonsense:1"])
    assert [outcome.copies for outcome in found.splits] == [1, 0, 0, 0]
    assert [bool(outcome.error) for outcome in found.splits] == [False, False, True, True]
    assert found.splits[0].examples == {"train": 20, "validation": 10, "test": 0, "unused": 0}
    assert "asks for 31 examples, the data have n = 30" in str(found.splits[2].error)


def test_a_class_that_a_part_lacks_is_named(tmp_path: Path) -> None:
    found = inspected(folder(tmp_path, {"a": 20, "b": 20}), rules=["ordered:20,20"])
    assert found.splits[0].absent == {"train": ("b",), "validation": ("a",)}


def test_several_labels_an_image(tmp_path: Path) -> None:
    lines = [{"image": f"{n}.png", "labels": ["cat", "dog"][: n % 3]} for n in range(30)]
    for n in range(30):
        put(tmp_path / f"{n}.png", picture(n, "PNG"))
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = inspected(f"jsonl:{tmp_path}/x.jsonl")
    assert found.labels is not None
    assert found.labels.several
    assert found.labels.counts == {"cat": 20, "dog": 10}
    assert found.labels.per_image == {0: 10, 1: 10, 2: 10}
    assert set(kinds(found)) == {"few_images"}


def captions_file(root: Path, count: int) -> str:
    lines = ["image,caption"]
    for n in range(count):
        put(root / "images" / f"{n:02d}.jpg", picture(9 * n))
        lines += [f"{n:02d}.jpg,a dog number{n} runs", f"{n:02d}.jpg,a dog"]
    (root / "captions.txt").write_text("\n".join(lines) + "\n")
    return f"flickr:{root}"


def test_captions_and_how_much_of_them_a_vocabulary_covers(tmp_path: Path) -> None:
    found = inspected(captions_file(tmp_path, 20), rules=["ordered:15,5"])
    captions = found.captions
    assert captions is not None
    assert (captions.captions, captions.images, captions.distinct, captions.words) == (40, 20, 21, 120)
    assert captions.lengths == {2: 20, 4: 20}
    assert (captions.length(0.4), captions.length(0.95)) == (2, 4)
    by_count = {each.min_count: each for each in captions.vocabulary}
    assert list(by_count) == [1, 2, 3, 4, 5]
    assert (by_count[1].words, by_count[1].coverage) == (23, 1)
    assert (by_count[2].words, by_count[2].coverage) == (3, pytest.approx(100 / 120))
    assert by_count[1].held_out == pytest.approx(25 / 30)  # the words with numbers are in no training caption
    assert captions.scripts == {"Latin": 1}


def test_captions_in_several_languages(tmp_path: Path) -> None:
    put(tmp_path / "a.png", picture(1, "PNG"))
    put(tmp_path / "b.png", picture(2, "PNG"))
    lines = [
        {"image": "a.png", "captions": {"en": ["a dog", "one dog"], "hi": "एक कुत्ता"}},
        {"image": "b.png", "captions": {"en": "a cat"}},
    ]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    found = inspected(f"jsonl:{path}", rules=["ordered:1,1"])
    assert found.captions is not None
    assert [(each.code, each.images, each.captions) for each in found.captions.languages] == [
        ("en", 2, 3),
        ("hi", 1, 1),
    ]
    hindi = inspect_source(open_source(f"jsonl:{path}", language="hi"), rules=["ordered:1,1"]).captions
    assert hindi is not None
    assert hindi.scripts == {"Devanagari": 1}


def test_a_sample_looks_at_so_many_images_and_at_every_label(tmp_path: Path) -> None:
    location = folder(tmp_path, {"a": 40, "b": 40})
    read: set[int] = set()

    class Watched:
        def __init__(self) -> None:
            self._source = open_source(location)
            self.location, self.examples = self._source.location, self._source.examples
            self.bad_records, self.classes = self._source.bad_records, self._source.classes

        def read(self, index: int) -> bytes:
            read.add(index)
            return self._source.read(index)

    found = inspect_source(Watched(), sample=10)
    assert (found.images.looked_at, len(read)) == (10, 10)
    assert found.labels is not None
    assert found.labels.counts == {"a": 40, "b": 40}
    assert max(read) >= 40 > min(read)  # spread, not the first ten
    assert any("a sample of 10" in line for line in text_lines(found))


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_holds_all_and_asks_for_nothing(tmp_path: Path) -> None:
    evil = '<script src="//evil.example"><img src=x onerror=1>'.replace("/", "")
    location = folder(tmp_path, {evil: 20, "ok": 30})
    put(tmp_path / "ok" / "cut.jpg", b"\xff\xd8\xff")
    source = open_source(location)
    found = inspect_source(source)
    rows = shown_rows(source, found.images, count=6)
    assert [row.caption for row in rows] == [evil, "ok"] * 3
    text = page(found, rows)
    parsed = Page(text)
    images = [attrs["src"] or "" for tag, attrs in parsed.tags if tag == "img"]
    assert len(images) == 6
    assert all(source.startswith("data:image/jpeg;base64,") for source in images)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in parsed.tags}
    assert not re.search(r"(?:href|src)=\"(?!data:)", text)
    assert "default-src 'none'" in text
    assert "cut.jpg" in text
    assert "hash:0.8,0.1,0.1" in text


def test_an_image_damaged_behind_its_header_is_not_shown(tmp_path: Path) -> None:
    location = folder(tmp_path, {"a": 3})
    put(tmp_path / "a" / "cut.jpg", picture(999, size=(400, 400))[:-600])
    source = open_source(location)
    assert {row.name for row in shown_rows(source, inspect_source(source).images)} == {f"a/00{n}.jpg" for n in range(3)}


def test_the_text_says_it_all(tmp_path: Path) -> None:
    lines = "\n".join(text_lines(inspected(captions_file(tmp_path, 20), rules=["ordered:15,5"])))
    for part in (
        "20 examples",
        "problems: none",
        "images: all (headers read)",
        "captions: 40 of 20 images, 21 distinct",
        "words seen 2 times or more: 3, 83.3% of all; of validation by ordered:15,5: 83.3%",
        "ordered:15,5: train 15, validation 5",
    ):
        assert part in lines
