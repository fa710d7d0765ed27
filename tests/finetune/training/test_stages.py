"""Stages: what a spec says of them, and what is carried from one to the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.models.cuts import InvalidTrainFrom
from finetune.models.heads import head_kind
from finetune.models.heads.head import Assets
from finetune.models.network import HeadNetwork, Network, NoBatchNorm, ThawedNetwork, norms_alone_train
from finetune.models.restore import restore
from finetune.spec import InvalidSpec, JobSpec
from finetune.training.best import evaluation_steps, is_evaluation_step
from finetune.training.checkpoints import AnotherCheckpoint, Checkpoints
from finetune.training.footing import footing_of
from finetune.training.stages import Stage, require_stages, stage_at, stages_of, uses_features
from finetune.training.trainer import Trainer
from tests.tiny import TINY, TINY_FEATURE_DIM, tiny_tensors
from zoo.architectures import ARCHITECTURES, architecture_facts
from zoo.architectures.facts import UnknownEndpoint
from zoo.input_spec import InputSpec

RNG = np.random.default_rng(0)
IMAGES = RNG.random((4, 32, 32, 3), np.float32)
FEATURES = RNG.random((4, TINY_FEATURE_DIM), np.float32)
TARGETS = {"label": np.array([0, 1, 2, 1], np.int32), "weight": np.ones(4, np.float32)}
THREE = [
    {"train_from": "none", "steps": 4, "learning_rate": 0.01},
    {"train_from": "block_14", "steps": 3, "learning_rate": 0.001, "warmup_steps": 2},
    {"train_from": "all", "steps": 5, "schedule": "cosine"},
]


def spec(stages: Any = THREE, *, train: Any = None, **changes: Any) -> JobSpec:
    return JobSpec.parse(
        {
            "name": "n",
            "backbone": "b",
            "head": {"kind": "classifier"},
            "data": {"location": "folder:x"},
            "train": {"stages": stages, **(train or {})},
            **changes,
        }
    )


def test_steps_and_the_cut_are_filled_in_and_a_resolved_spec_is_its_own() -> None:
    plan = spec()
    assert (plan.train.steps, plan.model.train_from) == (12, "all")
    assert plan.train.stage_ends == (4, 7, 12)
    assert JobSpec.parse(plan.to_json()) == plan
    assert spec(train={"steps": 12}, model={"train_from": "all"}) == plan


def test_a_stage_has_its_own_rate_and_the_runs_other_settings() -> None:
    first, second, third = stages_of(spec(train={"optimizer": {"name": "sgd", "learning_rate": 0.5, "clip_norm": 1.0}}))
    assert [(s.first_step, s.last_step, s.thaws) for s in (first, second, third)] == [
        (0, 4, False),
        (4, 7, True),
        (7, 12, True),
    ]
    assert [s.train.optimizer.learning_rate for s in (first, second, third)] == [0.01, 0.001, 0.5]
    assert [s.train.optimizer.warmup_steps for s in (first, second, third)] == [0, 2, 0]
    assert [s.train.optimizer.decay_steps for s in (first, second, third)] == [4, 3, 5]
    assert {s.train.optimizer.clip_norm for s in (first, second, third)} == {1.0}
    assert third.train.optimizer.schedule == "cosine"
    assert "stage 2 of 3, steps 5 to 7" in second.sentence
    assert "backbone from block_14 on" in second.sentence


def test_a_run_without_stages_is_one_stage_and_says_nothing_of_it() -> None:
    plan = spec([], train={"steps": 9}, model={"train_from": "top"})
    (only,) = stages_of(plan)
    assert only == Stage(number=1, first_step=0, last_step=9, train_from="top", train=plan.train)
    assert only.sentence == ""
    assert not uses_features(plan)
    assert uses_features(spec())


def test_a_checkpoint_at_a_boundary_is_of_the_stage_that_ends_there() -> None:
    stages = stages_of(spec())
    assert [stage_at(stages, step).number for step in (0, 1, 4, 5, 7, 8, 12)] == [1, 1, 1, 2, 2, 3, 3]


def test_the_last_step_of_every_stage_is_evaluated() -> None:
    train = spec(train={"evaluate_every": 5}).train
    assert evaluation_steps(train) == [4, 5, 7, 10, 12]
    assert [step for step in range(13) if is_evaluation_step(step, train)] == [4, 5, 7, 10, 12]


@pytest.mark.parametrize(
    ("stages", "changes", "said"),
    [
        ([{"train_from": "none", "steps": 0}], {}, r"train\.stages\.0\.steps: .*greater than or equal to 1"),
        ([{"train_from": "none", "step": 5}], {}, r"train\.stages\.0\.step: unknown key; did you mean steps"),
        ([{"steps": 5}], {}, r"train\.stages\.0\.train_from: required"),
        ([{"train_from": "none", "steps": 5, "warmup_steps": 5}], {}, "never reaches its rate"),
        (THREE, {"train": {"steps": 13}}, "steps is 13, but the stages add up to 12"),
        (THREE, {"model": {"train_from": "block_14"}}, "last of train.stages trains from 'all'"),
        ([THREE[1], THREE[0]], {}, "comes after one that trains more"),
        ([THREE[2], THREE[1]], {}, "comes after one that trains more"),
        (THREE, {"train": {"optimizer": {"l2_sp": {"alfa": 1}}}}, r"l2_sp\.alfa: unknown key; did you mean alpha"),
        (THREE, {"train": {"optimizer": {"l2_sp": {}, "weight_decay": 0.1}}}, "choose one"),
        (THREE, {"train": {"optimizer": {"learning_rate": 0}}}, r"learning_rate: .*greater than 0"),
        ([THREE[0]], {"train": {"optimizer": {"layer_decay": 0.7}}}, "train_from=none there are none"),
        ([THREE[0]], {"model": {"batch_norm": "train"}}, "train_from=none there are none"),
    ],
)
def test_stages_that_cannot_be_meant(stages: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidSpec, match=said):
        spec(stages, **changes)


def test_the_order_of_endpoints_is_the_backbones() -> None:
    facts = ARCHITECTURES["inception_v3"]
    head, tail, whole = ({"train_from": name, "steps": 1} for name in ("none", "last:2", "all"))

    def named(name: str) -> dict[str, Any]:
        return {"train_from": name, "steps": 1}

    require_stages(spec([head, named("Mixed_7b"), named("Mixed_6a"), named("Mixed_6a"), whole]), facts)
    require_stages(spec([head, tail, named("Mixed_7a"), whole]), facts)
    with pytest.raises(InvalidSpec, match="'Mixed_7b' comes after one that trains more"):
        require_stages(spec([named("Mixed_6a"), named("Mixed_7b")]), facts)
    with pytest.raises(UnknownEndpoint, match=r"did you mean .*Mixed_7a"):
        require_stages(spec([head, named("Mixed_7"), whole]), facts)
    with pytest.raises(InvalidTrainFrom, match="last:1 to last:18"):
        require_stages(spec([head, named("last:19")]), facts)
    with pytest.raises(InvalidTrainFrom, match="no endpoints"):
        require_stages(spec([tail]), ARCHITECTURES["hub_module"])


def classifier() -> Any:
    kind = head_kind("classifier")
    assets = Assets(files={}, classes=("a", "b", "c"))
    return kind.build(arguments=kind.Arguments(num_classes=3), feature_dim=TINY_FEATURE_DIM, assets=assets, seed=1)


def network_of(stage: Stage, head: Any, **options: Any) -> Network:
    if not stage.thaws:
        return HeadNetwork(head)
    network = ThawedNetwork(
        head=head,
        architecture=TINY,
        input_spec=InputSpec(height=32, width=32),
        train_from=stage.train_from,
        **options,
    )
    network.restore_backbone(tiny_tensors()).require_complete("the backbone")
    return network


def trainer_of(stage: Stage, stages: Any, network: Network) -> Trainer:
    footing = footing_of(stage, stages, network, architecture_facts(TINY.name))
    return Trainer(network=network, config=stage.train, strategy=tf.distribute.get_strategy(), footing=footing)


def batches(stage: Stage) -> Any:
    inputs = {"image": IMAGES} if stage.thaws else {"feature_vector": FEATURES}
    return iter([(inputs, TARGETS)] * 5)


def arrays(variables: Any) -> dict[str, np.ndarray]:
    return {f"{group}/{n}": v.numpy() for group, members in variables.items() for n, v in members.items()}


def test_a_stage_goes_on_with_weights_averages_slots_and_the_step_of_the_one_before() -> None:
    parts = [{"train_from": name, "steps": 2} for name in ("none", "top", "block_15")]
    stages = stages_of(spec(parts, train={"optimizer": {"name": "adam", "ema_decay": 0.9}}))
    head = classifier()
    trainer = trainer_of(stages[0], stages, network_of(stages[0], head))
    for stage in stages:
        if stage.number > 1:
            before, old = trainer, arrays(trainer.variables)
            trainer = trainer_of(stage, stages, network_of(stage, head))
            trainer.carry_on(before)
            new = arrays(trainer.variables)
            for name, value in old.items():
                if not name.startswith("optimizer/"):
                    np.testing.assert_array_equal(new[name], value, err_msg=name)
            # Slots keep their names; those that join are zero.
            slots = {name: slot.numpy() for name, slot in trainer._optimizer._slots().items()}
            carried = {name: slot.numpy() for name, slot in before._optimizer._slots().items()}
            assert all(np.any(value) for value in carried.values())
            for name, value in slots.items():
                np.testing.assert_array_equal(value, carried.get(name, np.zeros_like(value)), err_msg=name)
            assert len(slots) > len(carried)
        trainer.run(batches(stage), stage.last_step - stage.first_step)
        assert int(trainer.global_step.numpy()) == stage.last_step


def test_a_checkpoint_of_a_later_stage_restores_every_variable(tmp_path: Path) -> None:
    stages = stages_of(spec(train={"optimizer": {"ema_decay": 0.9, "layer_decay": 0.8}}))
    trainer = trainer_of(stages[1], stages, network_of(stages[1], classifier()))
    for variables in trainer.variables.values():
        for variable in variables.values():
            variable.assign(RNG.integers(0, 99, variable.shape).astype(tf.as_dtype(variable.dtype).as_numpy_dtype))
    checkpoints = Checkpoints(tmp_path, digest="d")
    checkpoints.save(trainer.variables, step=6, train_loss=None, seconds=0.0)
    again = trainer_of(stages[1], stages, network_of(stages[1], classifier()))
    checkpoints.restore(again.variables, step=6)
    restored = arrays(again.variables)
    for name, value in arrays(trainer.variables).items():
        np.testing.assert_array_equal(restored[name], value, err_msg=name)
    with pytest.raises(AnotherCheckpoint, match="backbone/"):
        checkpoints.restore(trainer_of(stages[0], stages, network_of(stages[0], classifier())).variables, step=6)


def test_variables_that_join_are_corrected_by_their_own_count_of_updates() -> None:
    """Adam's first update is the rate, whatever the gradient: not three times as much because the step is 1000."""
    plan = spec(
        [
            {"train_from": "none", "steps": 1000},
            {"train_from": "top", "steps": 5, "learning_rate": 0.001},
        ],
        train={"optimizer": {"name": "adam", "clip_norm": None}},
    )
    stages = stages_of(plan)
    network = network_of(stages[1], classifier())
    trainer = trainer_of(stages[1], stages, network)
    trainer.global_step.assign(1000)
    before = network.groups["backbone"]["top/kernel"].numpy()
    trainer.run(batches(stages[1]), 1)
    moved = np.abs(network.groups["backbone"]["top/kernel"].numpy() - before)
    assert np.median(moved[moved > 0]) == pytest.approx(0.001, rel=0.02)
    assert moved.max() < 0.00101


def test_the_rate_falls_with_the_distance_from_the_head() -> None:
    """SGD's update is rate × gradient: the same batch with and without decay."""
    moved = []
    for decay in (1.0, 0.5):
        plan = spec(
            [{"train_from": "block_14", "steps": 5}],
            train={"optimizer": {"name": "sgd", "learning_rate": 0.01, "clip_norm": None, "layer_decay": decay}},
        )
        (stage,) = stages_of(plan)
        network = network_of(stage, classifier())
        before = arrays(network.groups)
        trainer_of(stage, (stage,), network).run(batches(stage), 1)
        after = arrays(network.groups)
        moved.append({name: float(np.linalg.norm(after[name] - before[name])) for name in before})
    expected = {"head/": 1, "backbone/top/": 0.5, "backbone/block_15/": 0.25, "backbone/block_14/": 0.125}
    for prefix, factor in expected.items():
        ratios = [moved[1][n] / moved[0][n] for n in moved[0] if n.startswith(prefix) and moved[0][n] > 1e-6]
        assert ratios == pytest.approx([factor] * len(ratios), rel=1e-2), prefix
        assert ratios


def test_l2_sp_pulls_the_backbone_to_its_start_and_the_head_to_zero() -> None:
    """Where the loss has no gradient (every row weighs nothing) the penalty alone moves weights."""
    plan = spec(
        [{"train_from": "top", "steps": 5}],
        train={
            "optimizer": {
                "name": "sgd",
                "learning_rate": 0.1,
                "clip_norm": None,
                "l2_sp": {"alpha": 0.5, "beta": 0.25},
            }
        },
    )
    (stage,) = stages_of(plan)
    network = network_of(stage, classifier())
    trainer = trainer_of(stage, (stage,), network)
    away = {name: value + 1.0 for name, value in tiny_tensors().items() if name.startswith("top/")}
    restore(network.groups["backbone"], away).require_complete("moved weights")
    before = arrays(network.groups)
    nothing = ({"image": IMAGES}, {**TARGETS, "weight": np.zeros(4, np.float32)})
    trainer.run(iter([nothing]), 1)
    after = arrays(network.groups)
    start = tiny_tensors()["top/kernel"]
    np.testing.assert_allclose(after["backbone/top/kernel"], start + 1.0 - 0.1 * 0.5, rtol=1e-5)
    np.testing.assert_array_equal(after["backbone/top/gamma"], before["backbone/top/gamma"])  # no matrix
    kernels = [name for name in before if name.startswith("head/") and before[name].ndim == 2]
    assert kernels
    for name in kernels:
        np.testing.assert_allclose(after[name], before[name] * (1 - 0.1 * 0.25), rtol=1e-5)


def test_batch_norm_that_is_trained_keeps_moving_averages_and_others_stay() -> None:
    plan = spec([{"train_from": "top", "steps": 5}], train={"optimizer": {"name": "sgd", "learning_rate": 1e-9}})
    (stage,) = stages_of(plan)
    network = network_of(stage, classifier(), batch_norm="train")
    assert isinstance(network, ThawedNetwork)
    assert network.momentum == pytest.approx(0.99)
    start = tiny_tensors()
    trunk_BHWC = network._trunk(IMAGES, training=False)  # type: ignore[misc]
    x_BHWC = tf.nn.conv2d(trunk_BHWC, start["top/kernel"], 1, "SAME").numpy()
    before = network.backbone_arrays()
    trainer_of(stage, (stage,), network).run(batches(stage), 1)
    after = network.backbone_arrays()
    for name, batch in {"mean": x_BHWC.mean((0, 1, 2)), "variance": x_BHWC.var((0, 1, 2))}.items():
        expected = 0.99 * start[f"top/moving_{name}"] + 0.01 * batch
        np.testing.assert_allclose(after[f"top/moving_{name}"], expected, rtol=1e-4, atol=1e-6)
    moved = {name for name in after if "/moving_" in name and not np.array_equal(after[name], before[name])}
    assert moved == {"top/moving_mean", "top/moving_variance"}
    network.features(IMAGES)  # to evaluate moves nothing
    np.testing.assert_array_equal(network.backbone_arrays()["top/moving_mean"], after["top/moving_mean"])


def test_batch_norm_to_train_where_there_is_none_is_refused_and_dropout_never_trains() -> None:
    image = keras.Input((4, 4, 3))
    with pytest.raises(NoBatchNorm, match="has no BatchNorm"):
        norms_alone_train(keras.Model(image, keras.layers.ReLU()(image)))
    dropped = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(image))
    model = keras.Model(image, dropped)
    assert len(norms_alone_train(model)) == 1
    assert np.all(model(np.random.default_rng(0).random((9, 4, 4, 3)), training=True).numpy() != 0)
