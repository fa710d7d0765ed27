"""How foreign values are laid out, and how they become ours, which are TensorFlow's: (height, width, in, out) for a
convolution, (height, width, channel, multiplier) for a depthwise one, (in, out) for a dense layer.

Takes an array as stored. Gives it in our layout. Next: `zoo.architectures.matching`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

Layout = Literal["same", "conv_oihw", "depthwise_oihw", "linear_oi", "conv_as_dense", "conv_bgr"]


def _conv_as_dense(value: np.ndarray) -> np.ndarray:
    """A 1 × 1 convolution over a 1 × 1 map is a dense layer: [1, 1, in, out] → [in, out]."""
    return value[0, 0] if value.ndim == 4 and value.shape[:2] == (1, 1) else value


# Layout → function; a value of another rank than the layout has comes back as it is, and then doesn't fit by shape.
_TURNS: dict[Layout, Callable[[np.ndarray], np.ndarray]] = {
    "same": lambda value: value,
    "conv_oihw": lambda value: value.transpose(2, 3, 1, 0) if value.ndim == 4 else value,
    "depthwise_oihw": lambda value: value.transpose(2, 3, 0, 1) if value.ndim == 4 else value,
    "linear_oi": lambda value: value.transpose(1, 0) if value.ndim == 2 else value,
    "conv_as_dense": _conv_as_dense,
    # The first convolution of a network that was trained on blue, green, red.
    "conv_bgr": lambda value: value[:, :, ::-1] if value.ndim == 4 else value,
}


def turned(value: np.ndarray, layout: Layout) -> np.ndarray:
    """The same values (a view where possible) in our layout."""
    return _TURNS[layout](value)
