"""Seeded images to try an export with, encoded as users send them.

Takes an InputSpec. Gives JPEG and PNG bytes: some of the input's own size, some to be resampled. Next: an Exporter.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from zoo.input_spec import InputSpec

_SEED = 20_14_11  # any; always the same, so that two exports are tried with the same images


def probe_images(spec: InputSpec) -> list[bytes]:
    """Four images: PNG noise of the input's size; a smooth JPEG, wide; a smooth PNG, tall; a PNG with transparency."""
    chance = np.random.default_rng(_SEED)
    height, width = spec.height, spec.width
    noise_HWC = chance.integers(0, 256, (height, width, 3), np.uint8)
    wide_HWC = _smooth(chance, height + height // 3, 2 * width + 1, 3)
    tall_HWC = _smooth(chance, 2 * height + 3, width // 2 + 1, 3)
    clear_HWC = _smooth(chance, height + 5, width + 7, 4)
    encoded = [
        tf.io.encode_png(noise_HWC),
        tf.io.encode_jpeg(wide_HWC, quality=90),
        tf.io.encode_png(tall_HWC),
        tf.io.encode_png(clear_HWC),
    ]
    return [data.numpy() for data in encoded]


def _smooth(chance: np.random.Generator, height: int, width: int, channels: int) -> np.ndarray:
    """Blobs of colour with a little noise: what photos look like to a resampler."""
    coarse_HWC = chance.uniform(0, 255, (6, 7, channels)).astype(np.float32)
    smooth_HWC = tf.image.resize(coarse_HWC, (height, width), method="bicubic").numpy()
    grain_HWC = chance.normal(0, 4, (height, width, channels))
    return np.clip(smooth_HWC + grain_HWC, 0, 255).astype(np.uint8)
