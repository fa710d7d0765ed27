"""The files of `finetune evaluate --report`: what they hold, and class names that files can't take as they are."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.sources import open_source
from finetune.models.heads import head_kind
from finetune.training.evaluate import SplitEvaluation
from finetune.training.evaluation_report import write_report
from finetune.training.split_data import SplitData

NAMES = ["plain", 'with "quotes", and a comma', "two\nlines", "x" * 200]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for place, name in enumerate(NAMES):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(5):
            colour = (60 * place, 40 * number, 90)
            Image.new("RGB", (24, 24), colour).save(tmp_path / "data" / name / f"{number}.png")
    return tmp_path / "data"


def test_a_report_has_classes_confusions_predictions_and_pictures(photos: Path, tmp_path: Path) -> None:
    source = open_source(f"folder:{photos}")
    examples = tuple(source.examples)
    kind = head_kind("classifier")
    arguments = kind.Arguments()
    assets = kind.learn_assets(examples, arguments)
    head = kind.build(arguments=arguments, feature_dim=4, assets=assets, seed=1)
    split = SplitData.join(
        name="all",
        examples=examples,
        source_index=range(len(examples)),
        features_NVD=np.random.default_rng(0).standard_normal((len(examples), 1, 4)).astype(np.float32),
        table=kind.targets(examples, arguments, assets),
    )
    evaluation = SplitEvaluation(head, batch_size=8)
    result = {"reference": "m@1", "metrics": evaluation(split), "num_examples": len(examples)}
    folder = tmp_path / "report" / "here"
    shown = evaluation.shown(split)
    written = write_report(folder, title="m@1", result=result, split=split, shown=shown, source=source)
    assert sorted(written) == sorted(path.name for path in folder.iterdir())
    assert json.loads((folder / "metrics.json").read_text())["metrics"] == result["metrics"]

    def rows(name: str) -> list[list[str]]:
        with (folder / name).open(newline="", encoding="utf-8") as file:
            return list(csv.reader(file))

    header, *classes = rows("per-class.csv")
    assert header == ["class", "precision", "recall", "f1", "support"]
    assert {row[0]: int(row[4]) for row in classes} == dict.fromkeys(NAMES, 5)
    header, *confused = rows("confusion.csv")
    assert header[1:] == sorted(NAMES)
    assert [row[0] for row in confused] == sorted(NAMES)
    assert sum(int(count) for row in confused for count in row[1:]) == 20
    header, *said = rows("predictions.csv")
    assert header == ["id", "truth", "said", "goodness"]
    assert sorted(row[0] for row in said) == sorted(example.id for example in examples)
    goodness = [float(row[3]) for row in said]
    assert goodness == sorted(goodness)
    for name in ("confusion.png", "contact-sheet.png"):
        with Image.open(folder / name) as picture:
            assert picture.size[0] > 200
    assert "with &quot;quotes&quot;" in (folder / "contact-sheet.html").read_text()


def test_a_head_that_shows_nothing_leaves_its_metrics(tmp_path: Path) -> None:
    split = SplitData.join(
        name="all",
        examples=(),
        source_index=[],
        features_NVD=np.zeros((0, 1, 4), np.float32),
        table=head_kind("captioner").targets((), *_captioner()),
    )
    result = {"reference": "m@1", "metrics": {"loss": 1.0}}
    source = open_source("scenes:count=10")
    assert write_report(tmp_path, title="", result=result, split=split, shown=None, source=source) == ["metrics.json"]


def _captioner() -> tuple[object, object]:
    kind = head_kind("captioner")
    arguments = kind.Arguments.model_validate({"min_count": 1})
    return arguments, kind.learn_assets(open_source("scenes:count=10").examples, arguments)
