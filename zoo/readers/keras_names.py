"""What Keras calls a layer's values, and how its automatic layer names count.

Takes classes and names of layers. Gives names of values in the order in which Keras stores them. Next:
`zoo.readers.keras_v3`, whose files number the values, and `zoo.readers.keras_legacy`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from zoo.readers.checkpoint import DamagedCheckpoint
from zoo.readers.keras_topology import group_name


@dataclass(frozen=True, kw_only=True)
class ValueName:
    """A value of a layer. `rank`: None for any. `flag`: the argument that switches it off, on by default."""

    name: str
    rank: int | None
    flag: str | None = None


def _convolution(rank: int) -> tuple[ValueName, ...]:
    return ValueName(name="kernel", rank=rank), ValueName(name="bias", rank=1, flag="use_bias")


_NORM = (ValueName(name="gamma", rank=1, flag="scale"), ValueName(name="beta", rank=1, flag="center"))

# Class → its values, trainable ones first, in the order in which the layer makes them. Keras 3 calls a depthwise
# kernel `kernel`; it is `depthwise_kernel` here as in all files of Keras 2, since its axes mean something else.
VALUES: dict[str, tuple[ValueName, ...]] = {
    "BatchNormalization": (
        *_NORM,
        ValueName(name="moving_mean", rank=1),
        ValueName(name="moving_variance", rank=1),
    ),
    "Conv1D": _convolution(3),
    "Conv2D": _convolution(4),
    "Conv2DTranspose": _convolution(4),
    "Conv3D": _convolution(5),
    "Dense": _convolution(2),
    "DepthwiseConv2D": (
        ValueName(name="depthwise_kernel", rank=4),
        ValueName(name="bias", rank=1, flag="use_bias"),
    ),
    "Embedding": (ValueName(name="embeddings", rank=2),),
    "GroupNormalization": _NORM,
    "LayerNormalization": _NORM,
    "LayerScale": (ValueName(name="gamma", rank=1),),
    "Normalization": tuple(ValueName(name=name, rank=None) for name in ("mean", "variance", "count")),
    "SeparableConv2D": (
        ValueName(name="depthwise_kernel", rank=4),
        ValueName(name="pointwise_kernel", rank=4),
        ValueName(name="bias", rank=1, flag="use_bias"),
    ),
}
KINDS: dict[str, str] = {group_name(kind): kind for kind in VALUES}

# Networks that Keras names automatically are told apart by these layers' counts; heads keep the names they have.
_COUNTED = frozenset(KINDS) - {"dense"}


def value_names(
    kind: str, count: int, config: Mapping[str, Any] | None, where: str
) -> tuple[tuple[ValueName, ...] | None, str | None]:
    """The names of a layer's `count` values, or None where they can't be told; and a remark on what was assumed.

    Args:
        config: the layer's arguments; None where the file doesn't have them.
    Raises DamagedCheckpoint when the arguments say another number of values.
    """
    known = VALUES.get(kind)
    if known is None:
        return None, None
    if config is not None:
        wanted = tuple(value for value in known if value.flag is None or config.get(value.flag, True))
        if len(wanted) != count:
            names = ", ".join(value.name for value in wanted)
            raise DamagedCheckpoint(
                f"{where} holds {count} values, its configuration ({kind}) has {len(wanted)}: {names}"
            )
        return wanted, None
    if count == len(known):
        return known, None
    always = tuple(value for value in known if value.flag is None)
    if always and count == len(always):
        return always, None
    if kind == "BatchNormalization" and count == 3:
        # Keras' own networks drop gamma where a relu follows (scale=False); none of them drops beta.
        return known[1:], "BatchNorms of 3 values were read as beta, moving_mean, moving_variance (scale=False)"
    return None, None


def counted_from_zero(layers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Layer name → the same with its automatic number counted from 0, for names that begin elsewhere.

    Keras numbers layers through the whole life of a process, so the first convolution of a network is `conv2d_94` where
    another network was built before it. What begins with 0 or 1 throughout stays as it is: both are known. Nothing is
    guessed by this: a name map still wants every number of its own.

    Args:
        layers: (base, name) of each, where `base` is what Keras calls the class, e.g. `conv2d`.
    """
    numbers: dict[str, dict[int, str]] = {}
    for base, name in layers:
        if base not in _COUNTED or not (name == base or re.fullmatch(rf"{base}_[1-9][0-9]{{0,8}}", name)):
            continue
        numbers.setdefault(base, {})[int(name.removeprefix(base).lstrip("_") or 0)] = name
    starts = {base: min(found) for base, found in numbers.items()}
    if set(starts.values()) in ({0}, {1}):
        return {}
    return {
        name: f"{base}_{number - starts[base]}" if number > starts[base] else base
        for base, found in numbers.items()
        for number, name in found.items()
    }


def renumbering_note(renamed: Mapping[str, str]) -> str:
    """What to tell the user, who knows the layers by their old names."""
    starts = sorted(f"{old} is {new}" for old, new in renamed.items() if new in KINDS)
    return f"automatic layer names were counted from 0: {', '.join(starts)} ({len(renamed)} layers in all)"
