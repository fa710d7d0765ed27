"""The settings of augmentation: what a user types below `data.augment`.

Takes nothing. Gives an Augmentation. Next: `finetune.data.augment`, which does it; `finetune.spec`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAGNITUDES = 10.0  # of RandAugment's operations

Share = Annotated[float, Field(gt=0, le=1)]
Probability = Annotated[float, Field(ge=0, le=1)]
Alpha = Annotated[float, Field(ge=0, le=2)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class RandAugment(_Part):
    """`number` operations a picture at `magnitude`; 2 and 9 are the paper's for ImageNet with a ResNet-50."""

    number: Annotated[int, Field(ge=0, le=10)] = 0
    magnitude: Annotated[float, Field(ge=0, le=MAGNITUDES)] = 9.0


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
