"""Cuts: where a backbone is parted into what stays frozen and what is trained, and how far a tensor is from the head.

Takes an architecture's facts and `train_from`. Gives places among its endpoints. Next: `finetune.models.network`.
No TensorFlow.
"""

from __future__ import annotations

from zoo.architectures.facts import ArchitectureFacts
from zoo.errors import InvalidArgument

_LAST = "last:"


class InvalidTrainFrom(InvalidArgument):
    """`last:N` with an N that this backbone doesn't have."""


def first_endpoint(facts: ArchitectureFacts, train_from: str) -> int | None:
    """The place among the endpoints from which on is trained: 0 for `all`, None for `none`.

    `train_from`: those, an endpoint, or `last:N` for the last N endpoints. Raises UnknownEndpoint with near names,
    InvalidTrainFrom.
    """
    if train_from == "none":
        return None
    if train_from == "all":
        return 0
    names = [endpoint.name for endpoint in facts.endpoints]
    if not train_from.startswith(_LAST):
        return names.index(facts.endpoint(train_from).name)
    text = train_from.removeprefix(_LAST)
    if not text.isdecimal() or not 1 <= int(text) <= len(names):
        allowed = f"last:1 to last:{len(names)}" if names else "none or all, since it has no endpoints"
        raise InvalidTrainFrom(
            f"architecture {facts.name!r}: train_from={train_from!r}; it takes {allowed}", architecture=facts.name
        )
    return len(names) - int(text)


def cut_before(facts: ArchitectureFacts, train_from: str) -> str | None:
    """The last endpoint that stays frozen when training begins with `train_from` (not `none`); None where nothing does.

    Raises UnknownEndpoint, InvalidTrainFrom.
    """
    place = first_endpoint(facts, train_from)
    return facts.endpoints[place - 1].name if place else None
