"""JPEGs much larger than what is wanted of them, decoded at a part of their size."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from finetune.data.image_decode import SCALES, OpenImage, scale_for
from finetune.data.preprocess import UnreadableImage, fitted, load_pixels, load_views
from zoo.input_spec import InputSpec

MAX = 50_000_000
BILINEAR = Image.Resampling.BILINEAR


def spec(width: int, height: int, **more: object) -> InputSpec:
    return InputSpec.model_validate({"width": width, "height": height, **more})


def textured(width: int, height: int, seed: int = 0) -> Image.Image:
    """As a photo: most of its detail at low frequencies, some at all; without symmetry."""
    chance = np.random.default_rng(seed)
    total = np.zeros((height, width, 3), np.float32)
    for octave in range(2, 9):
        side = 2**octave
        layer = chance.normal(0, 60 / octave, (side, side, 3)).clip(-127, 127) + 128
        smooth = Image.fromarray(layer.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(smooth, np.float32) - 128
    return Image.fromarray((total + 128).clip(0, 255).astype(np.uint8))


def jpeg(image: Image.Image, **options: Any) -> bytes:
    with io.BytesIO() as buffer:
        image.save(buffer, "JPEG", **{"quality": 92, **options})
        return buffer.getvalue()


def decoded(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def levels_apart(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(int) - other.astype(int)).mean())


def used(data: bytes, factor: float) -> int:
    return OpenImage(data, background=(0, 0, 0), max_pixels=MAX).decoded(factor).scale


def test_what_is_left_for_the_last_step() -> None:
    assert [scale_for(factor) for factor in (0.3, 1, 3.99, 4, 7.99, 8, 9.99, 10, 500)] == [1, 1, 1, 2, 2, 4, 4, 8, 8]
    assert all(factor / scale >= 1.25 for scale, factor in SCALES)
    photo = jpeg(textured(64, 48))
    assert [used(photo, factor) for factor in (1, 4, 8, 10)] == [1, 2, 4, 8]
    with io.BytesIO() as buffer:
        textured(64, 48).save(buffer, "PNG")
        assert used(buffer.getvalue(), 10) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("width", "height"), [(803, 651), (1001, 1603)])
def test_a_part_stands_where_the_whole_does(orientation: int, width: int, height: int) -> None:
    """Sides that aren't multiples of 8, turned each way: a picture that were shifted or stretched by the padding of the
    last block would be several levels off at its edges."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = jpeg(textured(width, height), exif=exif, subsampling=0)
    wanted = spec(64, 60)
    image = OpenImage(data, background=(0, 0, 0), max_pixels=MAX)
    scale = scale_for(min(image.width / 64, image.height / 60))
    assert scale in (4, 8)
    upright = image.decoded().image
    full = np.asarray(upright.resize((64, 60), BILINEAR))
    made = load_pixels(data, wanted, max_pixels=MAX)
    edges = [np.s_[:2], np.s_[-2:], np.s_[:, :2], np.s_[:, -2:]]
    assert levels_apart(made, full) < 1
    assert max(levels_apart(made[edge], full[edge]) for edge in edges) < 1.5


@pytest.mark.parametrize("fit", ["squash", "shortest", "pad"])
@pytest.mark.parametrize("crop_fraction", [1.0, 0.8])
def test_every_fit_of_a_large_photo(fit: str, crop_fraction: float) -> None:
    data = jpeg(textured(1203, 801))
    with io.BytesIO() as buffer:
        decoded(data).save(buffer, "PNG")
        png = buffer.getvalue()
    wanted = spec(70, 60, fit=fit, crop_fraction=crop_fraction, background=[9, 9, 9])
    assert levels_apart(load_pixels(data, wanted, max_pixels=MAX), load_pixels(png, wanted, max_pixels=MAX)) < 0.8


@pytest.mark.parametrize(
    ("width", "height", "more"),
    [
        (299, 299, {}),
        (170, 110, {}),  # 640 / 170 = 3.76: less than 4 times as large as wanted
        (32, 32, {"antialias": False}),
        (32, 32, {"interpolation": "nearest"}),
    ],
)
def test_all_others_are_decoded_whole(width: int, height: int, more: dict[str, object]) -> None:
    data = jpeg(textured(640, 427))
    whole = decoded(data)
    if more.get("antialias", True):
        kind = Image.Resampling.NEAREST if "interpolation" in more else BILINEAR
        expected = whole.resize((width, height), kind)
    else:
        expected = whole.transform((width, height), Image.Transform.EXTENT, (0, 0, 640, 427), BILINEAR)
    made = load_pixels(data, spec(width, height, **more), max_pixels=MAX)
    assert np.array_equal(made, np.asarray(expected))


@pytest.mark.parametrize(
    ("mode", "options"),
    [("RGB", {"progressive": True}), ("L", {}), ("CMYK", {}), ("RGB", {"subsampling": 2}), ("RGB", {"quality": 50})],
)
def test_every_kind_of_jpeg(mode: str, options: dict[str, Any]) -> None:
    data = jpeg(textured(1000, 810).convert(mode), **options)
    full = np.asarray(decoded(data).convert("RGB").resize((80, 60), BILINEAR))
    assert levels_apart(load_pixels(data, spec(80, 60), max_pixels=MAX), full) < 1.2


def lossless_jpeg(side: int) -> bytes:
    """One grey, 77, in a frame that predicts pixels (SOF3): 128 − 51, then no difference to the neighbour ever."""

    def segment(marker: int, body: bytes) -> bytes:
        return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body

    frame = segment(0xC3, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    codes = segment(0xC4, b"\0" + bytes([1, 1] + [0] * 14) + b"\0\6")  # "0": no difference, "10": one of six bits
    bits = "10" + "001100" + "0" * (side * side - 1)
    bits += "1" * (-len(bits) % 8)
    body = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    return b"\xff\xd8" + frame + codes + segment(0xDA, b"\1\1\0\1\0\0") + body + b"\xff\xd9"


def test_a_jpeg_without_blocks_is_decoded_whole() -> None:
    """Lossless JPEGs, as medical images have them: the library can't decode those at a part of their size."""
    for side in (64, 16, 4):
        assert (load_pixels(lossless_jpeg(64), spec(side, side), max_pixels=MAX) == 77).all()


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("side", [20, 299])
def test_a_truncated_photo_is_refused_at_every_scale(share: float, side: int) -> None:
    data = jpeg(textured(1200, 900))
    with pytest.raises(UnreadableImage, match="JPEG image of 1200 × 900 is truncated or damaged"):
        load_pixels(data[: int(len(data) * share)], spec(side, side), max_pixels=MAX)


def test_a_header_that_lies_about_the_size_is_refused_at_every_scale() -> None:
    """Two frame headers: the walk in image_header stops at the first, Pillow keeps the last."""
    data = jpeg(textured(320, 240))
    frame = data.index(b"\xff\xc0")
    other = bytearray(data[frame : frame + 19])
    other[5:9] = (16).to_bytes(2, "big") * 2
    with pytest.raises(UnreadableImage, match="header says 16 × 16, its data 320 × 240"):
        load_pixels(data[:frame] + bytes(other) + data[frame:], spec(8, 8), max_pixels=MAX)


def test_views_of_a_large_photo_depend_on_their_number_alone() -> None:
    """Crops are smaller than the whole, so that some are decoded at another scale than view 0."""
    data = jpeg(textured(520, 430))
    wanted = spec(50, 50)
    views = load_views(data, wanted, views=range(8), max_pixels=MAX)
    for number in range(8):
        assert np.array_equal(load_views(data, wanted, views=[number], max_pixels=MAX)[0], views[number])
    backwards = load_views(data, wanted, views=range(7, -1, -1), max_pixels=MAX)
    assert all(np.array_equal(one, other) for one, other in zip(backwards[::-1], views, strict=True))


def test_a_small_crop_keeps_enough_pixels() -> None:
    """A twentieth of the picture as large as the input: decoded whole, as sharp as it is."""
    data = jpeg(textured(1200, 900))
    image = OpenImage(data, background=(0, 0, 0), max_pixels=MAX)
    box = (600, 300, 860, 500)
    made = fitted(image, spec(100, 100), box)
    assert np.array_equal(made, np.asarray(decoded(data).crop(box).resize((100, 100), BILINEAR)))
    assert fitted(image, spec(100, 100)).shape == (100, 100, 3)  # at 1/8, after the other
    assert np.array_equal(fitted(image, spec(100, 100), box), made)


@pytest.mark.slow
def test_twelve_megapixel_photos_are_within_a_level(shared: Path) -> None:
    """Real photos, four side by side for detail, enlarged; beside Pillow's antialiased resize of all pixels."""
    photos = sorted((shared / "data/flickr1k/images").glob("*.jpg"))
    for first, size in ((0, 299), (40, 224), (80, 299)):
        canvas = Image.new("RGB", (400, 300))
        for place in range(4):
            canvas.paste(Image.open(photos[first + place]).resize((200, 150)), (place % 2 * 200, place // 2 * 150))
        data = jpeg(canvas.resize((4000, 3000), Image.Resampling.BICUBIC), quality=90)
        full = np.asarray(decoded(data).resize((size, size), BILINEAR))
        assert levels_apart(load_pixels(data, spec(size, size), max_pixels=MAX), full) < 1
