"""A JPEG's EXIF orientation inside a TensorFlow graph: phones store photos lying, and say so there.

Takes encoded bytes and decoded pixels. Gives pixels that stand upright. Next: `finetune.export.resampling`.

TensorFlow's decoders don't read EXIF, so the few bytes are found here: the APP1 segment, in it a TIFF header, its first
directory, and there the tag 0x0112 (EXIF 2.32, section 4.5; TIFF 6.0, section 2). Anything odd means upright.
"""

from __future__ import annotations

import tensorflow as tf

_ORIENTATION = 0x0112
_SEARCHED = 1 << 18  # bytes: the segment comes among the first, before the picture
_MOST_ENTRIES = 512
_EXIF = b"Exif\0\0"
_SHORT, _LONG = 3, 4  # types that a whole number comes in


def upright(image_HWC: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """uint8 [H, W, 3] turned or mirrored as the orientation (1 to 8) asks."""

    def among(*orientations: int) -> tf.Tensor:
        return tf.reduce_any(orientation == tf.constant(orientations, tf.int64))

    image_HWC = tf.cond(orientation >= 5, lambda: tf.transpose(image_HWC, [1, 0, 2]), lambda: image_HWC)
    image_HWC = tf.cond(among(2, 3, 6, 7), lambda: tf.reverse(image_HWC, [1]), lambda: image_HWC)
    return tf.cond(among(3, 4, 7, 8), lambda: tf.reverse(image_HWC, [0]), lambda: image_HWC)


def jpeg_orientation(data: tf.Tensor) -> tf.Tensor:
    """int64, 1 to 8, of encoded JPEG bytes; 1 where there is none."""
    byte_N = tf.cast(tf.io.decode_raw(tf.strings.substr(data, 0, _SEARCHED), tf.uint8), tf.int64)
    start = _segment(byte_N)
    one = tf.constant(1, tf.int64)
    return tf.cond(start < 0, lambda: one, lambda: _in_tiff(byte_N[start:]))


def _segment(byte_N: tf.Tensor) -> tf.Tensor:
    """Where the TIFF header begins: behind FF E1, two bytes of length and the name; -1 when there is none."""
    pattern = [0xFF, 0xE1, None, None, *_EXIF]
    room = tf.maximum(tf.size(byte_N) - len(pattern), 0)
    matches = [byte_N[place : place + room] == value for place, value in enumerate(pattern) if value is not None]
    at_K1 = tf.where(tf.reduce_all(tf.stack(matches), axis=0))
    return tf.cond(tf.size(at_K1) > 0, lambda: at_K1[0, 0] + len(pattern), lambda: tf.constant(-1, tf.int64))


def _in_tiff(byte_N: tf.Tensor) -> tf.Tensor:
    size = tf.size(byte_N, tf.int64)
    little = tf.gather(byte_N, 0) == ord("I")

    def number(at: tf.Tensor, width: int) -> tf.Tensor:
        """Of `width` bytes at each place; 0 beyond the end."""
        place = at[..., tf.newaxis] + tf.range(width, dtype=tf.int64)
        value = tf.where(place < size, tf.gather(byte_N, tf.clip_by_value(place, 0, size - 1)), 0)
        power = tf.constant([256**n for n in range(width)], tf.int64)
        return tf.reduce_sum(value * tf.where(little, power, power[::-1]), axis=-1)

    directory = number(tf.constant(4, tf.int64), 4)
    count = tf.minimum(number(directory, 2), _MOST_ENTRIES)
    entry_K = directory + 2 + 12 * tf.range(count)
    kind_K = number(entry_K + 2, 2)
    value_K = tf.where(kind_K == _SHORT, number(entry_K + 8, 2), number(entry_K + 8, 4))
    meant_K = (number(entry_K, 2) == _ORIENTATION) & ((kind_K == _SHORT) | (kind_K == _LONG))
    meant_K &= (value_K >= 1) & (value_K <= 8)
    return tf.concat([tf.boolean_mask(value_K, meant_K), tf.ones([1], tf.int64)], axis=0)[0]
