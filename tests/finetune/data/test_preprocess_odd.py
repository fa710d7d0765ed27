"""More odd images, and that training, evaluation and serving see each through one function."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from finetune.data.augment import augmented
from finetune.data.augmentation import Augmentation
from finetune.data.features import FeatureCache
from finetune.data.image_header import UnreadableImage, check_image
from finetune.data.preprocess import load_pixels, load_views, normalise, preprocess
from finetune.data.sources import open_source
from finetune.models.feature_row import FeatureRow
from finetune.predictor import Predictor
from tests.finetune.data.test_preprocess import as_is, encoded, picture, png
from zoo.input_spec import InputSpec

MAX = 10_000_000


def deep_png(colour: int, samples: list[list[int]]) -> bytes:
    """A row of 16-bit pixels, each a list of samples."""
    row = b"\0" + b"".join(struct.pack(">H", sample) for pixel in samples for sample in pixel)
    return png(len(samples), 1, 16, colour, row)


def test_16_bit_colour_is_scaled_by_its_depth() -> None:
    pixels = as_is(deep_png(2, [[0, 0x7F80, 0xFFFF], [0x0100, 0x8000, 0x00FF]]))
    assert pixels[0].astype(int) == pytest.approx(np.array([[0, 127, 255], [1, 128, 1]]), abs=1)


@pytest.mark.parametrize("colour", [4, 6], ids=["grey and alpha", "colour and alpha"])
def test_16_bit_alpha_is_composited(colour: int) -> None:
    channels = 1 if colour == 4 else 3
    shown = [[0x4000] * channels + [alpha] for alpha in (0, 0x8000, 0xFFFF)]
    pixels = as_is(deep_png(colour, shown), background=[200, 200, 200])
    assert pixels[0, :, 0].astype(int) == pytest.approx(np.array([200, 132, 64]), abs=1)
    assert (pixels == pixels[..., :1]).all()


def test_ycck_has_the_colours_that_were_meant() -> None:
    """As Photoshop writes: luminance and colour differences of the inverted inks, Adobe's transform 2. Red here, of
    which the inks are cyan 0, magenta 255, yellow 255, black 0."""
    luminance, blue, red = Image.new("RGB", (1, 1), (0, 255, 255)).convert("YCbCr").getpixel((0, 0))
    stored = (luminance, blue, red, 255)
    plain = encoded(Image.new("CMYK", (16, 16), tuple(255 - one for one in stored)), "JPEG", quality=100)
    adobe = plain.index(b"Adobe")
    assert plain[adobe + 11] == 0  # the transform: none
    ycck = plain[: adobe + 11] + b"\2" + plain[adobe + 12 :]
    assert as_is(ycck)[8, 8].astype(int) == pytest.approx(np.array([255, 0, 0]), abs=6)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_colour_profile_is_left_alone(kind: str) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()  # would change every pixel
    options = {"lossless": True} if kind == "WEBP" else {}
    with_profile = encoded(picture(), kind, icc_profile=profile, **options)
    assert b"acsp" in with_profile or kind == "PNG"  # PNG stores it compressed
    assert np.array_equal(as_is(with_profile), as_is(encoded(picture(), kind, **options)))


def test_moving_pictures_give_their_first_frame() -> None:
    first, second = (Image.new("RGB", (20, 10), colour) for colour in ("#ff0000", "#00ff00"))
    for kind in ("GIF", "PNG", "WEBP"):
        data = encoded(first, kind, save_all=True, append_images=[second], duration=100)
        assert as_is(data)[5, 5].astype(int) == pytest.approx(np.array([255, 0, 0]), abs=3), kind


def test_a_gif_is_composited_where_its_first_frame_is_clear() -> None:
    image = Image.new("P", (4, 1), 1)
    image.putpalette([1, 2, 3, 250, 250, 250])
    image.putpixel((0, 0), 0)
    data = encoded(image, "GIF", transparency=0)
    assert as_is(data, background=[7, 8, 9])[0].tolist() == [[7, 8, 9]] + [[250, 250, 250]] * 3


@pytest.mark.parametrize("lossless", [True, False])
def test_webp_is_composited(lossless: bool) -> None:
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0))
    image.paste((10, 20, 30, 255), (8, 0, 16, 16))
    pixels = as_is(encoded(image, "WEBP", lossless=lossless, exact=True), background=[200, 100, 40])
    assert pixels[8, 2].astype(int) == pytest.approx(np.array([200, 100, 40]), abs=2)
    assert pixels[8, 13].astype(int) == pytest.approx(np.array([10, 20, 30]), abs=6)


def test_a_phones_jpeg_with_a_second_picture_inside() -> None:
    """Multi-picture format: gain maps, depth, a larger preview."""
    data = encoded(picture(200, 150), "MPO", save_all=True, append_images=[Image.new("RGB", (300, 300), "#00ff00")])
    assert check_image(data, MAX).format == "JPEG"
    small = load_pixels(data, InputSpec(width=20, height=15), max_pixels=MAX)
    assert small.astype(int) == pytest.approx(np.asarray(picture(20, 15)).astype(int), abs=14)


def test_a_bitmap_may_lie_top_down_and_have_a_palette() -> None:
    header = struct.pack("<IiiHHIIiiII", 40, 2, -2, 1, 24, 0, 16, 0, 0, 0, 0)
    rows = bytes([0, 0, 255] * 2 + [0, 0] + [255, 0, 0] * 2 + [0, 0])  # red above blue, rows filled up to 4 bytes
    data = b"BM" + struct.pack("<IHHI", 54 + len(rows), 0, 0, 54) + header + rows
    assert as_is(data)[:, 0].tolist() == [[255, 0, 0], [0, 0, 255]]
    palette = picture().quantize(16)
    assert np.array_equal(as_is(encoded(palette, "BMP")), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        (b"<!DOCTYPE HTML>\n<html><body>404", "web page"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"MM\0*" + b"\0" * 40, "TIFF"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
        (b"\0" * 200, None),
    ],
)
def test_what_is_no_image_says_what_it_may_be(data: bytes, hint: str | None) -> None:
    with pytest.raises(UnreadableImage, match="not an image") as caught:
        check_image(data, MAX)
    assert hint is None if caught.value.hint is None else hint in caught.value.hint


def test_a_png_that_inflates_to_more_than_its_header_says() -> None:
    """A decompression bomb in the data, not in the size: what is beyond the picture is never made."""
    bomb = png(8, 8, 8, 2, b"")
    rows = zlib.compress(b"\0" * 100_000_000, 9)
    start = bomb.index(b"IDAT") - 4
    body = b"IDAT" + rows
    data = bomb[:start] + struct.pack(">I", len(rows)) + body + struct.pack(">I", zlib.crc32(body)) + bomb[-12:]
    assert load_pixels(data, InputSpec(width=8, height=8), max_pixels=MAX).max() == 0


ODD: dict[str, Any] = {
    "photo.png": lambda: encoded(picture(700, 500), "JPEG", exif=_turned(6)),  # large: decoded at a part of its size
    "grey.jpg": lambda: encoded(picture().convert("L"), "JPEG"),
    "cmyk.jpg": lambda: encoded(picture().convert("CMYK"), "JPEG"),
    "clear.jpg": lambda: encoded(_half_clear(), "PNG"),
    "deep.png": lambda: encoded(Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50), "PNG"),
    "small.gif": lambda: encoded(picture(9, 9), "GIF"),
    "web.bmp": lambda: encoded(picture(), "WEBP"),
}


def _half_clear() -> Image.Image:
    image = picture().convert("RGBA")
    image.putalpha(picture().convert("L"))
    return image


def _turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


class _Pixels:
    """A backbone whose features are the pixels: it keeps what it was shown."""

    digest = "sha256:pixels"
    input_spec = InputSpec(height=24, width=30, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    feature_dim = 24 * 30 * 3

    def feature_vector(self, image_BHWC: Any) -> np.ndarray:
        return np.asarray(image_BHWC, np.float32).reshape(len(image_BHWC), -1)


def test_training_evaluation_and_serving_see_the_same_to_the_bit(tmp_path: Path) -> None:
    images = {name: make() for name, make in ODD.items()}
    for name, data in images.items():
        folder = tmp_path / "data" / name.partition(".")[0]
        folder.mkdir(parents=True)
        (folder / name).write_bytes(data)
    source = open_source(f"folder:{tmp_path / 'data'}")
    backbone = _Pixels()
    spec = backbone.input_spec
    cached = FeatureCache(tmp_path / "cache").open_or_fill(
        backbone=backbone, source=source, indices=range(len(images)), max_pixels=MAX
    )
    served = Predictor(
        version=SimpleNamespace(manifest=SimpleNamespace(head=None)),  # type: ignore[arg-type]  # a backbone only
        input_spec=spec,
        feature_row=backbone.feature_vector,
        row=FeatureRow(vector_size=backbone.feature_dim),
        head=None,
        max_pixels=MAX,
    )
    for row, example in enumerate(source.examples):
        data = images[example.id.rpartition("/")[2]]
        expected = preprocess(data, spec, max_pixels=MAX)
        plain = augmented(data, spec, Augmentation(), seed=1, epoch=2, index=3, may_mirror=True, max_pixels=MAX)
        assert cached.features[row, 0].tobytes() == expected.tobytes(), example.id
        assert served.embed([data])[0].tobytes() == expected.tobytes(), example.id
        assert normalise(plain, spec).tobytes() == expected.tobytes(), example.id
        assert normalise(load_views(data, spec, views=[2, 0], max_pixels=MAX)[1], spec).tobytes() == expected.tobytes()
    assert len({vector.tobytes() for vector in cached.features[:, 0]}) == len(images)
    assert not cached.bad
