"""What goes wrong with real data, from the source to the batches: each is told by name, and none ends in silence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finetune.data.folder import FolderSource
from finetune.data.image_queue import InputFailed
from finetune.data.queue import evaluation_batches, training_batches
from finetune.data.scan import scan
from finetune.data.scenes import SceneSource
from finetune.data.share import Share
from finetune.data.source import ExampleSource
from finetune.data.sources import open_source
from finetune.data.splits import split_examples
from finetune.data.trees.bucket import BucketTree
from finetune.data.trees.byte_cache import ByteCache
from finetune.models.heads import head_arguments, head_kind
from finetune.models.heads.head import TargetTable
from finetune.spec import HeadConfig
from finetune.training.image_rows import ImageRows
from finetune.training.split_data import SplitData
from tests.finetune.data.test_features import MeanBackbone, fill
from tests.seaweed import Seaweed
from zoo.errors import ZooError
from zoo.input_spec import InputSpec
from zoo.store import open_store
from zoo.store.faulty import FaultPlan, FaultyStore

SCENES = SceneSource.open("count=30,size=32")


def photos(root: Path, *names: str) -> ExampleSource:
    for place, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(SCENES.read(place % 30))
    return open_source(f"folder:{root}")


def rows_of(source: ExampleSource, *, max_bad_share: float = 0.0) -> ImageRows:
    count = len(source.examples)
    table = TargetTable(image_index=np.arange(count, dtype=np.int32), arrays={"row": np.arange(count)})
    split = SplitData.join(name="train", examples=tuple(source.examples), source_index=range(count), table=table)
    return ImageRows(
        split=split, source=source, spec=InputSpec(height=16, width=16), share=Share(batch_size=10), seed=1, views=1,
        max_pixels=10_000, max_bad_share=max_bad_share,
    )  # fmt: skip


def test_a_file_that_vanishes_after_it_was_listed(tmp_path: Path) -> None:
    source = photos(tmp_path / "data", *(f"a/{n:02d}.png" for n in range(20)))
    (tmp_path / "data/a/07.png").unlink()
    reason = "cannot read image 'a/07.png': No such file or directory"
    (record,) = scan(source, range(20), 10_000)
    assert (record.id, record.reason) == ("a/07.png", reason)
    made = fill(tmp_path / "cache", MeanBackbone(), source)
    assert [(one.id, one.reason) for one in made.bad] == [("a/07.png", reason)]
    assert made.valid.sum() == 19
    with rows_of(source, max_bad_share=0.05) as batches:
        targets = [next(batches)[1] for _ in range(4)]
        assert [(record.id, record.reason) for record in batches.queue.bad_records] == [("a/07.png", reason)]
    weight = {int(r): float(w) for each in targets for r, w in zip(each["row"], each["weight"], strict=True)}
    assert weight == {row: float(row != 7) for row in range(20)}


@pytest.mark.parametrize(("corrupt", "fails"), [(1, False), (15, True)])
def test_one_in_a_thousand_is_passed_over_and_more_than_the_share_fails(
    tmp_path: Path, corrupt: int, fails: bool
) -> None:
    names = [f"a/{n:04d}.png" for n in range(1000)]
    source = photos(tmp_path, *names)
    for name in names[::60][:corrupt]:
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])  # its header is sound
    assert scan(source, range(1000), 10_000) == []
    with rows_of(source, max_bad_share=0.01) as batches:
        if fails:
            with pytest.raises(InputFailed, match=r"\d+ of \d+ images can't be used, the last is 'a/\d{4}\.png'"):
                all(batches)
            return
        weights = [float(next(batches)[1]["weight"].sum()) for _ in range(100)]
        assert sum(weights) == 999
        assert [record.id for record in batches.queue.bad_records] == ["a/0000.png"]
        assert batches.queue.snapshot().sentence().endswith("; 1 images were skipped")


def test_eighteen_images_with_batches_of_thirty_two() -> None:
    features = np.arange(18, dtype=np.float32).reshape(18, 1, 1)
    table = TargetTable(image_index=np.arange(18, dtype=np.int32), arrays={"row": np.arange(18)})
    made = training_batches(table=table, features=features, batch_size=32, seed=1)
    batches = list(made.take(9).as_numpy_iterator())  # sixteen epochs
    assert [batch["feature_vector"].shape for batch, _ in batches] == [(32, 1)] * 9
    rows = np.concatenate([targets["row"] for _, targets in batches])
    assert np.array_equal(np.sort(rows.reshape(16, 18)), np.tile(np.arange(18), (16, 1)))
    ((batch, targets),) = evaluation_batches(table=table, features=features, batch_size=32).as_numpy_iterator()
    assert targets["weight"].tolist() == [1.0] * 18 + [0.0] * 14
    assert batch["feature_vector"][:18, 0].tolist() == list(range(18))


def test_classes_that_differ_in_case_or_letters_outside_ascii_are_learnt_apart(tmp_path: Path) -> None:
    names = ["Rose", "rose", "café", "cafe\u0301", "猫", "狗", "ß", "ss"]
    source = photos(tmp_path, *(f"{name}/{n}.png" for name in names for n in range(4)))
    kind, arguments = head_kind("classifier"), head_arguments(HeadConfig(kind="classifier"))
    split = split_examples(source.examples, "stratified:0.75,0.25", seed=1)
    examples = [source.examples[index] for index in split.train]
    assets = kind.learn_assets(examples, arguments)
    assert assets.classes == tuple(sorted(names))
    validation = [source.examples[index] for index in split.validation]
    labels = kind.targets(validation, arguments, assets).arrays["label"]
    assert sorted(assets.classes[label] for label in labels) == sorted(names)
    assert [assets.classes[label] for label in labels] == [example.label for example in validation]


def test_an_empty_class_folder_beside_one_that_is_not(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    source = photos(tmp_path, "full/1.png", "full/2.png")
    assert source.classes == ("full",)
    assert [record.id for record in source.bad_records] == ["empty/"]
    kind, arguments = head_kind("classifier"), head_arguments(HeadConfig(kind="classifier"))
    with pytest.raises(ZooError, match="full"):  # one class only
        kind.learn_assets(list(source.examples), arguments)
    multilabel = head_kind("multilabel")
    one = replace(source.examples[0], label=None, labels=("full",))
    assert multilabel.learn_assets([one], head_arguments(HeadConfig(kind="multilabel"))).classes == ("full",)


def test_a_bucket_that_may_not_be_read(s3_url: str, seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    open_store(s3_url).put("a/1.png", SCENES.read(0))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not the key")
    with pytest.raises(ZooError, match=r"cannot list s3://zoo/.*does not take the access keys"):
        open_source(f"folder:{s3_url}")


def test_a_bucket_that_goes_away_while_it_is_read(tmp_path: Path) -> None:
    from zoo.store.memory import MemoryStore

    inner = MemoryStore("photos")
    for number in range(30):
        inner.put(f"a/{number:02d}.png", SCENES.read(number))
    gone = FaultyStore(inner, FaultPlan(unavailable=1, methods=frozenset({"read"})))
    tree = BucketTree(gone, ByteCache(tmp_path / "bytes"))
    source = replace(
        FolderSource(
            location="folder:s3://gone/photos", tree=tree, examples=(), bad_records=(), classes=("a",), notes=()
        ),
        examples=tuple(replace(SCENES.examples[n], id=f"a/{n:02d}.png") for n in range(30)),
    )
    told = r"images can't be used, the last is 'a/\d\d\.png': .*cannot be reached"
    with rows_of(source, max_bad_share=0.01) as batches, pytest.raises(InputFailed, match=told):
        next(batches)
    made = fill(tmp_path / "cache", MeanBackbone(), source)
    assert len(made.bad) == 30
    assert all("cannot be reached" in record.reason for record in made.bad)
