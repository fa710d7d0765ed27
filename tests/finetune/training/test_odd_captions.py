"""Captions that people really have, through everything that is decided before step 1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from finetune.jobs.folder import JobFolder, read_json
from finetune.models.heads.captioner import NoCaption
from finetune.spec import JobSpec
from finetune.text.vocabulary import END, PAD, UNKNOWN, Vocabulary
from finetune.training.prepare import Prepared, load_prepared, prepare
from tests.finetune.training.roles import Place

CAPTIONS: list[str] = [
    "a dog 🐕 runs",
    "ضفدع أخضر يقفز",
    "青蛙 and カエル в пруду",
    "half of a \ud83d pair",
    "one\rtwo\u2028three\u2063four",
    "the word <unk> or UNK </s>",
    " ".join(f"w{number}" for number in range(400)),
    "a dog 🐕 runs",
    "nobody else says this",
    "",
]


pytestmark = pytest.mark.usefixtures("place_cache")


def write(root: Path, lines: list[dict[str, Any]]) -> str:
    for line in lines:
        if line["image"] != "nowhere.png":
            Image.new("RGB", (40, 40), (25 * int(Path(line["image"]).stem), 90, 200)).save(root / line["image"])
    (root / "odd.jsonl").write_text("\n".join(json.dumps(line) for line in lines))  # halves as \\ud83d
    return f"jsonl:{root}/odd.jsonl"


def go(place: Place, root: Path, location: str, **arguments: Any) -> tuple[JobFolder, JobSpec, Prepared]:
    small = {"units": 8, "embedding": 8, "min_count": 1, "max_words": 20}
    spec = JobSpec.parse(
        {
            "name": "child",
            "backbone": "tiny",
            "head": {"kind": "captioner", "arguments": small | arguments},
            "data": {"location": location, "split": "ordered:8,1", "max_bad_share": 0.5},
        }
    )
    folder = JobFolder.create(root / "job", job="j", spec=spec, store_url="memory://x")
    return folder, spec, prepare(folder, spec, place.catalog, on_progress=lambda phase, done, total: None)


@pytest.mark.parametrize("kind", ["words", "characters", "sentencepiece"])
def test_odd_captions_are_prepared_and_bad_ones_counted(place: Place, tmp_path: Path, kind: str) -> None:
    if kind == "sentencepiece":
        pytest.importorskip("sentencepiece")
    lines = [{"image": f"{place}.png", "caption": caption} for place, caption in enumerate(CAPTIONS)]
    location = write(tmp_path, [*lines, {"image": "nowhere.png", "caption": "of no image"}])
    folder, spec, prepared = go(place, tmp_path, location, tokenizer=kind, pieces=120)
    bad = read_json(folder.prepared / "bad_records.json")
    assert bad is not None
    assert {one["id"] for one in bad["records"]} == {"9.png", "nowhere.png"}
    train = prepared.splits["train"]
    tokens = train.table.arrays["tokens"]
    assert len(tokens) == 8
    assert UNKNOWN not in tokens
    assert END not in tokens[6]  # the 400 words are cut
    assert (tokens[6] != PAD).sum() == 20
    vocabulary = Vocabulary.from_files(prepared.assets.files)
    said = [vocabulary.text(row.tolist()) for row in tokens]
    assert said[0] == said[7] == "a dog runs"
    if kind == "words":
        assert said[1:6] == [
            "ضفدع أخضر يقفز",
            "青蛙 and カエル в пруду",
            "half of a pair",
            "one two three four",
            "the word unk or unk s",
        ]
        unknown = prepared.splits["validation"].table.arrays["tokens"][0]
        assert unknown[:5].tolist() == [UNKNOWN] * 4 + [END]  # only unknown words
    again = load_prepared(folder, spec, place.catalog)
    assert again.assets == prepared.assets


def test_an_image_without_captions_is_named(place: Place, tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [{"image": f"{n}.png", "caption": "a dog runs"} for n in range(8)]
    location = write(tmp_path, [*lines, {"image": "8.png", "label": "dog"}])
    with pytest.raises(NoCaption, match=r"8\.png: the image has no caption"):
        go(place, tmp_path, location)
