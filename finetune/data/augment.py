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

import numpy as np

from finetune.data.augment_box import PixelBox, box_of_share
from finetune.data.augment_chance import Chance
from finetune.data.augment_colour import distort_colour
from finetune.data.augment_rand import rand_augment
from finetune.data.augmentation import Augmentation, Erase
from finetune.data.image_decode import OpenImage
from finetune.data.preprocess import fitted
from zoo.input_spec import InputSpec

AUGMENT_VERSION = "1"  # raise it whenever a pixel may come out otherwise for the same settings and (seed, epoch, index)

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
