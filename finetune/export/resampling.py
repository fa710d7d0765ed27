"""Resampling inside a TensorFlow graph by Pillow's own arithmetic, so that an export sees the zoo's pixels.

Takes uint8 [H, W, 3] of any size. Gives uint8 of another. Next: `finetune.export.image_graph`.

`tf.image.resize` wouldn't do: it keeps fractions between its two passes, where Pillow rounds to 8 bits and clips, so
that bicubic comes out up to 10 of 255 levels apart, and without antialiasing Pillow cuts fractions off and has another
cubic. What is done here follows Pillow's Resample.c (fixed point, 22 bits) and Geometry.c.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tensorflow as tf

_BITS = 22  # of a weight's fraction, as Resample.c has it for 8-bit samples
Size = tuple[Any, Any]  # height, width: numbers or scalar tensors
Kernel = Callable[[tf.Tensor], tf.Tensor]


def resize(
    image_HWC: tf.Tensor, size: Size, *, interpolation: str, antialias: bool, box: tf.Tensor | None = None
) -> tf.Tensor:
    """uint8 [size, 3]; an image of that size already comes back to the bit.

    Args:
        box: float64 top, left, bottom, right of what is resized, fractions allowed; with `antialias` only.
        interpolation: nearest, bilinear, bicubic, or with `antialias` lanczos (as `InputSpec` has it).
    """
    if interpolation == "nearest":
        return _nearest(image_HWC, size)
    if antialias:
        support, kernel = _KERNELS[interpolation]
        return _two_passes(image_HWC, size, support, kernel, box)
    same = tf.reduce_all(tf.shape(image_HWC)[:2] == tf.stack(size))
    return tf.cond(same, lambda: image_HWC, lambda: _points(image_HWC, size, _POINTS[interpolation]))


def _triangle(x: tf.Tensor) -> tf.Tensor:
    return tf.maximum(1 - tf.abs(x), 0)


def _cubic(x: tf.Tensor) -> tf.Tensor:
    """Keys' cubic with a = -0.5."""
    a, x = -0.5, tf.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return tf.where(x < 1, near, tf.where(x < 2, far, tf.zeros_like(x)))


def _lanczos(x: tf.Tensor) -> tf.Tensor:
    return tf.where((x >= -3) & (x < 3), _sinc(x) * _sinc(x / 3), tf.zeros_like(x))


def _sinc(x: tf.Tensor) -> tf.Tensor:
    turned = tf.where(x == 0, tf.ones_like(x), x * math.pi)
    return tf.where(x == 0, tf.ones_like(x), tf.sin(turned) / turned)


_KERNELS: dict[str, tuple[float, Kernel]] = {
    "bilinear": (1.0, _triangle),
    "bicubic": (2.0, _cubic),
    "lanczos": (3.0, _lanczos),
}


def _two_passes(image_HWC: tf.Tensor, size: Size, support: float, kernel: Kernel, box: tf.Tensor | None) -> tf.Tensor:
    """Width, then height; the other way round for an image that loses over twice as many rows as columns.

    The pixels between the passes are rounded and clipped, so the order shows. The rule was found by probing Pillow
    13.0.0 with 1,500 pairs of sizes (it goes by the whole image, also where a box is resized); Pillow 12 and before
    always begin with the width.
    """
    new_height, new_width = size
    shape = tf.shape(image_HWC)
    if box is None:
        box = tf.cast(tf.stack([0, 0, shape[0], shape[1]]), tf.float64)
    lost_rows, lost_columns = shape[0] - new_height, shape[1] - new_width

    def height(image_HWC: tf.Tensor) -> tf.Tensor:
        return _along_first(image_HWC, new_height, support, kernel, box[0], box[2])

    def width(image_HWC: tf.Tensor) -> tf.Tensor:
        image_WHC = tf.transpose(image_HWC, [1, 0, 2])
        return tf.transpose(_along_first(image_WHC, new_width, support, kernel, box[1], box[3]), [1, 0, 2])

    rows_first = (lost_rows > 0) & (2 * lost_columns < lost_rows)
    return tf.cond(rows_first, lambda: width(height(image_HWC)), lambda: height(width(image_HWC)))


def _along_first(
    image_SOC: tf.Tensor, new: Any, support: float, kernel: Kernel, begin: tf.Tensor, end: tf.Tensor
) -> tf.Tensor:
    """The first axis, from `begin` to `end`, resampled to `new`: weights of 22 bits, whole-number sums, rounded and
    clipped to 8 bits."""
    old, other = tf.shape(image_SOC)[0], tf.shape(image_SOC)[1]

    def passed() -> tf.Tensor:
        weights_NS = _weights(old, new, support, kernel, begin, end)
        flat_SP = tf.cast(tf.reshape(image_SOC, [old, other * 3]), tf.int32)
        sums_NP = tf.sparse.sparse_dense_matmul(weights_NS, flat_SP) + (1 << (_BITS - 1))
        levels_NP = tf.clip_by_value(tf.bitwise.right_shift(sums_NP, _BITS), 0, 255)
        return tf.reshape(tf.cast(levels_NP, tf.uint8), [new, other, 3])

    as_it_is = (old == new) & (begin == 0) & (end == tf.cast(old, tf.float64))
    return tf.cond(as_it_is, lambda: image_SOC, passed)


def _weights(
    old: tf.Tensor, new: Any, support: float, kernel: Kernel, begin: tf.Tensor, end: tf.Tensor
) -> tf.SparseTensor:
    """int32 [new, old]: what each new sample takes of the old ones, in units of 2^-22."""
    scale = ratio(end - begin, new)
    stretch = tf.maximum(scale, 1)  # shrinking widens the kernel: that is the antialiasing
    centre_N = begin + (tf.cast(tf.range(new), tf.float64) + 0.5) * scale
    reach = support * stretch
    first_N = tf.maximum(tf.cast(centre_N - reach + 0.5, tf.int32), 0)
    last_N = tf.minimum(tf.cast(centre_N + reach + 0.5, tf.int32), old)
    taps = tf.reduce_max(last_N - first_N)
    place_NT = first_N[:, tf.newaxis] + tf.range(taps)[tf.newaxis]
    inside_NT = place_NT < last_N[:, tf.newaxis]
    distance_NT = (tf.cast(place_NT, tf.float64) - centre_N[:, tf.newaxis] + 0.5) * (1 / stretch)
    value_NT = tf.where(inside_NT, kernel(distance_NT), tf.zeros_like(distance_NT))
    total_N1 = tf.reduce_sum(value_NT, axis=1, keepdims=True)
    share_NT = tf.where(total_N1 != 0, value_NT / total_N1, value_NT) * (1 << _BITS)
    fixed_NT = tf.cast(share_NT + tf.where(share_NT < 0, tf.cast(-0.5, tf.float64), 0.5), tf.int32)  # cast cuts off
    at_K2 = tf.where(inside_NT)
    column_K = tf.gather_nd(place_NT, at_K2)
    return tf.SparseTensor(
        tf.stack([at_K2[:, 0], tf.cast(column_K, tf.int64)], axis=1),
        tf.gather_nd(fixed_NT, at_K2),
        tf.cast(tf.stack([tf.convert_to_tensor(new), old]), tf.int64),
    )


def ratio(old: tf.Tensor, new: Any) -> tf.Tensor:
    """old / new, truly divided: Grappler turns `/` by a constant into a product with its reciprocal, one bit off."""
    return tf.math.divide_no_nan(tf.cast(old, tf.float64), tf.cast(new, tf.float64))


def _nearest(image_HWC: tf.Tensor, size: Size) -> tf.Tensor:
    """Pixel centres summed up step by step, as Geometry.c does: its rounding errors decide where two pixels tie."""
    shape = tf.shape(image_HWC)
    for axis in (0, 1):
        step = ratio(shape[axis], size[axis])
        place = tf.cumsum(tf.concat([step[tf.newaxis] * 0.5, tf.repeat(step, size[axis] - 1)], axis=0))
        image_HWC = tf.gather(image_HWC, tf.minimum(tf.cast(place, tf.int32), shape[axis] - 1), axis=axis)
    return image_HWC


def _lerp(taps: list[tf.Tensor], d: tf.Tensor) -> tf.Tensor:
    return taps[0] + (taps[1] - taps[0]) * d


def _cubic_point(taps: list[tf.Tensor], d: tf.Tensor) -> tf.Tensor:
    """The cubic through four neighbours with a = -1, which is what Geometry.c has, unlike Resample.c."""
    v1, v2, v3, v4 = taps
    return v2 + d * ((-v1 + v3) + d * ((2 * (v1 - v2) + v3 - v4) + d * (-v1 + v2 - v3 + v4)))


# Interpolation → the neighbours of a sampling point, counted from the pixel at its left, and how they are mixed.
_POINTS: dict[str, tuple[tuple[int, ...], Callable[[list[tf.Tensor], tf.Tensor], tf.Tensor]]] = {
    "bilinear": ((0, 1), _lerp),
    "bicubic": ((-1, 0, 1, 2), _cubic_point),
}


def _points(
    image_HWC: tf.Tensor, size: Size, how: tuple[tuple[int, ...], Callable[[list[tf.Tensor], tf.Tensor], tf.Tensor]]
) -> tf.Tensor:
    """Sampling without antialiasing: fractions are cut off, not rounded, as Geometry.c does."""
    neighbours, mix = how
    row_NT, down_N = _places(tf.shape(image_HWC)[0], size[0], neighbours)
    column_MT, right_M = _places(tf.shape(image_HWC)[1], size[1], neighbours)
    taps_NTMTC = tf.cast(tf.gather(tf.gather(image_HWC, row_NT), column_MT, axis=2), tf.float64)
    taps = len(neighbours)
    rows = [mix([taps_NTMTC[:, t, :, u] for u in range(taps)], right_M[tf.newaxis, :, tf.newaxis]) for t in range(taps)]
    mixed_NMC = mix(rows, down_N[:, tf.newaxis, tf.newaxis])
    return tf.cast(tf.clip_by_value(mixed_NMC, 0, 255), tf.uint8)


def _places(old: tf.Tensor, new: Any, neighbours: tuple[int, ...]) -> tuple[tf.Tensor, tf.Tensor]:
    """Indices [N, T] of each sampling point's neighbours (the edge repeated), and how far beyond the left one it is."""
    scale = ratio(old, new)
    at_N = (tf.cast(tf.range(new), tf.float64) + 0.5) * scale - 0.5
    left_N = tf.floor(at_N)
    place_NT = tf.cast(left_N, tf.int32)[:, tf.newaxis] + tf.constant(neighbours)[tf.newaxis]
    return tf.clip_by_value(place_NT, 0, old - 1), at_N - left_N
