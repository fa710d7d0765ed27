"""What a backbone was trained to see: size, value range and how to get there. Travels with the weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Channel = tuple[float, float, float]
Side = Annotated[int, Field(ge=1, le=4096)]


class InputSpec(BaseModel):
    """One image as a network wants it: float32 RGB, shape [height, width, 3], value = (pixel × scale − mean) / std.

    `fit`: `squash` resizes both sides; `shortest` resizes the shorter side to size / crop_fraction, then crops the
    centre; `pad` keeps the shape and fills with `background`. Transparency is composited on `background` (0–255). An
    image that already has the size, with crop_fraction 1, is not resampled: its pixels go in to the bit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    height: Side
    width: Side
    scale: float = 1 / 255
    mean: Channel = (0.0, 0.0, 0.0)
    std: Annotated[Channel, Field(description="each > 0")] = (1.0, 1.0, 1.0)
    fit: Literal["squash", "shortest", "pad"] = "squash"
    crop_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = "bilinear"
    antialias: bool = True
    background: tuple[int, int, int] = (255, 255, 255)
