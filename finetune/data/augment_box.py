"""Random boxes: what Inception's distorted crop keeps, what random erasing takes, what CutMix pastes.

Takes sizes and a Chance. Gives boxes in whole pixels. Next: `finetune.data.augment`, `finetune.data.augment_mix`.

Crop: Szegedy et al., "Going Deeper with Convolutions" (2015), section 6; areas and tries as TF-Slim's
inception_preprocessing (5 to 100 % of the area, 100 tries, else the whole picture). Erasing: Zhong et al., "Random
Erasing Data Augmentation" (2017). CutMix: Yun et al. (2019), appendix A.
"""

from __future__ import annotations

import math

from finetune.data.augment_chance import Chance

PixelBox = tuple[int, int, int, int]  # left, top, right, bottom
_TRIES = 100


def box_of_share(
    width: int, height: int, *, area: tuple[float, float], aspect: tuple[float, float], chance: Chance
) -> PixelBox | None:
    """A box with a share of the area within `area` and a width / height within `aspect` (uniform in its logarithm, so
    that 3/4 is as likely as 4/3), anywhere inside; None where 100 tries found none that fits."""
    for _ in range(_TRIES):
        pixels = chance.uniform(*area) * width * height
        ratio = math.exp(chance.uniform(math.log(aspect[0]), math.log(aspect[1])))
        box_width, box_height = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
        if 1 <= box_width <= width and 1 <= box_height <= height:
            left, top = chance.below(width - box_width + 1), chance.below(height - box_height + 1)
            return left, top, left + box_width, top + box_height
    return None


def box_around(width: int, height: int, *, share: float, chance: Chance) -> PixelBox:
    """A box of the picture's own shape with `share` of its area around a point anywhere, cut off at the edges."""
    half_width, half_height = width * math.sqrt(share) / 2, height * math.sqrt(share) / 2
    x, y = chance.uniform(0, width), chance.uniform(0, height)
    left, right = max(0, round(x - half_width)), min(width, round(x + half_width))
    top, bottom = max(0, round(y - half_height)), min(height, round(y + half_height))
    return left, top, right, bottom
