"""Augmentation: what training does to a picture that evaluation and serving don't.

Takes encoded bytes, an InputSpec and (seed, epoch, index). Gives uint8 RGB [height, width, 3]. Next:
`finetune.data.preprocess.normalise`; for whole batches `finetune.data.augment_mix`.

The pixels depend on the bytes, the settings and (seed, epoch, index) alone: neither on threads nor on what came before,
so that a resumed run sees what an uninterrupted one would have seen. In this order:

| setting | what | after |
|---|---|---|
| `crop` | a random box, both sides resized to the input's | Szegedy et al. 2015, TF-Slim |
| `mirror` | every second picture, where no text forbids it | `finetune.data.augment_mirror` |
| `rand_augment` | operations of one list at one magnitude | Cubuk et al. 2019 |
| `colour` | brightness, saturation; with `full` hue and contrast | TF-Slim, Howard 2013 |
| `erase` | noise in a random box | Zhong et al. 2017 |
| `mixup`, `cutmix` | two pictures of a batch in one | Zhang et al. 2017, Yun et al. 2019 |

Left out of Slim's: its choice among four resize filters (the InputSpec has the one that the network is served with),
and bounding boxes of objects, which our examples don't have.
"""

from __future__ import annotations

import functools
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from finetune.data.augment_box import PixelBox, box_of_share
from finetune.data.augment_chance import Chance
from finetune.data.augment_colour import distort_colour
from finetune.data.augment_rand import MOST, rand_augment
from finetune.data.image_decode import OpenImage
from finetune.data.preprocess import fitted
from zoo.input_spec import InputSpec

AUGMENT_VERSION = "1"  # raise it whenever a pixel may come out otherwise for the same settings and (seed, epoch, index)

Share = Annotated[float, Field(gt=0, le=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Alpha = Annotated[float, Field(ge=0, le=2)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RandAugment(_Part):
    """`number` operations a picture at `magnitude`; 2 and 9 are the paper's for ImageNet with a ResNet-50."""

    number: Annotated[int, Field(ge=0, le=10)] = 0
    magnitude: Annotated[float, Field(ge=0, le=MOST)] = 9.0


class Erase(_Part):
    """Noise in a box of `area` (shares of the picture's) with sides in a ratio between `aspect` and its reciprocal."""

    probability: Probability = 0.0
    area: tuple[Share, Share] = (0.02, 0.4)
    aspect: Share = 0.3


class Augmentation(_Part):
    """Everything is off by default; 0 or `none` switches a part off."""

    crop: Literal["none", "inception"] = "none"
    crop_area: tuple[Share, Share] = (0.05, 1.0)  # smallest and largest share of the picture's area
    crop_aspect: Annotated[float, Field(ge=0.1, le=1)] = 0.75  # width / height from this to its reciprocal
    mirror: bool = False
    rand_augment: RandAugment = RandAugment()
    colour: Literal["none", "fast", "full"] = "none"
    erase: Erase = Erase()
    mixup: Alpha = 0.0  # α of Beta(α, α)
    cutmix: Alpha = 0.0

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        for name, (low, high) in (("crop_area", self.crop_area), ("erase.area", self.erase.area)):
            if low > high:
                raise ValueError(f"{name} goes from {low} to {high}: the smaller comes first")
        for name, alpha in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if 0 < alpha < 0.01:
                raise ValueError(f"{name} is {alpha}: allowed are 0 (off) and 0.01 to 2")
        return self

    @property
    def changes_images(self) -> bool:
        """Whether `augmented` does anything that `load_pixels` doesn't."""
        return (
            self.crop != "none"
            or self.mirror
            or self.rand_augment.number > 0
            or self.colour != "none"
            or self.erase.probability > 0
        )


# What TF-Slim trains its Inceptions with.
INCEPTION = Augmentation(crop="inception", mirror=True, colour="full")


def augmented(
    data: bytes,
    spec: InputSpec,
    augmentation: Augmentation,
    *,
    seed: int,
    epoch: int,
    index: int,
    may_mirror: bool,
    max_pixels: int,
) -> np.ndarray:
    """One picture of one epoch: uint8 RGB [spec.height, spec.width, 3]; with everything off what `load_pixels` gives.

    Args:
        index: of the example in its source.
        may_mirror: what `finetune.data.augment_mirror.may_mirror` says of the example's texts.

    Raises UnreadableImage as `finetune.data.preprocess.load_pixels`. Safe to call from many threads.
    """

    def chance(purpose: str) -> Chance:
        return Chance(seed, epoch, index, purpose=purpose)

    image = OpenImage(data, background=spec.background, max_pixels=max_pixels)
    if augmentation.crop == "inception":
        pixels_HWC = fitted(image, _squashed(spec), _crop(image.width, image.height, augmentation, chance("crop")))
    else:
        pixels_HWC = fitted(image, spec)
    if augmentation.mirror and may_mirror and chance("mirror").happens(0.5):
        pixels_HWC = np.ascontiguousarray(pixels_HWC[:, ::-1])
    rand = augmentation.rand_augment
    if rand.number:
        pixels_HWC = rand_augment(pixels_HWC, number=rand.number, magnitude=rand.magnitude, chance=chance("rand"))
    if augmentation.colour != "none":
        pixels_HWC = distort_colour(pixels_HWC, augmentation.colour, chance("colour"))
    if augmentation.erase.probability:
        pixels_HWC = erased(pixels_HWC, augmentation.erase, chance("erase"))
    return pixels_HWC


def erased(pixels_HWC: np.ndarray, erase: Erase, chance: Chance) -> np.ndarray:
    """uint8 [H, W, 3], with noise in a box or as it was."""
    if not chance.happens(erase.probability):
        return pixels_HWC
    height, width = pixels_HWC.shape[:2]
    box = box_of_share(width, height, area=erase.area, aspect=(erase.aspect, 1 / erase.aspect), chance=chance)
    if box is None:
        return pixels_HWC
    left, top, right, bottom = box
    result_HWC = pixels_HWC.copy()
    result_HWC[top:bottom, left:right] = chance.noise((bottom - top, right - left, 3))
    return result_HWC


def _crop(width: int, height: int, augmentation: Augmentation, chance: Chance) -> PixelBox | None:
    aspect = (augmentation.crop_aspect, 1 / augmentation.crop_aspect)
    return box_of_share(width, height, area=augmentation.crop_area, aspect=aspect, chance=chance)


@functools.lru_cache(maxsize=64)
def _squashed(spec: InputSpec) -> InputSpec:
    """A crop replaces the InputSpec's own."""
    return spec.model_copy(update={"fit": "squash", "crop_fraction": 1.0})
