"""The orders' keyed permutation of sets of up to 64, a table for each key: the same numbers, many times as fast.

Takes keys. Gives permutations. Next: `finetune.data.order` (short epochs), `finetune.data.order_balanced` (small
classes).

The network permutes 64 numbers at least (`finetune.data.order`), so that a set of two is walked through 32 of them in
the mean. Its halves have three bits here. So a round's function has eight values of three bits, which fit into a word,
and are looked up by a shift; and walking is looking up in the table.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

SMALL = 64  # numbers
_HALF = 8
_BLOCK = 512


def small_permutations(key_KT: Sequence[np.ndarray], multipliers: tuple[int, int]) -> np.ndarray:
    """uint8 [T, 64]: the permutation of 0 … 63 by each set of keys. `key_KT`: K rounds' keys (uint64 [T])."""
    num_keys = len(key_KT[0])
    result_TN = np.empty((num_keys, SMALL), np.uint8)
    word_KT = [_words(key_T, multipliers) for key_T in key_KT]
    for first in range(0, num_keys, _BLOCK):  # so many that the vectors stay in the core's cache
        result_TN[first : first + _BLOCK] = _by_words([word_T[first : first + _BLOCK] for word_T in word_KT])
    return result_TN


def _words(key_T: np.ndarray, multipliers: tuple[int, int]) -> np.ndarray:
    """uint32 [T]: a round's function of 0 … 7, three bits each."""
    word_T = np.zeros(len(key_T), np.uint32)
    for low in range(_HALF):
        mixed_T = (key_T ^ np.uint64(low)) * np.uint64(multipliers[0])
        mixed_T ^= mixed_T >> np.uint64(29)
        mixed_T *= np.uint64(multipliers[1])
        mixed_T >>= np.uint64(61)
        word_T |= mixed_T.astype(np.uint32) << np.uint32(3 * low)
    return word_T


def _by_words(word_KT: Sequence[np.ndarray]) -> np.ndarray:
    value_N = np.arange(SMALL, dtype=np.uint32)
    shape = (len(word_KT[0]), SMALL)
    high_TN, low_TN = np.broadcast_to(value_N >> np.uint32(3), shape), np.broadcast_to(value_N & np.uint32(7), shape)
    for word_T in word_KT:
        found_TN = word_T[:, np.newaxis] >> (low_TN * np.uint32(3))
        found_TN &= np.uint32(7)
        found_TN ^= high_TN
        high_TN, low_TN = low_TN, found_TN
    return ((high_TN << np.uint32(3)) | low_TN).astype(np.uint8)


def walked(permutation_TN: np.ndarray, which_R: np.ndarray, start_R: np.ndarray, size: np.ndarray | int) -> np.ndarray:
    """int64 [R]: where `start_R` (< size) goes by permutation `which_R`, walked again from wherever is outside `size`.

    `size`: one for all, or [R].
    """
    flat = permutation_TN.ravel()
    begin_R = which_R * SMALL
    result_R = flat[begin_R + start_R]
    size_R = np.broadcast_to(np.asarray(size, np.uint8), result_R.shape)
    outside = np.flatnonzero(result_R >= size_R)
    while outside.size:
        step = flat[begin_R[outside] + result_R[outside]]
        result_R[outside] = step
        outside = outside[step >= size_R[outside]]
    return result_R.astype(np.int64)
