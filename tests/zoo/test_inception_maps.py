"""TF-Slim's names of Inception v1, v2 and v3: gammas, numbers of classes, networks that are close but others."""

from __future__ import annotations

import numpy as np
import pytest

from zoo.architectures import ARCHITECTURES
from zoo.architectures.choosing import choose
from zoo.architectures.matching import Match, convert
from zoo.imported_head import head_record
from zoo.readers.checkpoint import ForeignCheckpoint

NETWORKS = {"inception_v1": "InceptionV1", "inception_v2": "InceptionV2", "inception_v3": "InceptionV3"}
LOGITS = {
    "inception_v1": "InceptionV1/Logits/Conv2d_0c_1x1",
    "inception_v2": "InceptionV2/Logits/Conv2d_1c_1x1",
    "inception_v3": "InceptionV3/Logits/Conv2d_1c_1x1",
}
EVERY = pytest.mark.parametrize("name", NETWORKS)


def slim_tensors(name: str, *, width: float = 1.0) -> dict[str, np.ndarray]:
    """A backbone under Slim's names, without gammas, every tensor with values of its own."""
    facts = ARCHITECTURES[name]
    shapes = facts.tensor_shapes(facts.resolved({}))
    stored = facts.name_maps["slim"].backbone(facts.resolved({}))
    rng = np.random.default_rng(0)

    def scaled(shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(int(side * width) if side > 8 else side for side in shape)

    return {n: rng.random(scaled(shapes[target.name]), np.float32) + 0.5 for n, target in stored.items()}


def with_logits(stored: dict[str, np.ndarray], name: str, classes: int, inputs: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    kernel, bias = rng.random((1, 1, inputs, classes), np.float32), rng.random(classes, np.float32)
    return {**stored, f"{LOGITS[name]}/weights": kernel, f"{LOGITS[name]}/biases": bias}


def gammas_of(stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(2)
    betas = [name for name in stored if name.endswith("/BatchNorm/beta")]
    return {n.replace("/beta", "/gamma"): rng.random(stored[n].shape, np.float32) + 0.5 for n in betas}


def chosen(stored: dict[str, np.ndarray]) -> tuple[ForeignCheckpoint, Match]:
    """What an import makes of it without being told the architecture."""
    checkpoint = ForeignCheckpoint(files=(), tensors=stored, frameworks=("slim",))
    return checkpoint, choose(checkpoint, "a checkpoint", None, {})


@EVERY
def test_gammas_are_multiplied_into_kernel_and_mean(name: str) -> None:
    stored = slim_tensors(name)
    gammas = gammas_of(stored)
    checkpoint, found = chosen(stored | gammas)
    assert (found.facts.name, found.layout) == (name, "slim-gamma")
    assert found.report.complete
    assert {n for n, why in found.report.unused.items() if "gamma" in why} == set(gammas)
    backbone = convert(checkpoint, found)["backbone"]
    for n, gamma in gammas.items():
        at = n.removesuffix("/BatchNorm/gamma")
        scope = at.removeprefix(f"{NETWORKS[name]}/")
        np.testing.assert_array_equal(backbone[f"{scope}/kernel"], stored[f"{at}/weights"] * gamma)
        np.testing.assert_array_equal(backbone[f"{scope}/moving_mean"], stored[f"{at}/BatchNorm/moving_mean"] * gamma)
        np.testing.assert_array_equal(backbone[f"{scope}/beta"], stored[f"{at}/BatchNorm/beta"])
        np.testing.assert_array_equal(backbone[f"{scope}/moving_variance"], stored[f"{at}/BatchNorm/moving_variance"])


@EVERY
def test_without_gammas_it_is_the_other_map(name: str) -> None:
    checkpoint, found = chosen(slim_tensors(name))
    assert (found.facts.name, found.layout) == (name, "slim")
    assert found.report.complete
    assert head_record(found, convert(checkpoint, found).get("head")) is None


@EVERY
def test_a_gamma_that_is_missing_is_named_and_no_other(name: str) -> None:
    stored = slim_tensors(name)
    gammas = gammas_of(stored)
    lost = next(iter(gammas))
    del gammas[lost]
    _, found = chosen(stored | gammas)
    assert found.layout == "slim-gamma"
    assert len(found.report.missing) == 1
    assert lost in found.report.missing[0]
    assert not found.report.unexplained


@EVERY
def test_a_tensor_that_is_missing_is_named_and_gammas_are_not(name: str) -> None:
    stored = slim_tensors(name)
    lost = next(n for n in stored if "/Mixed_5c/" in n)
    del stored[lost]
    _, found = chosen(stored)
    assert found.layout == "slim"
    assert [lost in line for line in found.report.missing] == [True]


@EVERY
@pytest.mark.parametrize("classes", [1001, 1000, 5])
def test_any_number_of_classes(name: str, classes: int) -> None:
    width = ARCHITECTURES[name].feature_dim({})
    stored = with_logits(slim_tensors(name), name, classes, width)
    checkpoint, found = chosen(stored)
    head = convert(checkpoint, found)["head"]
    record = head_record(found, head)
    assert record is not None
    assert record.arguments["num_classes"] == classes
    np.testing.assert_array_equal(head["logits/kernel"], stored[f"{LOGITS[name]}/weights"][0, 0], strict=True)
    np.testing.assert_array_equal(head["logits/bias"], stored[f"{LOGITS[name]}/biases"], strict=True)


@EVERY
def test_logits_over_features_of_another_width(name: str) -> None:
    _, found = chosen(with_logits(slim_tensors(name), name, 1001, 768))
    assert [(m.name, m.stored) for m in found.report.mismatched] == [("head/logits/kernel", (768, 1001))]
    assert found.report.guess is not None
    assert "output layer" in found.report.guess


@EVERY
@pytest.mark.parametrize("width", [0.75, 1.5])
def test_slims_depth_multiplier_is_guessed(name: str, width: float) -> None:
    _, found = chosen(slim_tensors(name, width=width))
    assert found.facts.name == name
    assert len(found.report.mismatched) > 200
    assert found.report.guess is not None
    assert f"at {width} times the width" in found.report.guess


@EVERY
def test_auxiliary_logits_and_the_step_are_explained(name: str) -> None:
    odd = {f"{NETWORKS[name]}/AuxLogits/Conv2d_2b_1x1/biases": np.zeros(7, np.float32), "global_step": np.array(3)}
    stranger = {f"{NETWORKS[name]}/Mixed_9z/weights": np.zeros(7, np.float32)}
    _, found = chosen(slim_tensors(name) | odd)
    assert found.report.complete
    assert set(found.report.unused) == set(odd)
    _, found = chosen(slim_tensors(name) | odd | stranger)
    assert set(found.report.unexplained) == set(stranger)
