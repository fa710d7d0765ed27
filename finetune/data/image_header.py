"""What an encoded image says of itself in its first bytes: format and size, read without decoding anything.

Takes encoded bytes. Gives ImageFacts or UnreadableImage. Next: `finetune.data.preprocess`.

Why not let Pillow open the file: its bomb limit is process-wide and only warns up to twice the limit, and opening a
WebP already allocates the whole canvas. These readers touch a few bytes, so a front process may use them too.
Layouts: JPEG ITU-T T.81 annex B; PNG (W3C); GIF89a; BMP (BITMAPCOREHEADER, BITMAPINFOHEADER); WebP (RFC 9649).
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from zoo.errors import InvalidArgument

FORMATS = "JPEG, PNG, GIF, BMP and WebP"


class UnreadableImage(InvalidArgument):
    """An image that cannot be used: empty, not an image, truncated or too large. The message says which and why."""


@dataclass(frozen=True, kw_only=True)
class ImageFacts:
    """`width` and `height` in pixels as stored, before any EXIF rotation."""

    format: str
    width: int
    height: int


def check_image(data: bytes, max_pixels: int) -> ImageFacts:
    """Reads format and size from the header; decodes nothing, whatever the file's name said.

    Raises UnreadableImage: empty, not an image of a known format, header cut off, no pixels, or over `max_pixels`.
    """
    if not data:
        raise UnreadableImage("the image is empty (zero bytes)", cause="empty")
    for name, signature, read_size in _READERS:
        if signature(data):
            try:
                width, height = read_size(data)
            except (struct.error, IndexError):
                raise UnreadableImage(
                    f"{name} image is truncated: its {len(data):,} bytes end inside the header", cause="truncated"
                ) from None
            return _checked(ImageFacts(format=name, width=width, height=height), max_pixels)
    raise UnreadableImage(
        f"not an image: the first bytes are {data[:12]!r}; readable are {FORMATS}",
        hint=next((hint for signature, hint in _HINTS if signature in data[:64].lower()), None),
        cause="not_an_image",
    )


def _checked(facts: ImageFacts, max_pixels: int) -> ImageFacts:
    pixels = facts.width * facts.height
    if pixels < 1:
        raise UnreadableImage(
            f"{facts.format} image of {facts.width} × {facts.height} has no pixels", cause="no_pixels"
        )
    if pixels > max_pixels:
        raise UnreadableImage(
            f"{facts.format} image of {facts.width} × {facts.height} = {pixels:,} pixels is too large; "
            f"at most {max_pixels:,} are allowed",
            hint="make it smaller, or raise data.max_pixels",
            cause="too_many_pixels",
        )
    return facts


def _png_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


_STANDALONE = {0x01, 0xD8, *range(0xD0, 0xD8)}  # JPEG markers without a length: TEM, SOI, RST0–7
_NOT_FRAMES = {0xC4, 0xC8, 0xCC}  # DHT, JPG, DAC lie among the SOFn


_LOSSLESS = {0xC3, 0xC7, 0xCB, 0xCF}  # frames that predict pixels instead of transforming blocks (DICOM has them)


def has_dct_blocks(data: bytes) -> bool:
    """Whether a JPEG can be decoded at a part of its size. `data` has passed `check_image`."""
    return _jpeg_frame(data)[0] not in _LOSSLESS


def _jpeg_size(data: bytes) -> tuple[int, int]:
    return _jpeg_frame(data)[1:]


def _jpeg_frame(data: bytes) -> tuple[int, int, int]:
    """Marker, width, height. Walks the segments to the first start-of-frame; an EXIF thumbnail inside a segment is
    jumped over."""
    at = 2
    while True:
        while data[at] != 0xFF:  # stray bytes between segments; decoders skip them with a warning
            at += 1
        while data[at] == 0xFF:  # any number of fill bytes
            at += 1
        marker = data[at]
        at += 1
        if 0xC0 <= marker <= 0xCF and marker not in _NOT_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 3)
            return marker, width, height
        if marker in (0xD9, 0xDA):  # the picture ends or its data begin, and no frame header came
            raise UnreadableImage("JPEG image has no frame header, so no size", cause="not_an_image")
        if marker not in _STANDALONE:
            at += struct.unpack_from(">H", data, at)[0]


def _gif_size(data: bytes) -> tuple[int, int]:
    """The screen, widened to the first frame where that sticks out (then decoders allocate the frame's size)."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    while data[at] == 0x21:  # extensions before the first frame
        at += 2
        while data[at]:
            at += data[at] + 1
        at += 1
    if data[at] != 0x2C:
        raise UnreadableImage("GIF image has no frame", cause="not_an_image")
    left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, at + 1)
    return max(width, left + frame_width), max(height, top + frame_height)


def _bmp_size(data: bytes) -> tuple[int, int]:
    header_size = struct.unpack_from("<I", data, 14)[0]
    width, height = struct.unpack_from("<HH" if header_size == 12 else "<ii", data, 18)
    return abs(width), abs(height)  # a negative height means that the rows lie top down


def _webp_size(data: bytes) -> tuple[int, int]:
    kind = data[12:16]
    if kind == b"VP8X":
        low_width, high_width, low_height, high_height = struct.unpack_from("<HBHB", data, 24)  # 24 bits each
        return 1 + (high_width << 16 | low_width), 1 + (high_height << 16 | low_height)
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    if len(data) < 16:
        raise IndexError
    raise UnreadableImage(f"WebP image begins with an unknown chunk {kind!r}", cause="not_an_image")


# What is often met under a name that ends in .jpg.
_HINTS = (
    (b"<html", "this is a web page: the download failed where it came from"),
    (b"<!doctype html", "this is a web page: the download failed where it came from"),
    (b"<?xml", "this looks like XML (SVG, or a store's error message)"),
    (b"ftyphei", "this is HEIC, as iPhones store photos: convert it to JPEG"),
    (b"ftypmif1", "this is HEIF: convert it to JPEG"),
    (b"ftypavif", "this is AVIF: convert it to JPEG or PNG"),
    (b"ii*\0", "this is TIFF: convert it to PNG"),
    (b"mm\0*", "this is TIFF: convert it to PNG"),
    (b"jp2 ", "this is JPEG 2000: convert it to JPEG or PNG"),
    (b"git-lfs", "this is a Git LFS pointer: fetch the file itself with git lfs pull"),
    (b"%pdf", "this is a PDF"),
)
_READERS: tuple[tuple[str, Callable[[bytes], bool], Callable[[bytes], tuple[int, int]]], ...] = (
    ("JPEG", lambda data: data.startswith(b"\xff\xd8\xff"), _jpeg_size),
    ("PNG", lambda data: data.startswith(b"\x89PNG\r\n\x1a\n"), _png_size),
    ("GIF", lambda data: data.startswith((b"GIF87a", b"GIF89a")), _gif_size),
    ("WebP", lambda data: data.startswith(b"RIFF") and data[8:12] == b"WEBP", _webp_size),
    ("BMP", lambda data: data.startswith(b"BM"), _bmp_size),
)
