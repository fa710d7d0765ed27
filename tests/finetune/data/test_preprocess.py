"""Odd images: each comes out as a person would see it, or is refused with a reason."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from finetune.data.preprocess import (
    UnreadableImage,
    check_image,
    load_pixels,
    load_views,
    normalise,
    preprocess,
)
from zoo.errors import InvalidArgument
from zoo.input_spec import InputSpec

MAX = 50_000_000


def spec(width: int, height: int, **more: object) -> InputSpec:
    return InputSpec.model_validate({"width": width, "height": height, **more})


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    with io.BytesIO() as buffer:
        image.save(buffer, kind, **options)
        return buffer.getvalue()


def picture(width: int = 40, height: int = 30) -> Image.Image:
    """Smooth, without symmetry: red grows to the right, green downwards."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 60)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def as_is(data: bytes, **more: object) -> np.ndarray:
    """Pixels at the image's own size: no resampling."""
    facts = check_image(data, MAX)
    return load_pixels(data, spec(facts.width, facts.height, **more), max_pixels=MAX)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "JPEG", "GIF", "WEBP"])
def test_formats_are_known_by_content(kind: str) -> None:
    data = encoded(picture(), kind)
    facts = check_image(data, MAX)
    assert (facts.format.upper(), facts.width, facts.height) == (kind, 40, 30)
    assert np.abs(as_is(data).astype(int) - np.asarray(picture()).astype(int)).mean() < 8


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 80}, {"quality": 80, "exif": b"Exif\0\0MM\0*"}])
def test_every_kind_of_webp_header(options: dict[str, object]) -> None:
    facts = check_image(encoded(picture(333, 77), "WEBP", **options), MAX)
    assert (facts.width, facts.height) == (333, 77)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}])
def test_every_kind_of_jpeg_header(options: dict[str, object]) -> None:
    thumbnail = b"\xff\xe1" + struct.pack(">H", 2 + 20) + b"\xff\xd8\xff\xc0\0\x11\x08\0\x01\0\x01".ljust(20, b"\0")
    data = encoded(picture(333, 77), "JPEG", **options)
    facts = check_image(data[:2] + thumbnail + b"\xff\xff" + data[3:], MAX)
    assert (facts.width, facts.height) == (333, 77)


def test_an_image_of_the_right_size_goes_in_to_the_bit() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    for fit in ("squash", "shortest", "pad"):
        assert np.array_equal(as_is(encoded(Image.fromarray(noise), "PNG"), fit=fit), noise)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_is_obeyed_before_anything(orientation: int) -> None:
    upright = picture()
    stored = {  # how a camera stores the upright picture under each orientation: the inverse of the turn
        1: upright,
        2: upright.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: upright.transpose(Image.Transpose.ROTATE_180),
        4: upright.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: upright.transpose(Image.Transpose.TRANSPOSE),
        6: upright.transpose(Image.Transpose.ROTATE_90),
        7: upright.transpose(Image.Transpose.TRANSVERSE),
        8: upright.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("PNG", "JPEG"):
        data = encoded(stored, kind, exif=exif)
        pixels = load_pixels(data, spec(40, 30), max_pixels=MAX).astype(int)
        assert np.abs(pixels - np.asarray(upright).astype(int)).mean() < 4, kind


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")  # Pillow says so; for us it is enough
def test_a_broken_exif_block_does_not_lose_the_image() -> None:
    data = encoded(picture(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert as_is(data).shape == (30, 40, 3)


def test_cmyk_has_the_colours_that_were_meant() -> None:
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # no cyan: red
    red, green, blue = as_is(encoded(cmyk, "JPEG"))[8, 8]
    assert red > 240
    assert green < 15
    assert blue < 15


def test_grey_images_have_three_equal_channels() -> None:
    grey = picture().convert("L")
    assert np.array_equal(as_is(encoded(grey, "PNG")), np.repeat(np.asarray(grey)[..., None], 3, axis=2))
    assert np.array_equal(as_is(encoded(grey.convert("1"), "PNG"))[..., 1], np.asarray(grey.convert("1")) * 255)


def test_16_bit_grey_is_scaled_by_its_depth() -> None:
    deep = np.linspace(0, 65535, 1200).round().astype(np.uint16).reshape(30, 40)
    pixels = as_is(encoded(Image.fromarray(deep), "PNG"))
    assert np.array_equal(pixels[..., 0], np.round(deep / 257).astype(np.uint8))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = b"".join(chunk(*one) for one in [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")])
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(2, 1, 16, 0, b"\0\x12\x34\xff\xff", (b"tRNS", b"\x12\x34")), [9, 255]),  # 16-bit grey
        (png(2, 1, 4, 0, b"\0\x5f", (b"tRNS", b"\0\x05")), [9, 255]),  # 4-bit grey, sample 5 is clear
        (png(2, 1, 16, 2, b"\0" + b"\x12\x34" * 3 + b"\xff\xff" * 3, (b"tRNS", b"\x12\x34" * 3)), [9, 255]),
        (png(2, 1, 8, 2, b"\0" + b"\x12" * 3 + b"\xff" * 3, (b"tRNS", b"\0\x12" * 3)), [9, 255]),
        (png(2, 1, 8, 3, b"\0\0\x01", (b"PLTE", b"\0\0\0\xff\xff\xff"), (b"tRNS", b"\0")), [9, 255]),
        (png(2, 1, 2, 3, b"\0\x10", (b"PLTE", b"\0\0\0\xff\xff\xff"), (b"tRNS", b"\0")), [9, 255]),
    ],
    ids=["grey16", "grey4", "rgb16", "rgb8", "palette", "palette2bit"],
)
def test_a_transparent_colour_shows_the_background(data: bytes, expected: list[int]) -> None:
    assert as_is(data, background=[9, 9, 9])[0, :, 0].tolist() == expected


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_composited_on_the_background(mode: str) -> None:
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 128))
    image.putpixel((2, 0), (50, 50, 50, 255))
    pixels = as_is(encoded(image.convert(mode), "PNG"), background=[200, 100, 40])
    assert pixels[0, 0].tolist() == [200, 100, 40]
    assert pixels[0, 1] == pytest.approx([100, 50, 20], abs=1)
    assert pixels[0, 2].tolist() == [50, 50, 50]


def test_hidden_colours_do_not_bleed_into_the_edges() -> None:
    image = Image.new("RGBA", (40, 40), (255, 0, 0, 0))  # red where nothing shows
    image.paste((0, 0, 255, 255), (0, 0, 20, 40))
    pixels = load_pixels(encoded(image, "PNG"), spec(11, 11, background=[0, 0, 0]), max_pixels=MAX)
    assert pixels[..., 0].max() == 0


def test_a_palette_is_expanded_and_a_gif_gives_its_first_frame() -> None:
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("#ff0000", "#00ff00"))
    assert as_is(encoded(first.convert("P"), "PNG"))[0, 0].tolist() == [255, 0, 0]
    assert as_is(encoded(first, "GIF", save_all=True, append_images=[second]))[0, 0].tolist() == [255, 0, 0]


def huge_headers() -> list[tuple[str, bytes]]:
    side = 10_000
    bmp = b"BM" + struct.pack("<IHHI", 0, 0, 0, 54) + struct.pack("<IiiHH", 40, side, -side, 1, 24) + b"\0" * 24
    jpeg = b"\xff\xd8\xff\xc0\0\x11\x08" + struct.pack(">HH", side, side) + b"\x03" + b"\0" * 9
    gif = b"GIF89a" + struct.pack("<HHBBB", 10, 10, 0, 0, 0) + b"\x2c" + struct.pack("<HHHHB", 0, 0, side, side, 0)
    vp8x = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + (side - 1).to_bytes(3, "little") * 2
    vp8l = b"RIFF\0\0\0\0WEBPVP8L\0\0\0\0\x2f" + struct.pack("<I", (side - 1) | (side - 1) << 14)
    vp8 = b"RIFF\0\0\0\0WEBPVP8 \0\0\0\0\0\0\0\x9d\x01\x2a" + struct.pack("<HH", side, side)
    return [
        ("PNG", png(side, side, 8, 2, b"")),
        ("BMP", bmp),
        ("JPEG", jpeg),
        ("GIF", gif),
        ("WebP", vp8x),
        ("WebP", vp8l),
        ("WebP", vp8),
    ]


@pytest.mark.parametrize(("kind", "data"), huge_headers())
def test_a_100_megapixel_header_is_refused_before_any_decode(kind: str, data: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(UnreadableImage) as caught:
            load_pixels(data, spec(8, 8), max_pixels=MAX)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert f"{kind} image of 10000 × 10000 = 100,000,000 pixels" in caught.value.message
    assert "at most 50,000,000" in caught.value.message
    assert peak < 1_000_000


def test_the_limit_is_ours_alone() -> None:
    """Pillow's own limit (89 megapixels: a warning, an error in these tests) does not interfere."""
    large = encoded(Image.new("1", (10_000, 9_500)), "PNG")
    assert load_pixels(large, spec(4, 4), max_pixels=100_000_000).max() == 0
    assert Image.MAX_IMAGE_PIXELS == (1024 * 1024 * 1024 // 4 // 3)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", r"empty \(zero bytes\)"),
        (b"<html>no such image</html>", r"not an image: the first bytes are b'<html>no suc'"),
        (b"II*\0" + b"\0" * 40, "not an image"),
        (b"\x89PNG\r\n\x1a\n\0\0", "PNG image is truncated: its 10 bytes end inside the header"),
        (b"\xff\xd8\xff", "JPEG image is truncated"),
        (b"\xff\xd8\xff\xd9", "JPEG image has no frame header"),
        (b"GIF89a", "GIF image is truncated"),
        (b"RIFF\0\0\0\0WEBP", "WebP image is truncated"),
        (b"RIFF\0\0\0\0WEBPJUNK" + b"\0" * 20, "unknown chunk"),
        (b"BM", "BMP image is truncated"),
        (png(0, 5, 8, 2, b""), "0 × 5 has no pixels"),
    ],
)
def test_what_is_no_image_says_why(data: bytes, says: str) -> None:
    with pytest.raises(UnreadableImage, match=says):
        load_pixels(data, spec(8, 8), max_pixels=MAX)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_image_is_refused(kind: str, share: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = encoded(noise, kind)
    with pytest.raises(UnreadableImage, match="truncated or damaged"):
        load_pixels(data[: int(len(data) * share)], spec(8, 8), max_pixels=MAX)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
def test_damaged_bytes_give_pixels_or_our_error(kind: str) -> None:
    data = encoded(picture(), kind)
    chance = np.random.default_rng(1)
    refused = 0
    for _ in range(200):
        damaged = bytearray(data)
        for at in chance.integers(0, len(data), 4):
            damaged[at] = chance.integers(0, 256)
        try:
            assert load_pixels(bytes(damaged), spec(8, 8), max_pixels=100_000).shape == (8, 8, 3)
        except UnreadableImage:
            refused += 1
    assert 0 < refused < 200


def test_squash_shortest_and_pad() -> None:
    wide = Image.new("RGB", (80, 40), "#ff0000")
    wide.paste((0, 0, 255), (20, 0, 60, 40))  # blue centre, 40 × 40
    data = encoded(wide, "PNG")

    def row(**more: object) -> np.ndarray:
        return load_pixels(data, spec(8, 8, interpolation="nearest", **more), max_pixels=MAX)

    assert (row(fit="squash")[4, :, 2] > 0).tolist() == [False, False, True, True, True, True, False, False]
    assert (row(fit="shortest")[..., 2] == 255).all()
    assert (row(fit="squash", crop_fraction=0.5)[..., 2] == 255).all()
    padded = row(fit="pad", background=[1, 2, 3])
    assert (padded[[0, 1, 6, 7]] == [1, 2, 3]).all()
    assert (padded[2:6, 3, 2] == 255).all()


def test_shortest_follows_torchvision() -> None:
    """Shorter side to floor(224 / 0.875) = 256, the longer one to 256 × 500 // 375, then the centre."""
    image = picture(500, 375)
    expected = np.asarray(image.resize((341, 256), Image.Resampling.BICUBIC))[16:240, 58:282]
    made = load_pixels(
        encoded(image, "PNG"),
        spec(224, 224, fit="shortest", crop_fraction=0.875, interpolation="bicubic"),
        max_pixels=MAX,
    )
    assert np.array_equal(made, expected)


def test_antialias_averages_what_it_shrinks() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    data = encoded(Image.fromarray(stripes), "PNG")
    smooth = load_pixels(data, spec(9, 9), max_pixels=MAX)
    sharp = load_pixels(data, spec(9, 9, antialias=False), max_pixels=MAX)
    assert np.ptp(smooth) < 60 < np.ptp(sharp)
    with pytest.raises(InvalidArgument, match="'lanczos' exists with antialias only"):
        load_pixels(data, spec(9, 9, antialias=False, interpolation="lanczos"), max_pixels=MAX)


def test_normalise_has_one_meaning() -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    made = normalise(pixels, spec(16, 16, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]))
    exact = (pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    assert made.dtype == np.float32
    assert np.abs(made - exact).max() < 1e-6
    batch = normalise(np.stack([pixels, pixels]), spec(16, 16, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]))
    assert batch[1].tobytes() == made.tobytes()
    assert preprocess(encoded(Image.fromarray(pixels), "PNG"), spec(16, 16), max_pixels=MAX).max() == 1.0


def test_views_depend_on_the_image_and_the_number_alone() -> None:
    data = encoded(picture(), "PNG")
    asked = spec(40, 30)
    views = load_views(data, asked, views=range(6), max_pixels=MAX)
    again = load_views(data, asked, views=[5, 0, 2], max_pixels=MAX)
    assert np.array_equal(views[0], np.asarray(picture()))
    assert np.array_equal(views[1], views[0][:, ::-1])
    assert [view.tobytes() for view in again] == [views[number].tobytes() for number in (5, 0, 2)]
    assert len({view.tobytes() for view in views}) == 6
