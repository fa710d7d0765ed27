"""`finetune score`: results in COCO's format against references, and everything that doesn't pair."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from finetune.data.sources import open_source
from finetune.metrics.results_file import InvalidResults, NoResults, read_results, result_ids, write_results
from finetune.score import NoReferences, score_results
from finetune.spec import InvalidSpec
from zoo.errors import InvalidArgument

CAPTIONS = [
    ["a brown dog runs over wet grass", "the dog is running"],
    ["two children play with a red ball", "kids and a ball"],
    ["a man climbs a steep rock", "somebody on a cliff"],
    ["a white horse by the sea", "a horse on the beach"],
    ["people eat at a long table", "a dinner with friends"],
    ["snow falls on the mountains", "mountains in winter"],
]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """In the layout that flickr: reads; split ordered:2,2,2 leaves the last two for the test."""
    root = tmp_path / "photos"
    (root / "images").mkdir(parents=True)
    lines = ["image,caption"]
    for place, captions in enumerate(CAPTIONS):
        Image.new("RGB", (8, 8)).save(root / "images" / f"{place}.jpg")
        lines += [f"{place}.jpg,{caption}" for caption in captions]
    (root / "captions.txt").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """COCO's own layout and names; image 30 has no caption file entry of the usual kind: only an instance."""
    root = tmp_path / "coco"
    (root / "val2017").mkdir(parents=True)
    (root / "annotations").mkdir()
    images, annotations = [], []
    for place, captions in enumerate(CAPTIONS):
        number = 100 + 7 * place
        Image.new("RGB", (8, 8)).save(root / "val2017" / f"{number:012}.jpg")
        images.append({"id": number, "file_name": f"{number:012}.jpg", "height": 8, "width": 8, "license": 4})
        annotations += [{"id": 10 * number + i, "image_id": number, "caption": c} for i, c in enumerate(captions)]
    value = {"info": {"year": 2017}, "licenses": [], "images": images, "annotations": annotations}
    (root / "annotations" / "captions_val2017.json").write_text(json.dumps(value))
    return root


def results(folder: Path, captions: dict[Any, str], name: str = "results.json") -> Path:
    write_results(folder / name, list(captions), list(captions.values()))
    return folder / name


def score(file: Path, photos: Path, **options: Any) -> dict[str, Any]:
    given = {"location": f"flickr:{photos}", "split": "test", "settings": ["data.split=ordered:2,2,2"]}
    return score_results(file, **(given | options))


def test_a_results_file_is_scored_against_its_split(tmp_path: Path, photos: Path) -> None:
    file = results(tmp_path, {"5.jpg": "Snow falls on the mountains!", "4.jpg": "people eat at a table"})
    found = score(file, photos)
    assert (found["num_examples"], found["missing"], found["unknown"], found["without_references"]) == (2, 0, 0, 0)
    assert found["warnings"] == []
    metrics = found["metrics"]
    assert metrics["exact_captions"] == 0.5
    assert metrics["bleu_1"] > 0.9
    assert 0 < metrics["cider"] < 10
    assert metrics["novel_captions"] == 1
    assert set(metrics) >= {"bleu_4", "rouge_l", "distinct_captions", "repeating_captions", "words_per_caption"}


def test_cocos_ids_are_its_numbers(tmp_path: Path, coco: Path) -> None:
    location = f"coco:{coco}/annotations/captions_val2017.json"
    ids = result_ids(open_source(location))
    assert list(ids.items())[:2] == [("000000000100.jpg", 100), ("000000000107.jpg", 107)]
    said = {100 + 7 * place: captions[0] for place, captions in enumerate(CAPTIONS)}
    found = score_results(results(tmp_path, said), location=location, split="all")
    assert found["num_examples"] == 6
    assert found["metrics"]["exact_captions"] == 1
    assert found["metrics"]["bleu_4"] == pytest.approx(1, abs=1e-6)
    assert "novel_captions" not in found["metrics"]  # there is no training split beside it


def test_what_is_missing_or_unknown_is_said_and_left_out(tmp_path: Path, photos: Path) -> None:
    file = results(tmp_path, {"4.jpg": "people eat", "nowhere.jpg": "a dog", "0.jpg": "a dog of the training split"})
    found = score(file, photos)
    assert (found["num_examples"], found["missing"], found["unknown"]) == (1, 1, 2)
    said = "\n".join(found["warnings"])
    assert "1 of 2 images of the test split have no caption in the file, and no figure counts them: 5.jpg" in said
    assert "2 captions are of images that the split doesn't have: nowhere.jpg, 0.jpg" in said
    assert "cider is 0 for a single image" in said
    with pytest.raises(NoReferences, match=r"none of the 1 captions.*first id is 7, the data's '4\.jpg'"):
        score(results(tmp_path, {7: "a dog"}), photos)


def test_images_without_references_are_said_and_left_out(tmp_path: Path) -> None:
    lines = [{"image": "a.png", "captions": ["a red wall"]}, {"image": "b.png", "label": "wall"}]
    for line in lines:
        Image.new("RGB", (8, 8)).save(tmp_path / str(line["image"]))
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    location = f"jsonl:{tmp_path}/x.jsonl"
    found = score_results(results(tmp_path, {"a.png": "a wall", "b.png": "a wall"}), location=location, split="all")
    assert (found["num_examples"], found["without_references"]) == (1, 1)
    assert any("1 images have no reference and aren't scored: b.png" in warning for warning in found["warnings"])
    with pytest.raises(NoReferences):
        score_results(results(tmp_path, {"b.png": "a wall"}), location=location, split="all")


def test_one_image_gets_a_cider_from_fixed_frequencies(tmp_path: Path, photos: Path) -> None:
    both = results(tmp_path, {"4.jpg": "people eat", "5.jpg": "snow falls on the mountains"})
    whole = score(both, photos, save_frequencies=tmp_path / "df.json")
    one = results(tmp_path, {"5.jpg": "snow falls on the mountains"}, "one.json")
    alone = score(one, photos, frequencies=str(tmp_path / "df.json"))
    assert alone["metrics"]["cider"] > whole["metrics"]["cider"] > 0
    assert not any("cider" in warning for warning in alone["warnings"])
    assert score(one, photos, frequencies="train")["metrics"]["cider"] > 0
    with pytest.raises(InvalidArgument, match="no training split"):
        score(one, photos, frequencies="train", split="all")


def test_line_ends_in_captions_shift_nothing(tmp_path: Path, photos: Path) -> None:
    file = results(
        tmp_path, {"4.jpg": "people\u2028eat\rat a long\u2063table", "5.jpg": "snow falls\non the mountains"}
    )
    assert score(file, photos)["metrics"]["exact_captions"] == 1


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"{", "as JSON"),
        (b"\xff\xfe", "as JSON"),
        (b'{"image_id": 1, "caption": "a"}', "expected a list"),
        (b"[]", "no results"),
        (b'[{"image_id": 1}]', "entry 0"),
        (b'[{"image_id": 1, "caption": ["a"]}]', "entry 0"),
        (b'[{"image_id": true, "caption": "a"}]', "entry 0"),
        (b'[{"image_id": 1, "caption": "a"}, {"image_id": 1, "caption": "b"}]', "entry 1: image 1 has a caption"),
        (b'["a dog"]', "entry 0"),
    ],
)
def test_what_is_no_results_file_is_refused(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "r.json").write_bytes(data)
    with pytest.raises(InvalidResults, match=says):
        read_results(tmp_path / "r.json")


def test_results_are_read_as_written(tmp_path: Path) -> None:
    said: dict[int | str, str] = {1: "a “dog”", "x/y.jpg": "青蛙 \u2028 and\nmore", 3: "", "\udcff.jpg": "\ud83d"}
    write_results(tmp_path / "r.json", list(said), list(said.values()))
    assert read_results(tmp_path / "r.json") == said
    with pytest.raises(NoResults):
        read_results(tmp_path / "none.json")


def test_only_settings_of_the_data_are_taken(tmp_path: Path, photos: Path) -> None:
    file = results(tmp_path, {"4.jpg": "people eat"})
    for settings, says in ((["train.steps=3"], "data only"), (["data.splt=x"], "did you mean split")):
        with pytest.raises(InvalidSpec, match=says):
            score(file, photos, settings=settings)


def test_the_command_prints_data_on_stdout_and_warnings_on_stderr(tmp_path: Path, photos: Path) -> None:
    file = results(tmp_path, {"4.jpg": "people eat"})
    command = [sys.executable, "-m", "finetune.cli.main", "score", str(file), "--data", f"flickr:{photos}"]
    command += ["--set", "data.split=ordered:2,2,2"]
    done = subprocess.run([*command, "--format", "json"], capture_output=True, text=True, check=True, timeout=120)
    assert json.loads(done.stdout)["metrics"]["cider"] == 0
    assert "warning: cider is 0 for a single image" in done.stderr
    text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert text.startswith(f"{file} on test of flickr:{photos}: 1 captions")
    wrong = subprocess.run([*command, "--also", "bertscore"], capture_output=True, text=True, timeout=120)
    assert wrong.returncode == 1
    assert "meteor, spice" in wrong.stderr
