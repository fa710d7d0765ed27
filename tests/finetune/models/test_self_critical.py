"""Self-critical training: what is drawn, what it is worth, and which way the weights go."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.metrics.bleu import bleu
from finetune.metrics.cider import CiderScorer
from finetune.models.heads.captioner import CAPTIONER, CaptionerArguments
from finetune.models.heads.captioner_layer import CaptionerLayer
from finetune.models.heads.self_critical import CaptionReward, NoReferencesToLearnFrom
from finetune.spec import InvalidSpec, JobSpec
from finetune.text.tokenizer import tokenize
from finetune.text.vocabulary import END, PAD, START
from tests.finetune.models.toy_captioner import examples_of, features_of, make, sharpen

CAPTIONS = [
    ["a black dog runs", "the dog runs fast"],
    ["a white cat sits", "the cat sits still"],
    ["a red bird flies", "the bird flies high"],
]


def toy(**arguments: Any) -> tuple[CaptionerLayer, dict[str, tf.Tensor], dict[str, tf.Tensor]]:
    """A captioner with its references, and one batch of all rows."""
    layer, table, _, _ = make(CAPTIONS, **({"self_critical_from": 0} | arguments))
    layer.learn_from(examples_of(CAPTIONS))
    features = {"feature_vector": tf.constant(features_of(3)[table.image_index])}
    targets = {name: tf.constant(array) for name, array in table.arrays.items()}
    return layer, features, targets | {"weight": tf.ones([len(table.image_index)])}


def draw(layer: CaptionerLayer, features: dict[str, tf.Tensor], count: int, step: int) -> np.ndarray:
    return np.asarray(layer._critic._draw(layer.row.split(features), count, tf.constant(step, tf.int64)))


def test_rewards_are_cider_with_the_end_as_a_word() -> None:
    layer, _, _ = toy(self_critical_bleu=0.5)
    reward = CaptionReward(layer, examples_of(CAPTIONS))
    words = ["a", "black", "dog", "runs"]
    numbers = layer.vocabulary.encode(words)
    tokens_BKT = np.array([[[*numbers, END, PAD], [*numbers, PAD, PAD]], [[*numbers, END, PAD], [END] + [PAD] * 5]])
    found = reward(np.array([0, 1]), tokens_BKT)
    truths = [[[*tokenize(c), "</s>"] for c in captions] for captions in CAPTIONS]
    scorer = CiderScorer(truths)
    said = [[*words, "</s>"], words, [*words, "</s>"], ["</s>"]]
    expected = [
        scorer.score(image, caption) + 0.5 * bleu([caption], [truths[image]])[3]
        for image, caption in zip([0, 0, 1, 1], said, strict=True)
    ]
    np.testing.assert_allclose(found.reshape(-1), expected, rtol=1e-5)
    assert found[0, 0] > found[0, 1] > found[1, 0]


@pytest.mark.parametrize("kind", ["characters", "sentencepiece"])
def test_rewards_count_words_whatever_a_token_is(kind: str) -> None:
    if kind == "sentencepiece":
        pytest.importorskip("sentencepiece")
    layer, _, _ = toy(tokenizer=kind, pieces=60, max_words=30)
    plain, _, _ = toy()
    said = "a black dog runs"

    def rewarded(layer: CaptionerLayer) -> float:
        numbers = layer.vocabulary.encode(layer.vocabulary.cutter.tokenize(said))
        return float(CaptionReward(layer, examples_of(CAPTIONS))(np.array([0]), np.array([[[*numbers, END]]]))[0, 0])

    assert rewarded(layer) == pytest.approx(rewarded(plain), rel=1e-6)


def test_what_is_drawn_are_captions_by_the_models_own_chances() -> None:
    layer, features, _ = toy(max_words=3)
    sharpen(layer, 0.8)
    one = {"feature_vector": features["feature_vector"][:1]}
    tokens = draw(layer, one, 4000, step=5)
    for row in tokens.tolist():
        ended = row.index(END) if END in row else len(row)
        assert PAD not in row[: min(ended, 3)]
        assert all(word == PAD for word in row[ended + 1 :])
        assert START not in row
        assert END in row or (len(row) == 4 and row[3] == PAD)  # a fourth word isn't said
    state, memory = layer.start(one["feature_vector"])
    logits = layer.logits(layer.advance(tf.constant([START]), state, memory).output_NU).numpy()[0]
    logits[[PAD, START]] = -1e9
    chances = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    seen = np.bincount(tokens[:, 0], minlength=len(chances)) / len(tokens)
    assert np.abs(seen - chances).max() < 5 * np.sqrt(0.25 / len(tokens))


def test_draws_depend_on_the_step_alone() -> None:
    layer, features, _ = toy()
    first = draw(layer, features, 3, step=7)
    np.testing.assert_array_equal(draw(layer, features, 3, step=7), first)
    other = draw(layer, features, 3, step=8)
    assert first.shape != other.shape or (first != other).any()


def test_the_loss_is_that_of_drawn_captions_by_their_advantage() -> None:
    layer, features, targets = toy(self_critical_samples=4)
    sharpen(layer, 0.5)
    step = tf.Variable(3, dtype=tf.int64)
    layer.follow_steps(step)
    targets["weight"] = tf.constant([1.0, 1, 1, 1, 1, 0])  # the last row only fills the batch
    terms = layer.loss(features, targets, training=True)
    tokens = draw(layer, features, 4, step=3)
    reward = CaptionReward(layer, examples_of(CAPTIONS))(targets["image"].numpy(), tokens.reshape(6, 4, -1))
    advantage = (reward - (reward.sum(axis=1, keepdims=True) - reward) / 3)[:5].reshape(-1)
    total = 0.0
    for weight, row, image in zip(advantage, tokens, np.repeat(np.arange(6), 4), strict=False):
        one = {"feature_vector": features["feature_vector"][image : image + 1]}
        alone = layer.word_loss(one, {"tokens": tf.constant(row[np.newaxis]), "weight": tf.ones([1])})
        total += float(weight) * float(alone.loss_sum)
    assert float(terms.loss_sum) == pytest.approx(total, rel=1e-4, abs=1e-4)
    assert float(terms.weight_sum) == (tokens.reshape(6, 4, -1)[:5] != PAD).sum()
    reward_sum, rewarded = terms.metrics["reward"]
    assert float(rewarded) == 20
    assert float(reward_sum) == pytest.approx(reward[:5].sum(), rel=1e-5)


def test_before_the_step_nothing_is_otherwise() -> None:
    layer, features, targets = toy(self_critical_from=10)
    plain, _, _, _ = make(CAPTIONS)
    assert "image" not in make(CAPTIONS)[1].arrays
    layer.follow_steps(tf.Variable(9, dtype=tf.int64))
    ours, theirs = layer.loss(features, targets, training=True), plain.loss(features, targets, training=True)
    assert float(ours.loss_sum) == float(theirs.loss_sum)
    assert float(ours.weight_sum) == float(theirs.weight_sum)
    assert float(ours.metrics["reward"][1]) == 0
    evaluated = layer.loss(features, targets, training=False)
    assert "reward" not in evaluated.metrics


@pytest.mark.slow
def test_captions_get_better_by_their_reward() -> None:
    layer, features, targets = toy(self_critical_samples=8, self_critical_from=60)
    step = tf.Variable(0, dtype=tf.int64)
    layer.follow_steps(step)
    optimizer = keras.optimizers.Adam(0.01)
    variables = layer.trainable_variables
    optimizer.build(variables)

    @tf.function
    def once() -> tf.Tensor:
        with tf.GradientTape() as tape:
            terms = layer.loss(features, targets, training=True)
            loss = terms.loss_sum / terms.weight_sum
        gradients = tape.gradient(loss, [variable.value for variable in variables])
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        step.assign_add(1)
        reward_sum, rewarded = terms.metrics["reward"]
        return reward_sum / tf.maximum(rewarded, 1)

    rewards = [float(once()) for _ in range(160)]
    assert max(rewards[:60]) == 0
    assert np.mean(rewards[-20:]) > np.mean(rewards[60:70]) + 0.5
    metrics = layer.evaluate(features_of(3), examples_of(CAPTIONS))
    assert metrics["cider"] > 2


def test_a_captioner_that_nobody_showed_references_says_so() -> None:
    layer, _, _, _ = make(CAPTIONS, self_critical_from=0)
    with pytest.raises(NoReferencesToLearnFrom):
        layer.follow_steps(tf.Variable(0, dtype=tf.int64))
    make(CAPTIONS)[0].follow_steps(tf.Variable(0, dtype=tf.int64))  # who asks for none needs none


def test_a_plan_that_ends_before_it_begins_is_warned_of() -> None:
    value: dict[str, Any] = {"name": "m", "backbone": "b", "data": {"location": "scenes:"}, "train": {"steps": 50}}
    for begins, warned in ((49, 0), (50, 1)):
        value["head"] = {"kind": "captioner", "arguments": {"self_critical_from": begins}}
        spec = JobSpec.parse(value)
        arguments = CaptionerArguments.model_validate(value["head"]["arguments"])
        assert len(CAPTIONER.plan_warnings([], arguments, spec)) == warned


def test_parameter_servers_reward_nobody() -> None:
    value: dict[str, Any] = {"name": "m", "backbone": "b", "data": {"location": "scenes:"}}
    value["head"] = {"kind": "captioner", "arguments": {"self_critical_from": 10}}
    assert JobSpec.parse(value).head.arguments["self_critical_from"] == 10
    with pytest.raises(InvalidSpec, match="self_critical_from"):
        JobSpec.parse({**value, "strategy": {"kind": "parameter-server", "workers": 2, "ps": 1}})
