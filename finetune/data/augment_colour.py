"""Inception's colour distortion: brightness, saturation, hue and contrast, in one of Slim's orders.

Takes uint8 RGB and a Chance. Gives uint8 RGB. Next: `finetune.data.augment`.

After TF-Slim's inception_preprocessing (distort_color), which follows Andrew Howard, "Some Improvements on Deep
Convolutional Neural Network Based Image Classification" (2013). Each step computes what tf.image.adjust_* does, of
values between 0 and 255 instead of 0 and 1. Saturation and hue are changed with value and chroma in hand, without going
to HSV and back, and what an earlier step pushed out of the range is cut off before them; at the end all is cut off.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from finetune.data.augment_chance import Chance

_BRIGHTNESS = 32.0  # added: up to ± 32 of 255
_SATURATION = _CONTRAST = (0.5, 1.5)  # factors
_HUE = 0.2  # of a full turn, either way
_OFFSETS = (5.0, 3.0, 1.0)  # sextants from red's, green's and blue's slope to where it is opposite


def brightness(rgb_CHW: np.ndarray, delta: float) -> None:
    """`delta` in levels of 255."""
    rgb_CHW += np.float32(delta)


def contrast(rgb_CHW: np.ndarray, factor: float) -> None:
    """Around each channel's own mean."""
    mean_C11 = rgb_CHW.mean(axis=(1, 2), keepdims=True, dtype=np.float64).astype(np.float32)
    rgb_CHW -= mean_C11
    rgb_CHW *= np.float32(factor)
    rgb_CHW += mean_C11


def saturation(rgb_CHW: np.ndarray, factor: float) -> None:
    """The distance of each channel from the largest one; at most so far that the smallest is 0."""
    value_HW, chroma_HW = _value_and_chroma(rgb_CHW)
    np.subtract(value_HW, rgb_CHW, out=rgb_CHW)
    if factor > 1:
        np.maximum(chroma_HW, np.float32(1e-6), out=chroma_HW)  # where it is 0, so are the distances
        np.divide(value_HW, chroma_HW, out=chroma_HW)
        rgb_CHW *= np.minimum(chroma_HW, np.float32(factor), out=chroma_HW)
    else:
        rgb_CHW *= np.float32(factor)
    np.subtract(value_HW, rgb_CHW, out=rgb_CHW)


def hue(rgb_CHW: np.ndarray, turn: float) -> None:
    """`turn` of a full circle of colours; value and chroma stay."""
    value_HW, chroma_HW = _value_and_chroma(rgb_CHW)
    sextant_HW = _sextant(rgb_CHW, value_HW, chroma_HW)
    sextant_HW += np.float32(6 * (turn % 1.0))
    for plane_HW, start in zip(rgb_CHW, _OFFSETS, strict=True):
        # The share of the chroma that the channel lacks: 0 on its plateau, 1 opposite, slopes of one sextant between.
        np.add(sextant_HW, np.float32(start), out=plane_HW)
        np.subtract(plane_HW, np.float32(12.0), out=plane_HW, where=plane_HW >= 12)
        np.subtract(plane_HW, np.float32(6.0), out=plane_HW, where=plane_HW >= 6)
        plane_HW -= np.float32(2.0)
        np.abs(plane_HW, out=plane_HW)
        np.subtract(np.float32(2.0), plane_HW, out=plane_HW)  # min(k, 4 − k)
        np.clip(plane_HW, np.float32(0), np.float32(1), out=plane_HW)
        plane_HW *= chroma_HW
        np.subtract(value_HW, plane_HW, out=plane_HW)


def _value_and_chroma(rgb_CHW: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest channel of each pixel, and how far above the smallest it is; of what was first cut to the range."""
    np.clip(rgb_CHW, np.float32(0), np.float32(255), out=rgb_CHW)
    red_HW, green_HW, blue_HW = rgb_CHW
    value_HW = np.maximum(np.maximum(red_HW, green_HW), blue_HW)
    return value_HW, value_HW - np.minimum(np.minimum(red_HW, green_HW), blue_HW)


def _sextant(rgb_CHW: np.ndarray, value_HW: np.ndarray, chroma_HW: np.ndarray) -> np.ndarray:
    """Hue in [0, 6]: 0 red, 2 green, 4 blue."""
    red_HW, green_HW, blue_HW = rgb_CHW
    share_HW = np.float32(1) / np.maximum(chroma_HW, np.float32(1e-6))
    sextant_HW = (red_HW - green_HW) * share_HW + np.float32(4)
    np.copyto(sextant_HW, (blue_HW - red_HW) * share_HW + np.float32(2), where=value_HW == green_HW)
    red_most_HW = value_HW == red_HW
    np.copyto(sextant_HW, (green_HW - blue_HW) * share_HW, where=red_most_HW)
    np.add(sextant_HW, np.float32(6), out=sextant_HW, where=sextant_HW < 0)
    return sextant_HW


_STEPS: dict[str, tuple[Callable[[np.ndarray, float], None], tuple[float, float]]] = {
    "brightness": (brightness, (-_BRIGHTNESS, _BRIGHTNESS)),
    "saturation": (saturation, _SATURATION),
    "hue": (hue, (-_HUE, _HUE)),
    "contrast": (contrast, _CONTRAST),
}
ORDERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "fast": (("brightness", "saturation"), ("saturation", "brightness")),
    "full": (
        ("brightness", "saturation", "hue", "contrast"),
        ("saturation", "brightness", "contrast", "hue"),
        ("contrast", "hue", "brightness", "saturation"),
        ("hue", "saturation", "contrast", "brightness"),
    ),
}


def distort_colour(pixels_HWC: np.ndarray, kind: str, chance: Chance) -> np.ndarray:
    """uint8 [H, W, 3], distorted in one of the orders of `kind` ("fast", "full")."""
    orders = ORDERS[kind]
    order = orders[chance.below(len(orders))]
    rgb_CHW = np.ascontiguousarray(pixels_HWC.transpose(2, 0, 1)).astype(np.float32)
    for name in order:
        step, (low, high) = _STEPS[name]
        step(rgb_CHW, chance.uniform(low, high))
    np.clip(rgb_CHW, np.float32(0), np.float32(255), out=rgb_CHW)
    np.rint(rgb_CHW, out=rgb_CHW)
    return np.ascontiguousarray(rgb_CHW.astype(np.uint8).transpose(1, 2, 0))
