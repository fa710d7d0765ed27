"""A thawed backbone: cut where it is asked, trained behind the cut, unchanged before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from finetune.models.backbone import build_backbone
from finetune.models.cuts import cut_before
from finetune.models.heads import head_kind
from finetune.models.heads.head import Assets
from finetune.models.network import HeadNetwork, ThawedNetwork
from finetune.models.restore import named_variables, restore
from finetune.spec import OptimizerConfig, TrainConfig
from finetune.training.trainer import Trainer
from tests.tiny import TINY, TINY_FEATURE_DIM, tiny_tensors
from zoo.architectures import ARCHITECTURES
from zoo.architectures.facts import UnknownEndpoint
from zoo.input_spec import InputSpec

SPEC = InputSpec(height=32, width=32)
RNG = np.random.default_rng(0)
IMAGES = RNG.random((4, 32, 32, 3), np.float32)
TARGETS = {"label": np.array([0, 1, 2, 1], np.int32), "weight": np.ones(4, np.float32)}


def classifier() -> Any:
    kind = head_kind("classifier")
    return kind.build(
        arguments=kind.Arguments(num_classes=3),
        feature_dim=TINY_FEATURE_DIM,
        assets=Assets(files={}, classes=("a", "b", "c")),
        seed=1,
    )


def thawed(train_from: str) -> ThawedNetwork:
    network = ThawedNetwork(head=classifier(), architecture=TINY, input_spec=SPEC, train_from=train_from)
    network.restore_backbone(tiny_tensors()).require_complete("the backbone")
    return network


@pytest.mark.parametrize("train_from", ["all", "block_0", "block_6", "block_15", "top"])
def test_features_are_those_of_the_frozen_backbone_to_the_bit(train_from: str) -> None:
    frozen = build_backbone(TINY, SPEC)
    restore(named_variables(frozen), tiny_tensors()).require_complete("the backbone")
    features = thawed(train_from).features(IMAGES)
    for name, value in frozen(IMAGES).items():
        np.testing.assert_array_equal(features[name], value)


@pytest.mark.parametrize("train_from", ["all", "block_15"])
def test_what_lies_behind_the_cut_is_trained_and_nothing_else(train_from: str) -> None:
    network = thawed(train_from)
    config = TrainConfig(steps=3, optimizer=OptimizerConfig(name="sgd", learning_rate=0.1))
    trainer = Trainer(network=network, config=config, strategy=tf.distribute.get_strategy())
    before = network.backbone_arrays()
    stretch = trainer.run(iter([({"image": IMAGES}, TARGETS)] * 3), 3)
    after = network.backbone_arrays()
    assert (stretch.steps, stretch.examples) == (3, 12)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    statistics = {name for name in before if "/moving_" in name}
    behind = {name for name in before if train_from == "all" or name.startswith(("block_15/", "top/"))}
    assert changed == behind - statistics  # BatchNorm infers, so that its statistics stay
    assert set(network.groups["backbone"]) == behind
    assert set(trainer.variables) >= {"head", "backbone", "optimizer"}


def test_a_step_is_what_plain_tensorflow_computes() -> None:
    """One step of SGD on the whole network, written out."""
    network, plain = thawed("all"), thawed("all")
    config = TrainConfig(steps=1, optimizer=OptimizerConfig(name="sgd", learning_rate=0.5, clip_norm=None))
    trainer = Trainer(network=network, config=config, strategy=tf.distribute.get_strategy())
    trainer.run(iter([({"image": IMAGES}, TARGETS)]), 1)
    variables = [variable.value for variable in plain.trainable_variables]
    with tf.GradientTape() as tape:
        logits = plain.head.logits(plain.features(IMAGES)["feature_vector"])  # type: ignore[attr-defined]
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(TARGETS["label"], logits))
    for variable, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
        variable.assign_sub(0.5 * gradient)
    for name, value in plain.backbone_arrays().items():
        np.testing.assert_allclose(network.backbone_arrays()[name], value, atol=2e-6, rtol=2e-5, err_msg=name)


def test_mixed_pictures_cost_by_their_shares() -> None:
    network = thawed("top")
    partner, share = np.array([1, 2, 3, 0], np.int32), np.array([1.0, 0.7, 0.5, 0.0], np.float32)
    mixed = network.loss({"image": IMAGES, "partner": partner, "share": share}, TARGETS, training=False)
    logits = network.head.logits(network.features(IMAGES)["feature_vector"])  # type: ignore[attr-defined]
    own, other = (
        tf.nn.sparse_softmax_cross_entropy_with_logits(TARGETS["label"][rows], logits).numpy()
        for rows in (np.arange(4), partner)
    )
    assert float(mixed.loss_sum) == pytest.approx(float((share * own + (1 - share) * other).sum()), rel=1e-5)
    assert float(mixed.weight_sum) == pytest.approx(4.0)
    plain = network.loss({"image": IMAGES}, TARGETS, training=False)
    same = network.loss({"image": IMAGES, "partner": partner, "share": np.ones(4, np.float32)}, TARGETS, training=False)
    assert float(same.loss_sum) == pytest.approx(float(plain.loss_sum), rel=1e-6)


def test_python_batches_train_as_tensorflows_do() -> None:
    features = RNG.random((4, TINY_FEATURE_DIM), np.float32)
    batch = ({"feature_vector": features}, TARGETS)
    results = []
    for batches in (iter([batch] * 5), iter(tf.data.Dataset.from_tensors(batch).repeat())):
        network = HeadNetwork(classifier())
        trainer = Trainer(network=network, config=TrainConfig(steps=5), strategy=tf.distribute.get_strategy())
        stretch = trainer.run(batches, 5)
        assert stretch.waited_seconds >= 0
        results.append({name: variable.numpy() for name, variable in network.groups["head"].items()})
    for name, value in results[0].items():
        np.testing.assert_allclose(results[1][name], value, rtol=1e-6, err_msg=name)


def test_the_cut_lies_before_the_first_block_that_is_trained() -> None:
    facts = ARCHITECTURES["inception_v3"]
    assert cut_before(facts, "Mixed_7a") == "Mixed_6e"
    assert cut_before(facts, "Mixed_5b") == "MaxPool_5a_3x3"
    assert cut_before(facts, facts.endpoints[0].name) is None
    assert cut_before(facts, "all") is None
    with pytest.raises(UnknownEndpoint, match=r"did you mean .*Mixed_7a"):
        cut_before(facts, "Mixed_7")
