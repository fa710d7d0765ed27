"""Pictures of predictions, read back as TensorBoard reads them."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune.data.source import ExampleSource
from finetune.data.sources import open_source
from finetune.models.heads import head_kind
from finetune.training.confusion_picture import confusion_picture
from finetune.training.evaluate import SplitEvaluation
from finetune.training.pictures import Pictures
from finetune.training.split_data import SplitData
from finetune.training.summaries import Summaries

DIM = 6


@pytest.fixture(scope="module")
def source() -> ExampleSource:
    return open_source("scenes:count=24,size=32")


def split_of(kind: Any, arguments: Any, source: ExampleSource) -> tuple[SplitData, Any]:
    indices = [index for index, example in enumerate(source.examples) if example.captions]
    examples = tuple(replace(source.examples[index], label="abc"[place % 3]) for place, index in enumerate(indices))
    assets = kind.learn_assets(examples, arguments)
    features = np.random.default_rng(0).standard_normal((len(examples), 1, DIM)).astype(np.float32)
    split = SplitData.join(
        name="validation",
        examples=examples,
        source_index=indices,
        features_NVD=features,
        row_of=np.arange(len(examples)),
        table=kind.targets(examples, arguments, assets),
    )
    return split, kind.build(arguments=arguments, feature_dim=DIM, assets=assets, seed=1)


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), {"tensors": 0, "images": 0}).Reload()


def pixels(events: EventAccumulator, tag: str) -> np.ndarray:
    width, height, png = tf.make_ndarray(events.Tensors(tag)[-1].tensor_proto)[:3]
    image = np.asarray(Image.open(io.BytesIO(png)))
    assert image.shape == (int(height), int(width), 3)
    return image


def test_a_classifier_shows_its_sample_its_confusion_and_its_curves(source: ExampleSource, tmp_path: Path) -> None:
    kind = head_kind("classifier")
    split, head = split_of(kind, kind.Arguments(), source)
    metrics = SplitEvaluation(head, batch_size=8)(split)
    summaries = Summaries(tmp_path)
    pictures = Pictures(head, source, summaries)
    for step in (1, 2):
        pictures.write(step, split, metrics)
    summaries.close()
    events = read(tmp_path)
    assert pixels(events, "sample").std() > 10
    assert pixels(events, "confusion").shape[0] > 130
    tags = [tag for tag in events.Tags()["tensors"] if tag.startswith("precision_recall/")]
    assert tags == [f"precision_recall/{name}" for name in head.classes]
    classes, truth_NC, score_NC = head.class_scores(split.first_view(), split.examples)
    table = tf.make_ndarray(events.Tensors(tags[0])[-1].tensor_proto)
    assert table[0, 0] == truth_NC[:, 0].sum()  # at threshold 0 all true ones are found
    assert table[0, 50] == (score_NC[truth_NC[:, 0], 0] >= 0.5).sum()
    assert truth_NC.sum() == len(split.examples)
    assert classes == head.classes


def test_a_captioner_says_something_of_each_image_of_the_sample(source: ExampleSource, tmp_path: Path) -> None:
    kind = head_kind("captioner")
    arguments = kind.Arguments(units=8, embedding=8, min_count=1, max_words=5, beam_size=1)
    split, head = split_of(kind, arguments, source)
    summaries = Summaries(tmp_path)
    Pictures(head, source, summaries).write(5, split, {})
    summaries.close()
    events = read(tmp_path)
    assert events.Tags()["tensors"] == ["sample"]
    assert pixels(events, "sample").shape == (2 * (224 + 96 + 12) + 12 + 32, 4 * (224 + 12) + 12, 3)
    assert len(head.sample_texts(split.first_view()[:3])) == 3


def test_an_image_that_has_gone_stops_no_evaluation(
    source: ExampleSource, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind = head_kind("classifier")
    split, head = split_of(kind, kind.Arguments(), source)
    path = tmp_path / "gone"
    path.mkdir()
    for name in ("a", "b"):
        (path / name).mkdir()
        (path / name / "1.png").write_bytes(source.read(0))
    folder = open_source(f"folder:{path}")
    for name in ("a", "b"):
        (path / name / "1.png").unlink()
    gone = replace(split, examples=split.examples[:2], row_of=split.row_of[:2], source_index=np.array([0, 1]))
    summaries = Summaries(tmp_path / "events")
    Pictures(head, folder, summaries).write(1, gone, {})
    summaries.close()
    assert "no picture of the sample" in capsys.readouterr().err


def test_the_matrix_is_dark_where_the_row_is() -> None:
    picture = confusion_picture([[9, 1], [0, 4]], ["an apple of a very long name", "b\x1b"])
    cells = picture[130:190, 130:190]
    corner = cells[2::30, 2::30].astype(int)
    assert corner[0, 0].sum() < corner[0, 1].sum()
    assert corner[1, 0].tolist() == [255, 255, 255]
    assert corner[1, 1].tolist() == [31, 73, 125]
