"""A small head with synthetic features, shared by the tests that need no backbone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from finetune.data.queue import training_batches
from finetune.data.source import Example
from finetune.models.heads import head_kind
from finetune.models.heads.head import HeadKind
from finetune.models.network import HeadNetwork
from finetune.spec import TrainConfig
from finetune.training.split_data import SplitData
from finetune.training.trainer import Trainer
from tests.finetune.training.roles import Place

COLOURS = ("red", "green", "blue", "grey")
SHAPES = ("square", "circle", "star")
DIM = 12
# The recipe's defaults may change; what is tested here must not change with them.
PLAIN: dict[str, Any] = {
    "normalise_features": "standard",
    "feature_dropout": 0.0,
    "embedding_dropout": 0.0,
    "output_dropout": 0.0,
    "word_dropout": 0.0,
    "label_smoothing": 0.0,
    "word_bag": 0.0,
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """A captioner on features from which the caption can be told."""

    kind: HeadKind
    arguments: Any
    assets: Any
    data: SplitData

    def head(self, seed: int = 1) -> Any:
        return self.kind.build(arguments=self.arguments, feature_dim=DIM, assets=self.assets, seed=seed)

    def trainer(self, config: TrainConfig | None = None, seed: int = 1) -> Trainer:
        strategy = tf.distribute.get_strategy()
        return Trainer(network=HeadNetwork(self.head(seed)), config=config or TrainConfig(), strategy=strategy)

    def batches(self, start_step: int = 0, *, batch_size: int = 8) -> Any:
        return iter(
            training_batches(
                table=self.data.table,
                features=self.data.features_NVD,
                batch_size=batch_size,
                seed=1,
                start_step=start_step,
            )
        )


@pytest.fixture(scope="session")
def captioner_task() -> Callable[..., Task]:
    return make_captioner_task


def make_captioner_task(**arguments: Any) -> Task:
    kind = head_kind("captioner")
    settings = {**PLAIN, "embedding": 16, "units": 16, "min_count": 1, "max_words": 6, **arguments}
    parsed = kind.Arguments.model_validate(settings)
    random = np.random.default_rng(0)
    colour_C, shape_S = random.standard_normal((4, DIM)), random.standard_normal((3, DIM))
    examples, features = [], []
    for colour in range(4):
        for shape in range(3):
            for copy in range(2):
                caption = f"a {COLOURS[colour]} {SHAPES[shape]}"
                examples.append(Example(id=f"{colour}{shape}{copy}.png", captions=(caption,)))
                features.append(colour_C[colour] + shape_S[shape] + 0.05 * random.standard_normal(DIM))
    assets = kind.learn_assets(examples, parsed)
    data = SplitData.join(
        name="train",
        examples=tuple(examples),
        source_index=range(len(features)),
        features_NVD=np.asarray(features, np.float32)[:, np.newaxis, :],
        row_of=np.arange(len(examples)),
        table=kind.targets(examples, parsed, assets),
    )
    return Task(kind=kind, arguments=parsed, assets=assets, data=data)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A store with a tiny backbone, for the tests of one file."""
    return Place.make(tmp_path_factory.mktemp("place"))


@pytest.fixture
def place_cache(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features that one test of a file has computed serve the next."""
    monkeypatch.setenv("MODELZOO_CACHE", str(place.root / "cache"))
