"""The preprocessing inside exported graphs against `finetune.data.preprocess`, pixel by pixel."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from finetune.data.image_decode import scale_for
from finetune.data.preprocess import load_pixels, preprocess
from finetune.export.image_graph import decoded, fitted, preprocessed, seen
from zoo.input_spec import InputSpec

MAX_PIXELS = 10**7
BACKGROUND = (255, 128, 3)


def smooth(seed: int, width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Hard edges and noise, so that a filter's overshoot and every rounding show."""
    chance = np.random.default_rng(seed)
    channels = len(mode)
    blocks = chance.integers(0, 256, (5, 6, channels), np.uint8).repeat(height // 5 + 1, 0).repeat(width // 6 + 1, 1)
    noise = chance.normal(0, 20, (height, width, channels))
    pixels = np.clip(blocks[:height, :width] + noise, 0, 255).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def graph(spec: InputSpec) -> Callable[[bytes], np.ndarray]:
    signature = [tf.TensorSpec([], tf.string)]
    function = tf.function(lambda data: fitted(decoded(data, spec.background), spec), input_signature=signature)
    return lambda data: function(data).numpy()


def expected(data: bytes, spec: InputSpec) -> np.ndarray:
    return load_pixels(data, spec, max_pixels=MAX_PIXELS)


# Wide, tall, smaller and larger than the input; so that either pass comes first, and only one or none is needed.
SIZES = [(64, 48), (97, 31), (31, 97), (20, 20), (200, 47), (63, 48), (64, 150), (300, 220), (70, 200)]
FILTERS = [
    *(("bilinear", anti) for anti in (True, False)),
    *(("bicubic", anti) for anti in (True, False)),
    ("lanczos", True),
    ("nearest", True),
]


@pytest.mark.parametrize("fit", ["squash", "shortest", "pad"])
@pytest.mark.parametrize(("interpolation", "antialias"), FILTERS)
def test_resampling_is_pillows_to_the_bit(fit: Any, interpolation: Any, antialias: bool) -> None:
    crop_fraction = 0.875 if interpolation in ("bilinear", "nearest") else 1.0
    spec = InputSpec(
        height=48,
        width=64,
        fit=fit,
        interpolation=interpolation,
        antialias=antialias,
        crop_fraction=crop_fraction,
        background=BACKGROUND,
    )
    run = graph(spec)
    for seed, (width, height) in enumerate(SIZES):
        data = encoded(smooth(seed, width, height))
        np.testing.assert_array_equal(run(data), expected(data, spec), err_msg=f"{width} × {height}")


def kinds_of_image() -> dict[str, bytes]:
    rgba = smooth(3, 50, 40, "RGBA")
    palette = smooth(4, 50, 40).quantize(16)
    return {
        "jpeg": encoded(smooth(1, 51, 43), "JPEG", quality=85),
        "jpeg, colour at full size": encoded(smooth(1, 51, 43), "JPEG", quality=95, subsampling=0),
        "jpeg, progressive": encoded(smooth(1, 51, 43), "JPEG", progressive=True),
        "jpeg, grey": encoded(smooth(2, 50, 40, "L"), "JPEG"),
        "png, grey": encoded(smooth(2, 50, 40, "L")),
        "png, one bit": encoded(smooth(2, 50, 40, "L").convert("1")),
        "png, transparent": encoded(rgba),
        "png, grey and transparent": encoded(rgba.convert("LA")),
        "png, palette": encoded(palette),
        "png, palette with a transparent entry": encoded(palette, transparency=3),
        "png, one transparent colour": encoded(
            smooth(5, 50, 40).point(lambda v: v // 64 * 64), transparency=(64, 64, 64)
        ),
        "gif": encoded(palette, "GIF"),
        "bmp": encoded(smooth(6, 50, 40), "BMP"),
    }


SPEC = InputSpec(height=40, width=30, background=BACKGROUND)


@pytest.fixture(scope="module")
def run() -> Callable[[bytes], np.ndarray]:
    return graph(SPEC)


@pytest.mark.parametrize("kind", kinds_of_image())
def test_decoding_is_pillows_to_the_bit(run: Callable[[bytes], np.ndarray], kind: str) -> None:
    data = kinds_of_image()[kind]
    np.testing.assert_array_equal(run(data), expected(data, SPEC))


def test_a_deep_grey_png_is_a_level_off_at_most(run: Callable[[bytes], np.ndarray]) -> None:
    deep = Image.fromarray(np.random.default_rng(0).integers(0, 65536, (40, 30)).astype(np.uint16))
    data = encoded(deep)
    difference = run(data).astype(int) - expected(data, SPEC)
    assert 0 < np.abs(difference).max() <= 1


@pytest.mark.parametrize("little", [True, False])
def test_photos_stand_upright_by_their_exif(run: Callable[[bytes], np.ndarray], little: bool) -> None:
    seen = set()
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif.endian = "<" if little else ">"
        exif[0x010F] = "a maker"
        exif[0x0112] = orientation
        data = encoded(smooth(7, 30, 40), "JPEG", exif=exif)
        pixels = run(data)
        np.testing.assert_array_equal(pixels, expected(data, SPEC), err_msg=f"orientation {orientation}")
        seen.add(pixels.tobytes())
    assert len(seen) == 8  # each was turned its own way


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # Pillow says what is odd about it
@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_damaged_exif_means_upright(run: Callable[[bytes], np.ndarray], cut: int) -> None:
    """The tag's bytes overwritten from some place on; the picture itself is sound."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = bytearray(encoded(smooth(7, 30, 40), "JPEG", exif=exif))
    start = data.index(b"Exif\0\0") + 6
    end = data.index(b"\xff\xdb", start)
    data[min(start + cut, end) : end] = b"\xee" * (end - min(start + cut, end))
    np.testing.assert_array_equal(run(bytes(data)), expected(bytes(data), SPEC))


# Sides that are no multiples of 8; 1/8, 1/4, 1/2 and the whole; both passes first, by squash also unequally.
LARGE = [(333, 270), (803, 1001), (261, 450), (190, 333), (130, 97), (96, 600)]


@pytest.mark.parametrize(
    ("fit", "interpolation"), [("squash", "bilinear"), ("shortest", "bicubic"), ("pad", "lanczos")]
)
def test_large_jpegs_are_decoded_at_a_part_of_their_size(fit: Any, interpolation: Any) -> None:
    spec = InputSpec(height=23, width=27, fit=fit, interpolation=interpolation, crop_fraction=0.9)
    run = tf.function(lambda data: seen(data, spec), input_signature=[tf.TensorSpec([], tf.string)])
    scales = set()
    for place, (width, height) in enumerate(LARGE):
        exif = Image.Exif()
        for orientation in range(1, 9):
            exif[0x0112] = orientation
            data = encoded(smooth(place, width, height), "JPEG", exif=exif)
            np.testing.assert_array_equal(
                run(data).numpy(), expected(data, spec), err_msg=f"{width} × {height}, orientation {orientation}"
            )
        scales.add(scale_for(min(width / spec.width, height / spec.height)))
    assert scales == {1, 2, 4, 8}


def test_values_get_their_range_in_batches() -> None:
    spec = InputSpec(height=24, width=32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    batch = [encoded(smooth(seed, 40 + seed, 30)) for seed in range(3)]
    found = tf.function(lambda encoded_B: preprocessed(encoded_B, spec))(tf.constant(batch)).numpy()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, np.stack([preprocess(d, spec, max_pixels=MAX_PIXELS) for d in batch]))


def test_what_is_no_image_fails_the_batch() -> None:
    spec = InputSpec(height=24, width=32)
    batch = tf.function(
        lambda encoded_B: preprocessed(encoded_B, spec), input_signature=[tf.TensorSpec([None], tf.string)]
    )
    for bad in (b"", b"text", encoded(smooth(0, 40, 30))[:50]):
        with pytest.raises(tf.errors.InvalidArgumentError):
            batch(tf.constant([encoded(smooth(0, 40, 30)), bad]))


@pytest.mark.slow
def test_real_photos_and_stamps_are_the_same_to_the_bit(shared: Path) -> None:
    photos = sorted((shared / "data/flickr1k").rglob("*.jpg"))[::9]
    stamps = sorted((shared / "data/stamps").rglob("*.png"))[::7]
    assert len(photos) == 100
    assert len(stamps) > 80
    for height, interpolation in itertools.product((224, 299), ("bilinear", "bicubic")):
        spec = InputSpec(height=height, width=height, interpolation=interpolation)  # type: ignore[arg-type]
        run = graph(spec)
        for path in photos + stamps:
            data = path.read_bytes()
            np.testing.assert_array_equal(run(data), expected(data, spec), err_msg=str(path))
