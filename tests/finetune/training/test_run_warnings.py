"""What a run says of its plan and of what came of it: each warning fires where it should, and only there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.data.source import Example
from finetune.jobs.folder import JobFolder
from finetune.models.heads import head_kind
from finetune.models.network import HeadNetwork
from finetune.spec import JobSpec
from finetune.training.evaluate import SplitEvaluation
from finetune.training.progress import Progress
from finetune.training.run_warnings import averages_warning, better_than_training
from finetune.training.split_data import SplitData


@pytest.mark.parametrize(
    ("momentum", "steps", "warns"),
    [(0.99, 100, True), (0.99, 299, False), (0.9, 100, False), (0.999, 1000, True), (None, 1, False)],
)
def test_averages_of_batch_norm_that_cannot_settle_are_told(momentum: float | None, steps: int, warns: bool) -> None:
    said = averages_warning(momentum, steps)
    assert (said is not None) == warns
    if said:
        assert "model.batch_norm=frozen" in said
        assert f"{momentum**steps:.0%}" in said  # type: ignore[operator]


def test_a_validation_split_that_is_easier_than_training_is_told() -> None:
    said = better_than_training({"accuracy": 0.80}, {"accuracy": 0.95}, examples=(1000, 200))
    assert said is not None
    assert "accuracy 0.950, training 0.800" in said
    assert "--duplicates" in said
    assert better_than_training({"accuracy": 0.80}, {"accuracy": 0.95}, examples=(20, 10)) is None  # chance
    assert better_than_training({"accuracy": 0.990}, {"accuracy": 1.0}, examples=(10**6, 10**5)) is None  # a trifle
    assert better_than_training({"accuracy": 0.99}, {"accuracy": 0.80}, examples=(1000, 200)) is None
    assert "loss 0.5, training 1" in (better_than_training({"loss": 1.0}, {"loss": 0.5}, examples=(100, 100)) or "")
    assert better_than_training({"loss": 1.0}, {"loss": 0.9}, examples=(100, 100)) is None
    assert better_than_training({"loss": float("nan")}, {"loss": 0.9}, examples=(100, 100)) is None


def evaluated(kind: str, examples: list[Example], *, bias: np.ndarray | None, **arguments: Any) -> tuple[str, ...]:
    """What a head of weights 0 (or its fresh ones, without `bias`) warns of, on random features."""
    head = head_kind(kind)
    parsed = head.Arguments.model_validate(arguments)
    assets = head.learn_assets(examples, parsed)
    layer = head.build(arguments=parsed, feature_dim=6, assets=assets, seed=1)
    if bias is not None:
        kernel, own = HeadNetwork(layer).trainable_variables
        kernel.assign(np.zeros(kernel.shape, np.float32))
        own.assign(np.broadcast_to(bias, own.shape).astype(np.float32))
    split = SplitData.join(
        name="validation",
        examples=tuple(examples),
        source_index=range(len(examples)),
        features_NVD=np.random.default_rng(0).standard_normal((len(examples), 1, 6)).astype(np.float32),
        table=head.targets(examples, parsed, assets),
    )
    evaluation = SplitEvaluation(layer, batch_size=8)
    evaluation(split)
    return evaluation.warnings


LABELLED = [Example(id=str(n), label="ab"[n % 2]) for n in range(20)]
SEVERAL = [Example(id=str(n), labels=(("a",), ("b",), ("a", "b"), ())[n % 4]) for n in range(20)]


@pytest.mark.parametrize(
    ("kind", "examples", "bias", "words"),
    [
        ("classifier", LABELLED, np.array([0.0, 5.0]), "every image is said to be 'b'"),
        ("multilabel", SEVERAL, np.array([-5.0, 5.0]), "every image is said to show b"),
        ("multilabel", SEVERAL, np.array([-5.0, -5.0]), "every image is said to show nothing"),
        ("embedding", LABELLED, np.array(1.0), "every image has nearly the same vector"),
    ],
)
def test_the_same_answer_for_everything_is_told(
    kind: str, examples: list[Example], bias: np.ndarray, words: str
) -> None:
    assert any(words in text for text in evaluated(kind, examples, bias=bias))
    assert not any("every image" in text for text in evaluated(kind, examples, bias=None))


def test_a_single_class_in_the_split_is_no_fault_of_the_head() -> None:
    head = head_kind("classifier")
    parsed = head.Arguments()
    assets = head.learn_assets(LABELLED, parsed)
    layer = head.build(arguments=parsed, feature_dim=6, assets=assets, seed=1)
    only = [Example(id="0", label="a")]
    assert "every image" not in str(layer.evaluate(np.zeros((1, 6), np.float32), only).get("warnings"))


def test_warnings_are_said_once_and_stay_in_the_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = JobSpec.parse(
        {"name": "c", "backbone": "b", "head": {"kind": "classifier"}, "data": {"location": "scenes:"}}
    )
    folder = JobFolder.create(tmp_path / "job", job="j", spec=spec, store_url="memory://x")
    with Progress(folder, steps=10) as progress:
        for _ in range(2):
            progress.warn("the sky is falling: look up")
        progress.update(phase="training", step=3)
    assert capsys.readouterr().err.count("warning: the sky is falling: look up") == 1
    state = json.loads(folder.progress_path.read_text())
    assert state["warnings"] == ["the sky is falling: look up"]
    assert state["news"] == ["warning: the sky is falling: look up"]
    assert state["step"] == 3
