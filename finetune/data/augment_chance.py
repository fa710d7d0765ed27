"""Chance that is a function: the same key gives the same draws on every machine, thread and day.

Takes a key (seed, epoch, index, …) and a purpose. Gives numbers and bytes. Next: the other `finetune.data.augment*`.

Not NumPy's Generator: its streams may change between versions, and a job that is resumed after an upgrade must see the
pixels that it would have seen. Draws are BLAKE2b of (key, purpose, counter), noise is SHAKE-256. Each purpose has a
stream of its own, so that switching one operation off leaves the draws of all others as they were.
"""

from __future__ import annotations

import hashlib

import numpy as np

_BLOCK = 64  # bytes of a BLAKE2b digest: eight draws


class Chance:
    """One stream of draws; not to be shared between threads."""

    def __init__(self, *key: int, purpose: str) -> None:
        self._key = f"{purpose}/{'/'.join(str(int(part)) for part in key)}".encode()
        self._block = b""
        self._blocks = 0

    def random(self) -> float:
        """In [0, 1), in steps of 2^-53."""
        if not self._block:
            counter = self._blocks.to_bytes(8, "big")
            self._block = hashlib.blake2b(self._key, salt=counter, digest_size=_BLOCK).digest()
            self._blocks += 1
        draw, self._block = self._block[:8], self._block[8:]
        return (int.from_bytes(draw, "big") >> 11) * 2.0**-53

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.random()

    def below(self, end: int) -> int:
        """In 0 … end − 1."""
        return int(self.random() * end)

    def happens(self, probability: float) -> bool:
        return self.random() < probability

    def beta(self, alpha: float) -> float:
        """In [0, 1], Beta(alpha, alpha) for alpha up to about 2: Jöhnk's algorithm (Metrika 8, 1964)."""
        while True:
            x, y = self.random() ** (1 / alpha), self.random() ** (1 / alpha)
            if 0 < x + y <= 1:
                return x / (x + y)

    def permutation(self, count: int) -> np.ndarray:
        """int64 [count], by Fisher and Yates."""
        order = list(range(count))
        for last in range(count - 1, 0, -1):
            other = self.below(last + 1)
            order[last], order[other] = order[other], order[last]
        return np.array(order, np.int64)

    def noise(self, shape: tuple[int, ...]) -> np.ndarray:
        """uint8, every value equally likely; a call for another shape begins with the same bytes."""
        size = int(np.prod(shape))
        return np.frombuffer(hashlib.shake_256(self._key).digest(size), np.uint8).reshape(shape)
