"""Looking at a network whose backbone is trained too: groups of both components, endpoints, scopes, equal bits."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from finetune.jobs.folder import JobFolder
from finetune.models.heads import head_kind
from finetune.models.heads.head import Assets
from finetune.models.network import ThawedNetwork
from finetune.models.restore import restore
from finetune.spec import JobSpec
from finetune.training.summaries import Summaries
from finetune.training.trainer import Trainer
from finetune.training.watching import watched
from tests.tiny import TINY, TINY_FEATURE_DIM, tiny_tensors
from zoo.input_spec import InputSpec


def network() -> ThawedNetwork:
    kind = head_kind("classifier")
    head = kind.build(
        arguments=kind.Arguments.model_validate({"hidden": [8], "dropout": [0.3]}),
        feature_dim=TINY_FEATURE_DIM,
        assets=Assets(files={}, classes=("a", "b")),
        seed=1,
    )
    made = ThawedNetwork(head=head, architecture=TINY, input_spec=InputSpec(height=32, width=32), train_from="block_14")
    made.restore_backbone(tiny_tensors()).require_complete("tiny")
    return made


def batches() -> Any:
    """As they come from Python threads."""
    random = np.random.default_rng(0)
    while True:
        image = random.random((4, 32, 32, 3), np.float32)
        yield {"image": image}, {"label": np.array([0, 1, 0, 1], np.int32), "weight": np.ones(4, np.float32)}


def spec(**debug: Any) -> JobSpec:
    return JobSpec.parse(
        {
            "name": "child",
            "backbone": "tiny",
            "head": {"kind": "classifier"},
            "data": {"location": "scenes:"},
            "model": {"train_from": "block_14"},
            "train": {"steps": 4, "evaluate_every": 2, "batch_size": 4},
            "debug": debug,
        }
    )


def values(trainer: Trainer) -> dict[str, np.ndarray]:
    return {
        f"{group}/{name}": np.asarray(variable.numpy())
        for group, variables in trainer.variables.items()
        for name, variable in variables.items()
    }


def test_everything_that_is_looked_at_and_the_same_bits(tmp_path: Path) -> None:
    plan = spec(print=["block_14", "top", "block_15/project/kernel", "head/hidden_0"], check_numerics=True)
    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        plain, looked_at = network(), network()
    alone = Trainer(network=plain, config=plan.train, strategy=strategy)
    alone.run(batches(), 4)

    folder = JobFolder.create(tmp_path, job="j1", spec=plan, store_url="memory://x")
    trainer = Trainer(network=looked_at, config=plan.train, strategy=strategy)
    summaries, said = Summaries(folder.events_train), []
    with watched(
        folder, plan, trainer=trainer, network=looked_at, batches=lambda step: nullcontext(batches()),
        summaries=summaries, say=said.append,
    ) as watching:  # fmt: skip
        watching.run(batches(), 4)
    summaries.close()
    for name, value in values(alone).items():
        np.testing.assert_array_equal(values(trainer)[name], value, err_msg=name)

    assert [line.split(" min ")[0] for line in said] == [
        "step 1: block_14 [4 1 1 24]",
        "step 1: top [4 1 1 160]",
        "step 1: block_15/project/kernel [1 1 144 40]",
        "step 1: head/hidden_0 [4 8]",
    ]
    events = EventAccumulator(str(folder.events_train), {"tensors": 0}).Reload()
    tags = set(events.Tags()["tensors"])
    for group in ("head/hidden_0", "head/logits", "backbone/block_14", "backbone/block_15", "backbone/top"):
        assert {f"weights/{group}", f"gradients/{group}", f"update_norm/{group}"} <= tags
    assert not any("block_13" in tag for tag in tags)
    graph = tf.compat.v1.GraphDef.FromString(events.Graph().SerializeToString())
    names = [node.name for node in graph.node]
    for scope in ("backbone/", "head/", "head/loss/", "gradients/", "update/"):
        assert any(name.startswith(scope) for name in names), scope


def test_what_a_frozen_tensor_printed_shows(tmp_path: Path) -> None:
    """The whole backbone's endpoints can be printed, those before the cut too."""
    from finetune.training.probe import Probe

    made = network()
    restore(made.groups["backbone"], {name: v.numpy() for name, v in made.groups["backbone"].items()})
    look = Probe(made).printer(["block_3", "stem"], file=str(tmp_path / "p"))
    look(1, *next(batches()))
    lines = (tmp_path / "p").read_text().splitlines()
    assert lines[0].startswith("step 1: block_3 [4 ")
    assert lines[1].startswith("step 1: stem [4 ")


@pytest.mark.parametrize("name", ["block_41", "Mixed_7a"])
def test_an_endpoint_that_is_not_there(name: str) -> None:
    from finetune.training.probe import Probe, UnknownTensor

    with pytest.raises(UnknownTensor, match=name):
        Probe(network()).printer([name], file="unused")
