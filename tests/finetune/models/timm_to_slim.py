"""timm's names of Inception v4 and Inception-ResNet v2 made TF-Slim's, by rules that share nothing with ours."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

NETWORK = {"inception_v4": "InceptionV4", "inception_resnet_v2": "InceptionResnetV2"}


def renamed_to_slim(name: str, timm: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    parts = {
        (False, "weight"): "weights",
        (False, "bias"): "biases",
        (True, "weight"): "BatchNorm/gamma",
        (True, "bias"): "BatchNorm/beta",
        (True, "running_mean"): "BatchNorm/moving_mean",
        (True, "running_var"): "BatchNorm/moving_variance",
    }
    found: dict[str, np.ndarray] = {}
    for stored, value in timm.items():
        module, part = stored.rsplit(".", 1)
        if part == "num_batches_tracked":
            continue
        place = module.removesuffix(".conv").removesuffix(".bn")
        if place in ("last_linear", "classif"):
            scope, turned = "Logits/Logits", value.T
        else:
            kernel = timm.get(f"{place}.conv.weight", timm.get(f"{place}.weight"))
            assert kernel is not None
            size = f"{kernel.shape[2]}x{kernel.shape[3]}"
            scope = (v4_scope if name == "inception_v4" else resnet_scope)(place, size)
            turned = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
        full = f"{NETWORK[name]}/{scope}/{parts[module.endswith('.bn'), part]}"
        assert full not in found
        found[full] = np.ascontiguousarray(turned)
    return found


def v4_scope(place: str, size: str) -> str:
    """`features.11.branch1.2` → `Mixed_6b/Branch_1/Conv2d_0c_7x1`; convolutions that shrink the map are `1a`."""
    stem = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3")
    mixed = ["3a", "4a", *(f"5{x}" for x in "abcde"), *(f"6{x}" for x in "abcdefgh"), *(f"7{x}" for x in "abcd")]
    _, number, *rest = place.split(".")
    if int(number) < 3:
        return stem[int(number)]
    stage = f"Mixed_{mixed[int(number) - 3]}"
    if rest == ["conv"]:
        return {"Mixed_3a": "Mixed_3a/Branch_1/Conv2d_0a_3x3", "Mixed_5a": "Mixed_5a/Branch_0/Conv2d_1a_3x3"}[stage]
    branch, _, step = ".".join(rest).removeprefix("branch").replace("_", ".").partition(".")
    place_of = {"": 0, "0": 0, "1": 1, "1a": 1, "1b": 2, "2": 2, "3": 3, "3a": 3, "3b": 4, "4": 4}
    letter = "abcde"[place_of[step]]
    shrinks = (
        stage in ("Mixed_4a", "Mixed_6a", "Mixed_7a")
        and size == "3x3"
        and (stage, branch, step) != ("Mixed_6a", "1", "1")
    )
    return f"{stage}/Branch_{branch}/Conv2d_{'1a' if shrinks else f'0{letter}'}_{size}"


def resnet_scope(place: str, size: str) -> str:
    """`repeat_1.4.branch1.2` → `Repeat_1/block17_5/Branch_1/Conv2d_0c_7x1`; the last in a reduction is `1a`."""
    first, *rest = place.split(".")
    if first.startswith("conv2d_"):
        return f"Conv2d_{first.removeprefix('conv2d_')}_{size}"
    scope = {"block8": "Block8", "mixed_5b": "Mixed_5b", "mixed_6a": "Mixed_6a", "mixed_7a": "Mixed_7a"}.get(first)
    if scope is None:
        kind = {"repeat": "block35", "repeat_1": "block17", "repeat_2": "block8"}[first]
        scope = f"{first.capitalize()}/{kind}_{int(rest.pop(0)) + 1}"
    if rest == ["conv2d"]:
        return f"{scope}/Conv2d_1x1"
    branch = rest[0].removeprefix("branch")
    inner = (("mixed_6a", "1", "1"), ("mixed_7a", "2", "1"))
    step = rest[1] if len(rest) > 1 else ""
    if scope in ("Mixed_6a", "Mixed_7a") and size == "3x3" and (first, branch, step) not in inner:
        return f"{scope}/Branch_{branch}/Conv2d_1a_3x3"
    return f"{scope}/Branch_{branch}/Conv2d_{'' if step == '' else '0' + 'abc'[int(step)] + '_'}{size}"
