"""The head that docs/heads.md writes is a head: it trains, is measured, and is built again from its manifest."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.data.source import Example
from finetune.models.heads.head import TargetTable
from finetune.models.network import HeadNetwork
from finetune.spec import TrainConfig
from finetune.training.evaluate import SplitEvaluation
from finetune.training.split_data import SplitData
from finetune.training.trainer import Trainer

DOCS = Path(__file__).parents[3] / "docs" / "heads.md"


@pytest.fixture
def kind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    made = []
    for name, code in zip(("age", "age_layer"), blocks, strict=True):
        file = tmp_path / f"{name}.py"  # a file, since AutoGraph reads the source
        file.write_text(code, encoding="utf-8")
        spec = importlib.util.spec_from_file_location(f"finetune.models.heads.{name}", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        made.append(module)
    return made[0].__dict__["AgeKind"]()


def test_the_head_of_the_walk_through_works(kind: Any) -> None:
    chance = np.random.default_rng(0)
    feature_ND = chance.standard_normal((40, 3)).astype(np.float32)
    years = [float(1950 + 20 * row[0]) for row in feature_ND]
    examples = tuple(Example(id=f"{n}.png", label=f"{year:.1f}") for n, year in enumerate(years))
    arguments = kind.Arguments.model_validate({"spread": 20})
    assets = kind.learn_assets(examples, arguments)
    table: TargetTable = kind.targets(examples, arguments, assets)
    split = SplitData.join(
        name="validation",
        examples=examples,
        source_index=range(40),
        features_NVD=feature_ND[:, np.newaxis, :],
        table=table,
    )
    head = kind.build(arguments=arguments, feature_dim=3, assets=assets, seed=1)
    evaluation = SplitEvaluation(head, batch_size=16)
    before = evaluation(split)
    config = TrainConfig.model_validate({"optimizer": {"name": "adam", "learning_rate": 0.1, "clip_norm": None}})
    trainer = Trainer(network=HeadNetwork(head), config=config, strategy=tf.distribute.get_strategy())
    batch = {"feature_vector": feature_ND}, {"year": table.arrays["year"], "weight": np.ones(40, np.float32)}
    trainer.run(iter(tf.data.Dataset.from_tensors(batch).repeat()), 400)
    after = evaluation(split)
    assert after["loss"] < before["loss"] / 100
    assert after["years_off"] < 5 < before["years_off"]
    assert isinstance(head, keras.Layer)

    again = kind.build(
        arguments=kind.Arguments.model_validate(kind.resolved(arguments, assets)),
        feature_dim=3,
        assets=assets,
        seed=2,
    )
    again.set_weights(head.get_weights())
    np.testing.assert_array_equal(again(feature_ND), head(feature_ND))
