"""Encoded bytes to upright 8-bit RGB, large JPEGs at a part of their size: the only module that decodes (Pillow).

Takes encoded bytes. Gives `OpenImage`: sizes at once, pixels when asked for. Next: `finetune.data.preprocess`.

The order matters: check the header, decode, turn by EXIF, bring to 8-bit RGB (compositing transparency before any
resampling, or hidden colours bleed into the edges). A colour profile (ICC) is left alone: networks were trained on
numbers as stored, and a profile is lost by most tools that prepare data sets. What comes out:

| stored as | seen as |
|---|---|
| JPEG, PNG, BMP, WebP, GIF (its first frame) | known by content; the file's name is never looked at |
| EXIF orientation 2 to 8 | turned upright first; unreadable EXIF means upright |
| CMYK, YCCK (Adobe's inverted kind too) | RGB by Pillow's plain conversion |
| grey, one bit | three equal channels |
| PNG of 16 bits | scaled by its depth: grey rounded, colour and alpha by their high byte, as libpng strips |
| palette, transparent colour or entries, alpha | expanded, composited on the InputSpec's background |

Why libjpeg at a part of its size: the DCT of 8 × 8 pixels holds their averages, so that 1/2, 1/4 and 1/8 cost little
more than reading the entropy-coded bytes (libjpeg-turbo, "scaled decompression").

Why not TensorFlow's decoder on the hot path: with dct_method INTEGER_ACCURATE and fancy upscaling it gives Pillow's
pixels to the bit, at every scale, but it is the same libjpeg-turbo: 0.84 against 0.90 ms for 640 × 427 (80 kB, one
core), and the pixels would have to be copied into Pillow (0.1 ms) to be resized. So there is nothing to gain.
"""

from __future__ import annotations

import io
import os
import struct
from dataclasses import dataclass

import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from finetune.data.image_header import ImageFacts, UnreadableImage, check_image, has_dct_blocks

Box = tuple[float, float, float, float]  # left, top, right, bottom

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
_LYING = {5, 6, 7, 8}  # width and height change places
_ENDS_LEFT = {2, 3, 6, 7}  # the last stored column, or row for those that lie, comes to stand at the left
_ENDS_TOP = {3, 4, 7, 8}
# The plugins' own openers, not Image.open: that one applies Pillow's process-wide bomb limit, while ours comes from
# the config and has been checked before.
_OPENERS = {
    "JPEG": JpegImagePlugin.jpeg_factory,
    "PNG": PngImagePlugin.PngImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
}
# Memory blocks that Pillow keeps for its next pictures, of at most 16 MiB each. Without, a process may give each
# picture's memory back and fault it in again: as much as 512 page faults and 1 of 2.9 ms for a photo of 640 × 427.
_KEPT_BLOCKS = 4
if "PILLOW_BLOCKS_MAX" not in os.environ:  # Pillow has obeyed that one already
    Image.core.set_blocks_max(_KEPT_BLOCKS)

# What Pillow's plugins let out on bytes that they cannot follow.
_UNFOLLOWED = (OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, KeyError, struct.error)

# Part of the size → how many times larger the picture must at least be than what is wanted of it. The more is left for
# the last, antialiased step, the nearer it comes to decoding everything: measured on photos of 12 megapixels, 0.2 of
# 255 levels apart on average with 2 times or more left. 1/8 is taken with 1.25 times left (0.5 to 0.85 levels): there
# a quarter of the time is saved, and it is photos of 12 megapixels for 299 pixels that come to it.
SCALES: tuple[tuple[int, float], ...] = ((8, 10.0), (4, 8.0), (2, 4.0))


def scale_for(factor: float) -> int:
    """1, 2, 4 or 8: the part of its size at which a JPEG is decoded that is `factor` times larger than needed."""
    return next((scale for scale, least in SCALES if factor >= least), 1)


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """`image`: upright RGB. A place (x, y) of the whole picture lies at (left + x / scale, top + y / scale) in it."""

    image: Image.Image
    scale: int = 1
    left: float = 0.0
    top: float = 0.0

    def box(self, box: Box) -> Box:
        left, top = self.left, self.top
        x0, y0, x1, y1 = (side / self.scale for side in box)
        return left + x0, top + y0, left + x1, top + y1


class OpenImage:
    """An image whose header has been read. `width`, `height`: of the whole picture, upright.

    Pixels are decoded at most once for each scale.
    """

    def __init__(self, data: bytes, *, background: tuple[int, int, int], max_pixels: int) -> None:
        """Raises UnreadableImage saying why: empty, not an image, truncated, too many pixels (nothing is decoded)."""
        self._data, self._background = data, background
        self._facts = check_image(data, max_pixels)
        self._decoded: dict[int, Decoded] = {}
        self._file = self._open()
        # Only a JPEG is sure to have its EXIF before its pixels; for the others Pillow may read all of them to find it.
        if self._facts.format != "JPEG":
            self._load()
        self._orientation = _orientation(self._file)
        self.width, self.height = self._facts.width, self._facts.height
        if self._orientation in _LYING:
            self.width, self.height = self.height, self.width

    def decoded(self, factor: float = 1.0) -> Decoded:
        """The picture, at a part of its size where it is a JPEG at least `factor` times larger than needed.

        Raises UnreadableImage: truncated or damaged.
        """
        scale = scale_for(factor) if self._facts.format == "JPEG" else 1
        if scale > 1 and not has_dct_blocks(self._data):
            scale = 1
        if scale not in self._decoded:
            self._decoded[scale] = self._decode(scale)
        return self._decoded[scale]

    def _open(self) -> Image.Image:
        facts = self._facts
        try:
            image: Image.Image = _OPENERS[facts.format](io.BytesIO(self._data), "")
        except _UNFOLLOWED as error:
            raise self._damaged(error) from None
        if image.size != (facts.width, facts.height):
            raise UnreadableImage(
                f"{facts.format} image is damaged: its header says {facts.width} × {facts.height}, "
                f"its data {image.width} × {image.height}",
                cause="damaged",
            )
        return image

    def _load(self) -> None:
        try:
            self._file.load()
        except _UNFOLLOWED as error:
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> UnreadableImage:
        facts = self._facts
        return UnreadableImage(
            f"{facts.format} image of {facts.width} × {facts.height} is truncated or damaged: {error} "
            f"({len(self._data):,} bytes)",
            cause="truncated",
        )

    def _decode(self, scale: int) -> Decoded:
        if self._decoded:  # the file has been used up at another scale
            self._file = self._open()
        facts = self._facts
        if scale > 1:
            self._file.draft(None, (facts.width // scale, facts.height // scale))
            wanted = -(-facts.width // scale), -(-facts.height // scale)
            if self._file.size != wanted:
                raise self._damaged(ValueError(f"at 1/{scale} it is {self._file.size}, not {wanted}"))
        self._load()
        turn = _TURNS.get(self._orientation)
        upright = self._file if turn is None else self._file.transpose(turn)
        image = _rgb(upright, _transparency(self._file, self._data, facts), self._background)
        left, top = _origin(image, (self.width / scale, self.height / scale), self._orientation)
        return Decoded(image=image, scale=scale, left=left, top=top)


def _origin(image: Image.Image, size: tuple[float, float], orientation: int) -> tuple[float, float]:
    """Where the picture begins. Its last block reaches beyond its edge where a side isn't a multiple of the scale, and
    the turn may have brought that edge to the left or to the top."""
    left = image.width - size[0] if orientation in _ENDS_LEFT else 0.0
    top = image.height - size[1] if orientation in _ENDS_TOP else 0.0
    return left, top


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except _UNFOLLOWED:
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
