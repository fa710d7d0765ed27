from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from zoo.architectures import ARCHITECTURES, UnknownArchitecture, architecture_facts
from zoo.architectures.efficientnet_lite import VARIANTS, plan
from zoo.architectures.facts import ArchitectureFacts, InvalidArguments

NAMED = [facts for facts in ARCHITECTURES.values() if not facts.assets]  # name and arguments say all of the network
EVERY = pytest.mark.parametrize("facts", NAMED, ids=lambda facts: facts.name)


def test_the_published_parameter_counts() -> None:
    counts = {
        name: sum(math.prod(shape) for shape in facts.tensor_shapes(facts.resolved({})).values())
        for name, facts in ARCHITECTURES.items()
    }
    assert counts["inception_v3"] == 21_802_784  # keras.applications, without its output layer
    statistics = 2 * sum(
        shape[0]
        for name, shape in ARCHITECTURES["efficientnet_lite0"].tensor_shapes({"width": 1.0}).items()
        if name.endswith("/moving_mean")
    )
    # Published: 4,652,008 trainable parameters, output layer (1280 × 1000 + 1000) included, moving statistics not.
    assert counts["efficientnet_lite0"] - statistics + 1_281_000 == 4_652_008
    for name, facts in ARCHITECTURES.items():
        assert facts.parameters == counts[name]


@EVERY
def test_every_map_reaches_every_tensor_once(facts: ArchitectureFacts) -> None:
    for layout, name_map in facts.name_maps.items():
        arguments = facts.resolved(name_map.arguments)
        targets = [target.name for target in name_map.backbone(arguments).values()]
        assert sorted(targets) == sorted(facts.tensor_shapes(arguments)), layout
        assert not set(name_map.head) & set(name_map.backbone(arguments)), layout


@EVERY
def test_the_last_endpoint_is_the_feature_map(facts: ArchitectureFacts) -> None:
    assert facts.endpoints[-1].channels == facts.feature_dim(facts.resolved({}))


@pytest.mark.parametrize(
    ("name", "layout", "file"),
    [
        ("efficientnet_lite0", "timm", "tf_efficientnet_lite0.timm.shapes.json"),
        ("inception_v3", "torch", "inception_v3.timm.shapes.json"),
    ],
)
def test_maps_have_the_names_and_shapes_that_timm_writes(name: str, layout: str, file: str, shared: Path) -> None:
    stored = json.loads((shared / "checkpoints/seeded" / file).read_text())
    facts = ARCHITECTURES[name]
    name_map = facts.name_maps[layout]
    arguments = facts.resolved(name_map.arguments)
    shapes = facts.tensor_shapes(arguments)
    order = {"same": (0, 1, 2, 3), "conv_oihw": (2, 3, 1, 0), "depthwise_oihw": (2, 3, 0, 1)}
    for foreign, target in name_map.backbone(arguments).items():
        theirs = stored[foreign]
        axes = order[target.layout][: len(theirs)]
        assert tuple(theirs[axis] for axis in axes) == shapes[target.name], foreign


def test_scopes_are_those_of_tf_slim(shared: Path) -> None:
    stored = json.loads((shared / "checkpoints/seeded/inception_v3.slim.shapes.json").read_text())
    slim = {
        name.removeprefix("InceptionV3/").removesuffix("/weights"): tuple(shape)
        for name, shape in stored.items()
        if name.endswith("/weights") and "Logits" not in name
    }
    shapes = ARCHITECTURES["inception_v3"].tensor_shapes({})
    ours = {name.removesuffix("/kernel"): shape for name, shape in shapes.items() if name.endswith("/kernel")}
    assert ours == slim


def test_an_unknown_architecture_says_what_there_is() -> None:
    with pytest.raises(UnknownArchitecture, match=r"did you mean 'inception_v3'.*efficientnet_lite0, .*inception_v3"):
        architecture_facts("inception_v33")


@pytest.mark.parametrize(
    "arguments",
    [{"depth": 3}, {"width": "1"}, {"width": True}, {"width": None}],
    ids=["unknown", "text", "flag", "none"],
)
def test_arguments_are_checked(arguments: dict[str, object]) -> None:
    with pytest.raises(InvalidArguments, match="efficientnet_lite0"):
        architecture_facts("efficientnet_lite0").resolved(arguments)  # type: ignore[arg-type]


def test_arguments_are_filled_in() -> None:
    assert architecture_facts("efficientnet_lite0").resolved({"width": 2}) == {"width": 2}
    assert architecture_facts("inception_v3").resolved({}) == {"pool_counts_padding": False}


@pytest.mark.parametrize("width", [0, -1, 4.5, float("nan")])
def test_widths_out_of_range(width: float) -> None:
    with pytest.raises(InvalidArguments, match="width"):
        plan({"width": width}, VARIANTS[0])


def test_an_eighth_of_the_width_is_small() -> None:
    net = plan({"width": 0.125}, VARIANTS[0])
    assert (net.stem, net.top, len(net.blocks)) == (8, 160, 16)
    assert all(block.inputs % 8 == 0 and block.outputs % 8 == 0 for block in net.blocks)
