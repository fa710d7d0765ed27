"""Preprocessing as part of a TensorFlow graph: what `finetune.data.preprocess` does, for exports that take image bytes.

Takes encoded images, string [B]. Gives float32 [B, height, width, 3] by an InputSpec. Next:
`finetune.export.saved_model`.

Measured by tests against Pillow: no difference for JPEG (libjpeg-turbo with the accurate DCT on both sides), PNG of 8
bits and fewer, GIF and BMP; 16-bit grey PNG differs by one level of 255 at most.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from finetune.data.image_decode import SCALES
from finetune.export.exif_graph import jpeg_orientation, upright
from finetune.export.resampling import ratio, resize
from zoo.input_spec import InputSpec

NOTES = (
    "The graph decodes JPEG, PNG, GIF (its first frame) and BMP; opaque WebP where TensorFlow does (2.21).",
    "A JPEG's EXIF orientation is followed, as in the zoo; a PNG's (rare) isn't read.",
    "The graph sets no limit to an image's size; put one in front of it.",
)


def preprocessed(encoded_B: tf.Tensor, spec: InputSpec) -> tf.Tensor:
    """float32 [B, spec.height, spec.width, 3] of encoded images; an unreadable one fails the whole batch."""
    pixels = tf.TensorSpec([spec.height, spec.width, 3], tf.uint8)
    image_BHWC = tf.map_fn(lambda data: seen(data, spec), encoded_B, fn_output_signature=pixels)
    return normalised(image_BHWC, spec)


def seen(data: tf.Tensor, spec: InputSpec) -> tf.Tensor:
    """uint8 [spec.height, spec.width, 3] of one encoded image; a large JPEG is decoded at a part of its size."""

    def whole() -> tf.Tensor:
        return fitted(decoded(data, spec.background), spec)

    if not spec.antialias or spec.interpolation == "nearest":
        return whole()
    is_jpeg = tf.strings.substr(data, 0, 3) == b"\xff\xd8\xff"
    return tf.cond(is_jpeg, lambda: _jpeg_seen(data, spec, whole), whole)


def _jpeg_seen(data: tf.Tensor, spec: InputSpec, whole: Callable[[], tf.Tensor]) -> tf.Tensor:
    """As `finetune.data.image_decode` and `finetune.data.preprocess.fitted` do it."""
    stored = tf.image.extract_jpeg_shape(data)[:2]
    orientation = jpeg_orientation(data)
    size = tf.where(orientation >= 5, stored[::-1], stored)
    plan = _PLANS[spec.fit](size[0], size[1], spec)
    factor = tf.minimum(
        ratio(plan.bottom - plan.top, plan.size[0]),
        ratio(plan.right - plan.left, plan.size[1]),
    )

    def at(scale: int) -> tf.Tensor:
        shrunk_HWC = tf.io.decode_jpeg(data, channels=3, ratio=scale, dct_method="INTEGER_ACCURATE")
        shrunk_HWC = upright(shrunk_HWC, orientation)
        beyond = tf.cast(tf.shape(shrunk_HWC)[:2], tf.float64) - tf.cast(size, tf.float64) / scale
        ends_top = tf.reduce_any(orientation == tf.constant([3, 4, 7, 8], tf.int64))
        ends_left = tf.reduce_any(orientation == tf.constant([2, 3, 6, 7], tf.int64))
        origin = tf.where(tf.stack([ends_top, ends_left] * 2), tf.tile(beyond, [2]), tf.zeros([4], tf.float64))
        box = tf.cast(tf.stack([plan.top, plan.left, plan.bottom, plan.right]), tf.float64) / scale + origin
        resized = resize(shrunk_HWC, plan.size, interpolation=spec.interpolation, antialias=True, box=box)
        return _placed(resized, plan, spec)

    # The smallest part that is allowed; 0 stands for the whole.
    chosen = tf.reduce_sum([tf.cast(factor >= least, tf.int32) for _, least in SCALES])
    parts = [lambda scale=scale: at(scale) for scale, _ in reversed(SCALES)]
    return tf.switch_case(chosen, [whole, *parts])


def normalised(pixels_BHWC: tf.Tensor, spec: InputSpec) -> tf.Tensor:
    """(pixel × scale − mean) / std in float32, in the order of `finetune.data.preprocess.normalise`."""
    values_BHWC = tf.cast(pixels_BHWC, tf.float32) * tf.constant(spec.scale, tf.float32)
    if any(spec.mean):
        values_BHWC -= tf.constant(spec.mean, tf.float32)
    if any(deviation != 1 for deviation in spec.std):
        # Not `/`: by a constant, Grappler makes a product with the reciprocal of it, which is a bit off.
        values_BHWC = tf.math.divide_no_nan(values_BHWC, tf.constant(spec.std, tf.float32))
    return values_BHWC


def decoded(data: tf.Tensor, background: tuple[int, int, int]) -> tf.Tensor:
    """uint8 [H, W, 3] of one encoded image, upright, its transparency composited on `background`."""
    is_jpeg = tf.strings.substr(data, 0, 3) == b"\xff\xd8\xff"
    is_png = tf.strings.substr(data, 0, 8) == b"\x89PNG\r\n\x1a\n"
    image_HWC = tf.case(
        [
            (is_jpeg, lambda: _jpeg(data)),
            (is_png, lambda: _composited(_png(data), background)),
        ],
        default=lambda: tf.io.decode_image(data, channels=3, expand_animations=False),
        exclusive=True,
    )
    image_HWC.set_shape([None, None, 3])
    return image_HWC


def _jpeg(data: tf.Tensor) -> tf.Tensor:
    pixels_HWC = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")  # as libjpeg-turbo does for Pillow
    return upright(pixels_HWC, jpeg_orientation(data))


def _png(data: tf.Tensor) -> tf.Tensor:
    """uint8 [H, W, 4]. Where a file has no transparency, TensorFlow (2.21) fills in the largest number of its bit depth
    after the samples were spread to 8 bits: 1 or 15 instead of 255."""
    seen_HW4 = tf.io.decode_png(data, channels=4)
    depth = tf.cast(tf.io.decode_raw(tf.strings.substr(data, 24, 1), tf.uint8)[0], tf.int32)
    filler = tf.bitwise.left_shift(1, tf.minimum(depth, 8)) - 1
    filled = (depth < 8) & tf.reduce_all(tf.cast(seen_HW4[..., 3], tf.int32) == filler)
    opaque_HW4 = tf.concat([seen_HW4[..., :3], tf.fill(tf.shape(seen_HW4[..., 3:]), tf.constant(255, tf.uint8))], -1)
    return tf.cond(filled, lambda: opaque_HW4, lambda: seen_HW4)


def _composited(seen_HW4: tf.Tensor, background: tuple[int, int, int]) -> tf.Tensor:
    """Pillow's alpha_composite over an opaque canvas, in its whole numbers (AlphaComposite.c)."""
    seen_HW4 = tf.cast(seen_HW4, tf.int32)
    colour_HWC, alpha_HW1 = seen_HW4[..., :3], seen_HW4[..., 3:]
    mixed_HWC = (colour_HWC * alpha_HW1 + tf.constant(background, tf.int32) * (255 - alpha_HW1)) * 128 + (128 << 7)
    return tf.cast((mixed_HWC // 256 + mixed_HWC) // 256 // 128, tf.uint8)  # // 2^n is >> n of what is not negative


class _Plan(NamedTuple):
    """What lies between the four sides is resized to `size` (height, width); its corner then lies at `offset`."""

    top: Any
    left: Any
    bottom: Any
    right: Any
    size: tuple[Any, Any]
    offset: tuple[Any, Any]


def fitted(image_HWC: tf.Tensor, spec: InputSpec) -> tf.Tensor:
    """uint8 [spec.height, spec.width, 3] of an image of any size."""
    shape = tf.shape(image_HWC)
    plan = _PLANS[spec.fit](shape[0], shape[1], spec)
    cut_HWC = image_HWC[plan.top : plan.bottom, plan.left : plan.right]
    resized = resize(cut_HWC, plan.size, interpolation=spec.interpolation, antialias=spec.antialias)
    return _placed(resized, plan, spec)


def _placed(image_HWC: tf.Tensor, plan: _Plan, spec: InputSpec) -> tf.Tensor:
    top, left = plan.offset
    if spec.fit == "shortest":
        image_HWC = image_HWC[-top : spec.height - top, -left : spec.width - left]
    if spec.fit == "pad":
        room = [[top, spec.height - plan.size[0] - top], [left, spec.width - plan.size[1] - left]]
        channels = [tf.pad(image_HWC[..., place], room, constant_values=spec.background[place]) for place in range(3)]
        image_HWC = tf.stack(channels, axis=-1)
    return tf.ensure_shape(image_HWC, [spec.height, spec.width, 3])


def _squash(height: Any, width: Any, spec: InputSpec) -> _Plan:
    return _Plan(*_central(height, width, spec.crop_fraction), (spec.height, spec.width), (0, 0))


def _shortest(height: Any, width: Any, spec: InputSpec) -> _Plan:
    cover_height, cover_width = int(spec.height / spec.crop_fraction), int(spec.width / spec.crop_fraction)
    fills_height = cover_height * width >= cover_width * height
    new_height = tf.where(fills_height, cover_height, tf.maximum(cover_width * height // width, cover_height))
    new_width = tf.where(fills_height, tf.maximum(cover_width, cover_height * width // height), cover_width)
    offset = -_half(new_height - spec.height), -_half(new_width - spec.width)
    return _Plan(0, 0, height, width, (new_height, new_width), offset)


def _half(side: tf.Tensor) -> tf.Tensor:
    """Rounded as Python rounds: a half to the even number."""
    return tf.cast(tf.round(tf.cast(side, tf.float64) / 2), tf.int32)


def _pad(height: Any, width: Any, spec: InputSpec) -> _Plan:
    box = _central(height, width, spec.crop_fraction)
    sides = tf.cast(tf.stack([box[2] - box[0], box[3] - box[1]]), tf.float64)
    scale = tf.minimum(spec.width / sides[1], spec.height / sides[0])
    size = tf.maximum(1, tf.cast(tf.round(sides * scale), tf.int32))
    offset = (spec.height - size[0]) // 2, (spec.width - size[1]) // 2
    return _Plan(*box, (size[0], size[1]), offset)


_PLANS = {"squash": _squash, "shortest": _shortest, "pad": _pad}


def _central(height: Any, width: Any, fraction: float) -> tuple[Any, Any, Any, Any]:
    if fraction == 1:
        return 0, 0, height, width
    sides = tf.cast(tf.stack([height, width]), tf.float64)
    cut = tf.cast((sides - sides * fraction) / 2, tf.int32)
    return cut[0], cut[1], height - cut[0], width - cut[1]
