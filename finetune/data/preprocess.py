"""From encoded bytes to what a network sees: the one function of training, evaluation and serving.

Takes encoded image bytes and an InputSpec. Gives float32 RGB [height, width, 3]. Next: `finetune.data.image_queue`, or
`finetune.data.features` where the backbone is frozen.

Decode (`finetune.data.image_decode`), fit to the size, normalise. A JPEG much larger than what is wanted of it is
decoded at 1/2, 1/4 or 1/8 where the InputSpec antialiases (without antialiasing the exact neighbours of each sampling
point are asked for, so all of them are decoded).
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from finetune.data.image_decode import Decoded, OpenImage
from finetune.data.image_header import ImageFacts, UnreadableImage, check_image
from zoo.errors import InvalidArgument
from zoo.input_spec import InputSpec

__all__ = [
    "PREPROCESS_VERSION",
    "ImageFacts",
    "UnreadableImage",
    "check_image",
    "fitted",
    "load_pixels",
    "load_views",
    "normalise",
    "preprocess",
]

# Part of every feature's key: raise it whenever any pixel may come out otherwise.
# 2: large JPEGs are decoded at a part of their size; what isn't at least 4 times as large as wanted is as it was.
PREPROCESS_VERSION = "2"
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

PixelBox = tuple[int, int, int, int]  # left, top, right, bottom, in pixels of the whole upright picture


def load_pixels(data: bytes, spec: InputSpec, *, max_pixels: int) -> np.ndarray:
    """Decodes and fits one image: uint8 RGB [spec.height, spec.width, 3].

    Raises UnreadableImage saying why: empty, not an image, truncated, too many pixels (before anything is decoded).
    """
    return load_views(data, spec, views=(0,), max_pixels=max_pixels)[0]


def load_views(data: bytes, spec: InputSpec, *, views: Sequence[int], max_pixels: int) -> list[np.ndarray]:
    """As `load_pixels` for several views of one image, decoded once (large JPEGs at most once for each scale).

    View 0 is the image itself, view 1 its mirror image; from 2 on they are random crops of 60 to 100 % of the area,
    sides in a ratio changed by at most 4/3, mirrored every second time, decided by (sha256 of `data`, view) alone.
    """
    image = OpenImage(data, background=spec.background, max_pixels=max_pixels)
    return [_view(image, data, spec, view) for view in views]


def fitted(image: OpenImage, spec: InputSpec, box: PixelBox | None = None) -> np.ndarray:
    """What lies in `box` (None: the whole picture) as the InputSpec wants it: uint8 [spec.height, spec.width, 3].

    Raises UnreadableImage: truncated or damaged.
    """
    left, top, right, bottom = box or (0, 0, image.width, image.height)
    plan = _PLANS[spec.fit](right - left, bottom - top, spec)
    x0, y0, x1, y1 = plan.box
    part = (left + x0, top + y0, left + x1, top + y1)
    factor = min((x1 - x0) / plan.size[0], (y1 - y0) / plan.size[1]) if _may_shrink(spec) else 1.0
    resized = _resize(image.decoded(factor), part, plan.size, spec)
    if plan.size == (spec.width, spec.height):
        return np.asarray(resized)
    x, y = plan.offset
    if spec.fit == "pad":
        canvas = Image.new("RGB", (spec.width, spec.height), spec.background)
        canvas.paste(resized, (x, y))
        return np.asarray(canvas)
    return np.asarray(resized.crop((-x, -y, spec.width - x, spec.height - y)))


def normalise(pixels: np.ndarray, spec: InputSpec) -> np.ndarray:
    """(pixel × scale − mean) / std in float32, for uint8 [..., 3]; the one place where values get their range."""
    values = np.multiply(pixels, np.float32(spec.scale), dtype=np.float32)
    if any(spec.mean):  # a pass over the image less; x − 0 and x / 1 are x, to the bit
        values -= np.asarray(spec.mean, np.float32)
    if any(deviation != 1 for deviation in spec.std):
        values /= np.asarray(spec.std, np.float32)
    return values


def preprocess(data: bytes, spec: InputSpec, *, max_pixels: int) -> np.ndarray:
    """`load_pixels`, then `normalise`: float32 [spec.height, spec.width, 3]."""
    return normalise(load_pixels(data, spec, max_pixels=max_pixels), spec)


def _view(image: OpenImage, data: bytes, spec: InputSpec, view: int) -> np.ndarray:
    mirrored, box = view == 1, None
    if view >= 2:
        # Deterministic by content, so that another machine or another job meets the same views.
        chance = random.Random(hashlib.sha256(data).digest() + view.to_bytes(4, "big"))
        mirrored = chance.random() < 0.5
        box = _random_box((image.width, image.height), chance)
    pixels_HWC = fitted(image, spec, box)
    return np.ascontiguousarray(pixels_HWC[:, ::-1]) if mirrored else pixels_HWC


def _random_box(size: tuple[int, int], chance: random.Random) -> PixelBox:
    width, height = size
    share = chance.uniform(0.6, 1.0)
    ratio = math.exp(chance.uniform(-1, 1) * math.log(4 / 3))
    crop_width = max(1, min(width, round(width * math.sqrt(share * ratio))))
    crop_height = max(1, min(height, round(height * math.sqrt(share / ratio))))
    left, top = chance.randint(0, width - crop_width), chance.randint(0, height - crop_height)
    return left, top, left + crop_width, top + crop_height


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """`box` of the picture is resized to `size` (width, height), whose corner then lies at `offset` of the output."""

    box: PixelBox
    size: tuple[int, int]
    offset: tuple[int, int] = (0, 0)


def _squash(width: int, height: int, spec: InputSpec) -> _Plan:
    """The centre's crop_fraction of each side (cut as tf.image.central_crop cuts), both sides resized."""
    return _Plan(box=_central(width, height, spec.crop_fraction), size=(spec.width, spec.height))


def _shortest(width: int, height: int, spec: InputSpec) -> _Plan:
    """Covers size / crop_fraction with its shape kept, then the centre; floors and rounds as torchvision does."""
    cover_width, cover_height = int(spec.width / spec.crop_fraction), int(spec.height / spec.crop_fraction)
    if cover_height * width >= cover_width * height:
        size = max(cover_width, cover_height * width // height), cover_height
    else:
        size = cover_width, max(cover_height, cover_width * height // width)
    left, top = round((size[0] - spec.width) / 2), round((size[1] - spec.height) / 2)
    return _Plan(box=(0, 0, width, height), size=size, offset=(-left, -top))


def _pad(width: int, height: int, spec: InputSpec) -> _Plan:
    """The centre's crop_fraction, its shape kept inside the size; the rest is `background`."""
    box = _central(width, height, spec.crop_fraction)
    width, height = box[2] - box[0], box[3] - box[1]
    scale = min(spec.width / width, spec.height / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return _Plan(box=box, size=size, offset=((spec.width - size[0]) // 2, (spec.height - size[1]) // 2))


_PLANS = {"squash": _squash, "shortest": _shortest, "pad": _pad}


def _central(width: int, height: int, fraction: float) -> PixelBox:
    left, top = (int((side - side * fraction) / 2) for side in (width, height))
    return left, top, width - left, height - top


def _may_shrink(spec: InputSpec) -> bool:
    return spec.antialias and spec.interpolation != "nearest"


def _resize(decoded: Decoded, part: PixelBox, size: tuple[int, int], spec: InputSpec) -> Image.Image:
    """With `antialias` the filter widens as the image shrinks (Pillow's resize); without, it always spans the source
    pixels next to the sampling point, half-pixel centres (as tf.image.resize with antialias=False)."""
    if decoded.scale > 1:
        return decoded.image.resize(size, _RESAMPLING[spec.interpolation], box=decoded.box(part))
    image = decoded.image if part == (0, 0, *decoded.image.size) else decoded.image.crop(part)
    if image.size == size:
        return image
    if spec.antialias or spec.interpolation == "nearest":
        return image.resize(size, _RESAMPLING[spec.interpolation])
    if spec.interpolation == "lanczos":
        raise InvalidArgument(
            "input spec: interpolation 'lanczos' exists with antialias only; without it choose bilinear or bicubic"
        )
    return image.transform(size, Image.Transform.EXTENT, (0, 0, *image.size), _RESAMPLING[spec.interpolation])
