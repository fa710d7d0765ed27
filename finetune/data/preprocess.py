"""From encoded bytes to what a network sees. The only module that decodes images (Pillow's one door).

Takes encoded image bytes and an InputSpec. Gives float32 RGB [height, width, 3]. Next: `finetune.data.queue`, or
`finetune.data.features` where the backbone is frozen. Training, evaluation and serving all come through here.

The order matters: check the header, decode, turn by EXIF, bring to 8-bit RGB (compositing transparency before any
resampling, or hidden colours bleed into the edges), fit to the size, normalise.
"""

from __future__ import annotations

import hashlib
import io
import math
import random
import struct
from collections.abc import Sequence

import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from finetune.data.image_header import ImageFacts, UnreadableImage, check_image
from zoo.errors import InvalidArgument
from zoo.input_spec import InputSpec

__all__ = [
    "PREPROCESS_VERSION",
    "ImageFacts",
    "UnreadableImage",
    "check_image",
    "load_pixels",
    "load_views",
    "normalise",
]

PREPROCESS_VERSION = "1"  # part of every feature's key: raise it whenever any pixel may come out otherwise
_ORIENTATION = 0x0112  # EXIF tag; 1 upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
# The plugins' own openers, not Image.open: that one applies Pillow's process-wide bomb limit, while ours comes from
# the config and has been checked before.
_OPENERS = {
    "JPEG": JpegImagePlugin.jpeg_factory,
    "PNG": PngImagePlugin.PngImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
}


def load_pixels(data: bytes, spec: InputSpec, *, max_pixels: int) -> np.ndarray:
    """Decodes and fits one image: uint8 RGB [spec.height, spec.width, 3].

    Raises UnreadableImage saying why: empty, not an image, truncated, too many pixels (before anything is decoded).
    """
    return load_views(data, spec, views=(0,), max_pixels=max_pixels)[0]


def load_views(data: bytes, spec: InputSpec, *, views: Sequence[int], max_pixels: int) -> list[np.ndarray]:
    """As `load_pixels` for several views of one image, decoded once.

    View 0 is the image itself, view 1 its mirror image; from 2 on they are random crops of 60 to 100 % of the area,
    sides in a ratio changed by at most 4/3, mirrored every second time, decided by (sha256 of `data`, view) alone.
    """
    facts = check_image(data, max_pixels)
    image = _upright_rgb(data, facts, spec.background)
    return [_view(image, data, spec, view) for view in views]


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


def _upright_rgb(data: bytes, facts: ImageFacts, background: tuple[int, int, int]) -> Image.Image:
    try:
        image: Image.Image = _OPENERS[facts.format](io.BytesIO(data), "")
        if image.size != (facts.width, facts.height):
            raise UnreadableImage(
                f"{facts.format} image is damaged: its header says {facts.width} × {facts.height}, "
                f"its data {image.width} × {image.height}",
                cause="damaged",
            )
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, struct.error) as error:
        # Pillow's plugins let any of these out on bytes they cannot follow.
        raise UnreadableImage(
            f"{facts.format} image of {facts.width} × {facts.height} is truncated or damaged: {error} "
            f"({len(data):,} bytes)",
            cause="truncated",
        ) from None
    turn = _TURNS.get(_orientation(image))
    upright = image if turn is None else image.transpose(turn)
    return _rgb(upright, _transparency(image, data, facts), background)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except (OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, struct.error):
        return 1  # EXIF that cannot be parsed states no orientation; the pixels are sound, so the image is used


def _transparency(image: Image.Image, data: bytes, facts: ImageFacts) -> object:
    """The transparent colour or palette entries, in units of the decoded pixels.

    PNG gives the colour in samples of the file's bit depth, while Pillow has already brought the pixels to 8 bits.
    """
    value = image.info.get("transparency")
    if value is None or facts.format != "PNG" or image.mode == "P" or image.mode.startswith("I"):
        return value
    depth = data[24]
    if isinstance(value, tuple):
        return tuple(part >> 8 for part in value) if depth == 16 else value
    return value * 255 // ((1 << depth) - 1) if depth < 8 else value


def _rgb(image: Image.Image, transparency: object, background: tuple[int, int, int]) -> Image.Image:
    """8-bit RGB. CMYK comes from Pillow with Adobe's inversion undone; it inverts files without the marker too."""
    if image.mode.startswith("I"):
        image, transparency = _eight_bits(image, transparency)
    if image.mode in ("RGBA", "LA", "PA") or transparency is not None:
        if transparency is not None:
            image.info["transparency"] = transparency
        seen = image.convert("RGBA")
        canvas = Image.new("RGBA", seen.size, (*background, 255))
        canvas.alpha_composite(seen)
        return canvas.convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image, transparency: object) -> tuple[Image.Image, None]:
    """16-bit grey scaled by its depth (Pillow would clip it to white); LA where one grey is transparent."""
    deep_HW = np.asarray(image).astype(np.uint32)
    grey = Image.fromarray(((deep_HW * 255 + 32767) // 65535).astype(np.uint8))
    if isinstance(transparency, int):
        alpha = Image.fromarray(np.where(deep_HW == transparency, 0, 255).astype(np.uint8))
        return Image.merge("LA", (grey, alpha)), None
    return grey, None


def _view(image: Image.Image, data: bytes, spec: InputSpec, view: int) -> np.ndarray:
    mirrored = view == 1
    if view >= 2:
        # Deterministic by content, so that another machine or another job meets the same views.
        chance = random.Random(hashlib.sha256(data).digest() + view.to_bytes(4, "big"))
        mirrored = chance.random() < 0.5
        image = image.crop(_random_box(image.size, chance))
    pixels_HWC = np.asarray(_fit(image, spec))
    return np.ascontiguousarray(pixels_HWC[:, ::-1] if mirrored else pixels_HWC)


def _random_box(size: tuple[int, int], chance: random.Random) -> tuple[int, int, int, int]:
    width, height = size
    share = chance.uniform(0.6, 1.0)
    ratio = math.exp(chance.uniform(-1, 1) * math.log(4 / 3))
    crop_width = max(1, min(width, round(width * math.sqrt(share * ratio))))
    crop_height = max(1, min(height, round(height * math.sqrt(share / ratio))))
    left, top = chance.randint(0, width - crop_width), chance.randint(0, height - crop_height)
    return left, top, left + crop_width, top + crop_height


def _fit(image: Image.Image, spec: InputSpec) -> Image.Image:
    if image.size == (spec.width, spec.height) and spec.crop_fraction == 1:
        return image
    return _FITS[spec.fit](image, spec)


def _squash(image: Image.Image, spec: InputSpec) -> Image.Image:
    """The centre's crop_fraction of each side (cut as tf.image.central_crop cuts), both sides resized."""
    return _resize(_central(image, spec.crop_fraction), (spec.width, spec.height), spec)


def _shortest(image: Image.Image, spec: InputSpec) -> Image.Image:
    """Covers size / crop_fraction with its shape kept, then the centre; floors and rounds as torchvision does."""
    cover_width, cover_height = int(spec.width / spec.crop_fraction), int(spec.height / spec.crop_fraction)
    width, height = image.size
    if cover_height * width >= cover_width * height:
        size = max(cover_width, cover_height * width // height), cover_height
    else:
        size = cover_width, max(cover_height, cover_width * height // width)
    left, top = round((size[0] - spec.width) / 2), round((size[1] - spec.height) / 2)
    return _resize(image, size, spec).crop((left, top, left + spec.width, top + spec.height))


def _pad(image: Image.Image, spec: InputSpec) -> Image.Image:
    """The centre's crop_fraction, its shape kept inside the size; the rest is `background`."""
    image = _central(image, spec.crop_fraction)
    scale = min(spec.width / image.width, spec.height / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    canvas = Image.new("RGB", (spec.width, spec.height), spec.background)
    canvas.paste(_resize(image, size, spec), ((spec.width - size[0]) // 2, (spec.height - size[1]) // 2))
    return canvas


_FITS = {"squash": _squash, "shortest": _shortest, "pad": _pad}


def _central(image: Image.Image, fraction: float) -> Image.Image:
    left, top = (int((side - side * fraction) / 2) for side in image.size)
    return image if not (left or top) else image.crop((left, top, image.width - left, image.height - top))


def _resize(image: Image.Image, size: tuple[int, int], spec: InputSpec) -> Image.Image:
    """With `antialias` the filter widens as the image shrinks (Pillow's resize); without, it always spans the source
    pixels next to the sampling point, half-pixel centres (as tf.image.resize with antialias=False)."""
    if image.size == size:
        return image
    if spec.antialias or spec.interpolation == "nearest":
        return image.resize(size, _RESAMPLING[spec.interpolation])
    if spec.interpolation == "lanczos":
        raise InvalidArgument(
            "input spec: interpolation 'lanczos' exists with antialias only; without it choose bilinear or bicubic"
        )
    return image.transform(size, Image.Transform.EXTENT, (0, 0, *image.size), _RESAMPLING[spec.interpolation])
