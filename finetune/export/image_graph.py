"""Preprocessing as part of a TensorFlow graph: what `finetune.data.preprocess` does, for exports that take image bytes.

Takes encoded images, string [B]. Gives float32 [B, height, width, 3] by an InputSpec. Next:
`finetune.export.saved_model`.

Measured by tests against Pillow: no difference for JPEG (libjpeg-turbo with the accurate DCT on both sides), PNG of 8
bits and fewer, GIF and BMP; 16-bit grey PNG differs by one level of 255 at most.
"""

from __future__ import annotations

import tensorflow as tf

from finetune.export.exif_graph import jpeg_orientation, upright
from finetune.export.resampling import resize
from zoo.input_spec import InputSpec

NOTES = (
    "The graph decodes JPEG, PNG, GIF (its first frame) and BMP; opaque WebP where TensorFlow does (2.21).",
    "A JPEG's EXIF orientation is followed, as in the zoo; a PNG's (rare) isn't read.",
    "The graph sets no limit to an image's size; put one in front of it.",
)


def preprocessed(encoded_B: tf.Tensor, spec: InputSpec) -> tf.Tensor:
    """float32 [B, spec.height, spec.width, 3] of encoded images; an unreadable one fails the whole batch."""
    pixels = tf.TensorSpec([spec.height, spec.width, 3], tf.uint8)
    image_BHWC = tf.map_fn(
        lambda data: fitted(decoded(data, spec.background), spec), encoded_B, fn_output_signature=pixels
    )
    return normalised(image_BHWC, spec)


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


def fitted(image_HWC: tf.Tensor, spec: InputSpec) -> tf.Tensor:
    """uint8 [spec.height, spec.width, 3] of an image of any size."""
    fits = {"squash": _squash, "shortest": _shortest, "pad": _pad}
    return tf.ensure_shape(fits[spec.fit](image_HWC, spec), [spec.height, spec.width, 3])


def _squash(image_HWC: tf.Tensor, spec: InputSpec) -> tf.Tensor:
    return _resized(_central(image_HWC, spec.crop_fraction), (spec.height, spec.width), spec)


def _shortest(image_HWC: tf.Tensor, spec: InputSpec) -> tf.Tensor:
    cover_height, cover_width = int(spec.height / spec.crop_fraction), int(spec.width / spec.crop_fraction)
    shape = tf.shape(image_HWC)
    height, width = shape[0], shape[1]
    fills_height = cover_height * width >= cover_width * height
    new_height = tf.where(fills_height, cover_height, tf.maximum(cover_height, cover_width * height // width))
    new_width = tf.where(fills_height, tf.maximum(cover_width, cover_height * width // height), cover_width)
    top, left = _half(new_height - spec.height), _half(new_width - spec.width)
    whole_HWC = _resized(image_HWC, (new_height, new_width), spec)
    return whole_HWC[top : top + spec.height, left : left + spec.width]


def _half(side: tf.Tensor) -> tf.Tensor:
    """Rounded as Python rounds: a half to the even number."""
    return tf.cast(tf.round(tf.cast(side, tf.float64) / 2), tf.int32)


def _pad(image_HWC: tf.Tensor, spec: InputSpec) -> tf.Tensor:
    image_HWC = _central(image_HWC, spec.crop_fraction)
    sides = tf.cast(tf.shape(image_HWC)[:2], tf.float64)
    scale = tf.minimum(spec.width / sides[1], spec.height / sides[0])
    size = tf.maximum(1, tf.cast(tf.round(sides * scale), tf.int32))
    small_HWC = _resized(image_HWC, (size[0], size[1]), spec)
    top, left = (spec.height - size[0]) // 2, (spec.width - size[1]) // 2
    room = [[top, spec.height - size[0] - top], [left, spec.width - size[1] - left]]
    channels = [tf.pad(small_HWC[..., place], room, constant_values=spec.background[place]) for place in range(3)]
    return tf.stack(channels, axis=-1)


def _central(image_HWC: tf.Tensor, fraction: float) -> tf.Tensor:
    if fraction == 1:
        return image_HWC
    sides = tf.cast(tf.shape(image_HWC)[:2], tf.float64)
    cut = tf.cast((sides - sides * fraction) / 2, tf.int32)
    return image_HWC[cut[0] : tf.shape(image_HWC)[0] - cut[0], cut[1] : tf.shape(image_HWC)[1] - cut[1]]


def _resized(image_HWC: tf.Tensor, size: tuple[int | tf.Tensor, int | tf.Tensor], spec: InputSpec) -> tf.Tensor:
    return resize(image_HWC, size, interpolation=spec.interpolation, antialias=spec.antialias)
