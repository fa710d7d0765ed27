"""Reads the variables of a checkpoint through TensorFlow: V1, and V2 with variables in slices.

Takes the files. Gives Variables. Next: `zoo.readers.slim`. TensorFlow is imported when one is opened.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zoo.readers.checkpoint import DamagedCheckpoint
from zoo.readers.slim_files import SlimFiles
from zoo.tensorflow_start import start_tensorflow


class TensorFlowReader:
    """The variables of a checkpoint: a `zoo.readers.slim.Variables`. Raises DamagedCheckpoint for whatever TensorFlow
    makes of damage, and for shapes that claim more bytes than the files have."""

    def __init__(self, source: Path, files: SlimFiles) -> None:
        start_tensorflow()
        import tensorflow as tf

        self._source, self._files = source, files
        self._reader = self._translated(lambda: tf.train.load_checkpoint(files.pattern))
        self.shapes = {str(name): tuple(shape) for name, shape in self._reader.get_variable_to_shape_map().items()}
        self._types = {str(name): each.base_dtype for name, each in self._reader.get_variable_to_dtype_map().items()}
        numbers = {name: np.dtype(each.as_numpy_dtype) for name, each in self._types.items()}
        self.types = {name: "other" if each.kind in "OSU" else each.name for name, each in numbers.items()}
        self._refuse_claims({name: each for name, each in numbers.items() if self.types[name] != "other"})

    def value(self, name: str) -> np.ndarray:
        import tensorflow as tf

        def read() -> np.ndarray:
            try:
                return np.asarray(self._reader.get_tensor(name))
            except tf.errors.UnimplementedError:  # in slices, in a V1 checkpoint: the operation can, the reader can't
                restored = tf.raw_ops.RestoreV2(
                    prefix=self._files.pattern, tensor_names=[name], shape_and_slices=[""], dtypes=[self._types[name]]
                )
                return np.asarray(restored[0].numpy())

        return np.asarray(self._translated(read, name))

    def _refuse_claims(self, numbers: Mapping[str, np.dtype]) -> None:
        """A table can claim any shape; V1 files hold integers as varints, of which the least takes a byte for eight."""
        held = sum(path.stat().st_size for path in self._files.files)
        claimed = sum(
            math.prod(self.shapes[name]) * (each.itemsize if each.kind == "f" else 1) for name, each in numbers.items()
        )
        if claimed > held:
            raise DamagedCheckpoint(f"{self._source} claims tensors of {claimed} bytes, its files have {held}")

    def _translated(self, call: Callable[[], Any], name: str | None = None) -> Any:
        """What TensorFlow raises, as one error. Its bindings raise some statuses as Python's own."""
        import tensorflow as tf

        try:
            return call()
        except (tf.errors.OpError, IndexError, ValueError, RuntimeError, SystemError) as error:
            what = f" at the variable {name}" if name else ""
            said = str(getattr(error, "message", error))
            raise DamagedCheckpoint(f"{self._source} cannot be read{what}: {said[:500]}") from None
