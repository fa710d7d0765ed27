"""CRC-32C (Castagnoli), the sum that TensorFlow's checkpoints and record files carry. The only door to its library.

Takes bytes. Gives the sum. Next: `zoo.readers.slim_bundle`, `finetune.data.record_file`.
"""

from __future__ import annotations

import google_crc32c
import numpy as np

_ALL = 0xFFFFFFFF
_DELTA = 0xA282EAD8
_CHUNK = 1 << 20


def crc32c(data: bytes | np.ndarray, before: int = 0) -> int:
    """The sum of bytes, or of an array's, which follow bytes of the sum `before`; `zlib.crc32` gives the other one."""
    if isinstance(data, bytes):
        return int(google_crc32c.extend(before, data))
    bytes_N = data.reshape(-1).view(np.uint8)
    total = before
    for start in range(0, len(bytes_N), _CHUNK):  # the library wants bytes: a copy, so a small one
        total = google_crc32c.extend(total, bytes_N[start : start + _CHUNK].tobytes())
    return int(total)


def masked(crc: int) -> int:
    """TensorFlow and LevelDB store a sum turned by 15 bits with a constant added, since sums of sums are no good."""
    return ((crc >> 15 | crc << 17) + _DELTA) & _ALL


def unmasked(stored: int) -> int:
    """The sum that `masked` was given."""
    turned = (stored - _DELTA) & _ALL
    return (turned >> 17 | turned << 15) & _ALL
