"""The architectures that there are: one file and one line each."""

from __future__ import annotations

import difflib

from zoo.architectures import (
    convnext,
    efficientnet_lite,
    efficientnet_v2,
    hub_module,
    inception_resnet_v2,
    inception_v1,
    inception_v2,
    inception_v3,
    inception_v4,
    mobilenet,
    resnet,
    xception,
)
from zoo.architectures.facts import ArchitectureFacts
from zoo.errors import InvalidArgument

ARCHITECTURES: dict[str, ArchitectureFacts] = {
    **efficientnet_lite.FACTS,
    "convnext_tiny": convnext.FACTS,
    "efficientnet_v2_b0": efficientnet_v2.FACTS,
    "mobilenet_v2": mobilenet.V2,
    "mobilenet_v3_large": mobilenet.V3_LARGE,
    "mobilenet_v3_small": mobilenet.V3_SMALL,
    "resnet50": resnet.FACTS,
    "resnet50_v2": resnet.FACTS_V2,
    "hub_module": hub_module.FACTS,
    "inception_resnet_v2": inception_resnet_v2.FACTS,
    "inception_v1": inception_v1.FACTS,
    "inception_v2": inception_v2.FACTS,
    "inception_v3": inception_v3.FACTS,
    "inception_v4": inception_v4.FACTS,
    "xception": xception.FACTS,
}


class UnknownArchitecture(InvalidArgument):
    """A name that is not in `ARCHITECTURES`."""


def architecture_facts(name: str) -> ArchitectureFacts:
    """Raises UnknownArchitecture naming those there are."""
    if name not in ARCHITECTURES:
        near = difflib.get_close_matches(name, ARCHITECTURES, n=1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise UnknownArchitecture(
            f"no architecture {name!r}; {meant}there are {', '.join(sorted(ARCHITECTURES))}",
            hint="zoo architectures",
            architecture=name[:200],
        )
    return ARCHITECTURES[name]
