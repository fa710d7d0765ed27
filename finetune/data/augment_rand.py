"""RandAugment: some operations of one list, all at one magnitude.

Takes uint8 RGB and a Chance. Gives uint8 RGB. Next: `finetune.data.augment`.

Cubuk, Zoph, Shlens & Le, "RandAugment" (2019). The list is theirs; magnitude 10 is AutoAugment's strongest (Cubuk et
al. 2018, table 6), 0 changes nothing but where the operation has no strength. What comes in from outside is the grey of
AutoAugment's reference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from finetune.data.augment_chance import Chance
from finetune.data.augmentation import MAGNITUDES

_GREY = (128, 128, 128)
_BILINEAR = Image.Resampling.BILINEAR


class Operation(NamedTuple):
    """`most`: the amount at magnitude 10, from 0 at magnitude 0; `signed`: either way, by chance."""

    apply: Callable[[Image.Image, float], Image.Image]
    most: float = 0.0
    signed: bool = False


def _warped(image: Image.Image, coefficients: tuple[float, ...]) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, coefficients, _BILINEAR, fillcolor=_GREY)


OPERATIONS: dict[str, Operation] = {
    "identity": Operation(lambda image, amount: image),
    "autocontrast": Operation(lambda image, amount: ImageOps.autocontrast(image)),
    "equalise": Operation(lambda image, amount: ImageOps.equalize(image)),
    "rotate": Operation(
        lambda image, amount: image.rotate(amount, _BILINEAR, fillcolor=_GREY), most=30.0, signed=True
    ),  # degrees
    "solarise": Operation(lambda image, amount: ImageOps.solarize(image, 256 - round(amount)), most=256.0),
    "posterise": Operation(lambda image, amount: ImageOps.posterize(image, 8 - round(amount)), most=4.0),  # bits
    "colour": Operation(lambda image, amount: ImageEnhance.Color(image).enhance(1 + amount), most=0.9, signed=True),
    "contrast": Operation(
        lambda image, amount: ImageEnhance.Contrast(image).enhance(1 + amount), most=0.9, signed=True
    ),
    "brightness": Operation(
        lambda image, amount: ImageEnhance.Brightness(image).enhance(1 + amount), most=0.9, signed=True
    ),
    "sharpness": Operation(
        lambda image, amount: ImageEnhance.Sharpness(image).enhance(1 + amount), most=0.9, signed=True
    ),
    "shear_x": Operation(lambda image, amount: _warped(image, (1, amount, 0, 0, 1, 0)), most=0.3, signed=True),
    "shear_y": Operation(lambda image, amount: _warped(image, (1, 0, 0, amount, 1, 0)), most=0.3, signed=True),
    "translate_x": Operation(
        lambda image, amount: _warped(image, (1, 0, amount * image.width, 0, 1, 0)), most=150 / 331, signed=True
    ),  # of the side
    "translate_y": Operation(
        lambda image, amount: _warped(image, (1, 0, 0, 0, 1, amount * image.height)), most=150 / 331, signed=True
    ),
}
_NAMES = tuple(OPERATIONS)


def rand_augment(pixels_HWC: np.ndarray, *, number: int, magnitude: float, chance: Chance) -> np.ndarray:
    """uint8 [H, W, 3] after `number` operations, each drawn anew, at `magnitude` 0 to 10."""
    image = Image.fromarray(pixels_HWC)
    for _ in range(number):
        operation = OPERATIONS[_NAMES[chance.below(len(_NAMES))]]
        amount = operation.most * magnitude / MAGNITUDES
        backwards = chance.happens(0.5)
        image = operation.apply(image, -amount if operation.signed and backwards else amount)
    return np.asarray(image)
