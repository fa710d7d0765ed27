"""Precision: in which floating-point type a backbone computes; its weights are float32 whatever it is.

Takes the name of a Keras policy. Gives a context in which layers are made. Next: `finetune.models.network`.

Only backbones compute in 16 bits: there the time goes. Heads, losses, updates and everything that is stored stay
float32. bfloat16 has float32's range and needs nothing else; float16 needs a scaled loss
(`finetune.training.loss_scale`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf


@contextmanager
def computing_in(precision: str) -> Iterator[None]:
    """`precision`: float32, mixed_bfloat16 or mixed_float16; Keras' policy of the layers that are made inside."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def as_float32(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """What heads read; values that are float32 already are passed on as they are."""
    return {name: x if x.dtype == "float32" else tf.cast(x, tf.float32) for name, x in outputs.items()}


def cpu_gains(precision: str) -> bool:
    """Whether this machine's CPU has instructions for the type: AVX-512 BF16 or AMX for bfloat16. There are some for
    float16, of which TensorFlow's kernels for training make no use."""
    if precision == "float32":
        return True
    try:
        flags = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    except OSError:  # not Linux
        return False
    return precision == "mixed_bfloat16" and bool(flags & {"avx512_bf16", "amx_bf16"})
