"""JobSpec: faults named with their path, settings read as YAML."""

from __future__ import annotations

from typing import Any

import pytest

from finetune.spec import InvalidSpec, JobSpec, with_settings
from zoo.names import InvalidName

SPEC: dict[str, Any] = {
    "name": "captions",
    "backbone": "inception_v3@2",
    "head": {"kind": "captioner"},
    "data": {"location": "flickr:photos"},
}


def test_a_spec_survives_json() -> None:
    spec = JobSpec.parse(SPEC)
    assert JobSpec.parse(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["train.step=5"], ["train.step: unknown key", "did you mean", "steps"]),
        (["train.optimizer.learning_rat=1"], ["train.optimizer.learning_rat: unknown key", "learning_rate"]),
        (["trian.steps=5"], ["trian: unknown key", "train"]),
        (["data.xyzzy=1"], ["data.xyzzy: unknown key", "known: ", "location"]),
        (["train.steps=0"], ["train.steps", "greater than or equal to 1", "got 0"]),
        (["train.optimizer.learning_rate=0"], ["learning_rate", "greater than 0"]),
        (["train.optimizer.learning_rate=.nan"], ["learning_rate", "finite number"]),
        (["train.steps=many"], ["train.steps", "'many'"]),
        (["strategy.kind=allreduce"], ["strategy.kind", "'one-device'", "'all-reduce'", "'allreduce'"]),
        (["strategy.workers=2"], ["strategy", "one-device has 1 worker"]),
        (["strategy.kind=parameter-server"], ["strategy", "ps of at least 1"]),
        (["strategy.kind=all-reduce", "strategy.ps=1"], ["strategy", "all-reduce has no parameter servers"]),
        (["strategy.kind=mirrored", "strategy.ps=1"], ["strategy", "mirrored has no parameter servers"]),
        (
            ["strategy.kind=all-reduce", "strategy.workers=2", "debug.check_numerics=true", "debug.profile='1:2'"],
            ["debug.check_numerics, debug.profile", "all-reduce"],
        ),
    ],
)
def test_a_fault_is_named_with_its_path(settings: list[str], told: list[str]) -> None:
    with pytest.raises(InvalidSpec) as error:
        JobSpec.parse(with_settings(SPEC, settings))
    for part in told:
        assert part in str(error.value)


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(InvalidSpec, match=r"train\.steps.*train\.seeed"):
        JobSpec.parse(with_settings(SPEC, ["train.steps=0", "train.seeed=3"]))


@pytest.mark.parametrize("name", ["", "a b", "../up", "a//b", "a/", "é", "a" * 201, "-a", "a@1"])
def test_a_model_name_that_cannot_be_one(name: str) -> None:
    with pytest.raises(InvalidName, match="cannot be one"):
        JobSpec.parse(SPEC | {"name": name})


@pytest.mark.parametrize(
    ("text", "value"),
    [("5", 5), ("1e-3", 1e-3), ("0.5", 0.5), ("true", True), ("null", None), ("word", "word"), ("[1, 2]", [1, 2])],
)
def test_a_setting_is_read_as_yaml(text: str, value: object) -> None:
    assert with_settings({}, [f"a.b={text}"]) == {"a": {"b": value}}


@pytest.mark.parametrize("setting", ["train.steps", "=5", "a..b=1", "a=[1"])
def test_a_setting_that_is_none(setting: str) -> None:
    with pytest.raises(InvalidSpec, match="--set"):
        with_settings({}, [setting])


def test_settings_do_not_change_what_they_are_laid_over() -> None:
    under = {"train": {"steps": 1}}
    with_settings(under, ["train.steps=2"])
    assert under == {"train": {"steps": 1}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": {"augment": {"mirror": True}}}, "frozen backbone's features are computed once"),
        ({"data": {"augment": {"mirror": True}, "views": 2}, "model": {"train_from": "top"}}, r"data\.views is 2"),
        ({"data": {"augment": {"mixup": 0.2}}, "model": {"train_from": "top"}}, "no caption describes"),
        ({"data": {"augment": {"crops": "inception"}}, "model": {"train_from": "top"}}, "did you mean crop"),
        ({"data": {"augment": {"mixup": 7}}, "model": {"train_from": "top"}}, r"data\.augment\.mixup"),
    ],
)
def test_augmentation_that_can_do_nothing_is_refused(changes: dict[str, Any], said: str) -> None:
    value = {"name": "n", "backbone": "b", "head": {"kind": "captioner"}, "data": {"location": "scenes:count=20"}}
    value |= {"data": {**value["data"], **changes["data"]}, "model": changes.get("model", {})}  # type: ignore[dict-item]
    with pytest.raises(InvalidSpec, match=said):
        JobSpec.parse(value)


def test_augmentation_goes_with_a_backbone_that_is_trained() -> None:
    spec = JobSpec.parse(
        {
            "name": "n",
            "backbone": "b",
            "head": {"kind": "classifier"},
            "data": {"location": "folder:x", "augment": {"crop": "inception", "mixup": 0.2}},
            "model": {"train_from": "Mixed_7a"},
        }
    )
    assert spec.data.augment.crop == "inception"
    assert JobSpec.parse(spec.to_json()) == spec


def test_what_came_later_is_in_the_json_only_where_it_says_something() -> None:
    """So the digest of an older job's spec, by which its Checkpoints are known, is the same today."""
    plain = JobSpec.parse(SPEC)
    assert "save_seconds" not in plain.to_json()["train"]
    assert not {"order", "order_power", "features"} & plain.to_json()["data"].keys()
    assert "accumulate" not in plain.to_json()["train"]["optimizer"]
    spec = JobSpec.parse(SPEC | {"train": {"keep_hours": 2, "optimizer": {"accumulate": 3}}})
    told = spec.to_json()
    assert (told["train"]["keep_hours"], told["train"]["optimizer"]["accumulate"]) == (2, 3)
    assert JobSpec.parse(told) == spec
    assert JobSpec.parse(plain.to_json()) == plain


def test_half_precision_is_for_features_that_are_kept() -> None:
    value = JobSpec.parse(SPEC).to_json()
    assert JobSpec.parse(value | {"data": value["data"] | {"features": "float16"}}).data.features == "float16"
    thawed = value | {"data": value["data"] | {"features": "float16"}, "model": {"train_from": "all"}}
    with pytest.raises(InvalidSpec, match=r"data\.features is float16: no features are kept"):
        JobSpec.parse(thawed)
