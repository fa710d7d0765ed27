"""A LiteRT (TensorFlow Lite) flatbuffer, of 32-bit floats or with weights of 8-bit integers.

Takes an ExportSource. Gives `model.tflite`. Next: `finetune.export.comparison`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from importlib.metadata import version as tool_version
from pathlib import Path

import tensorflow as tf

from finetune.export.constants import constant_function, expected, head_note, input_note, signature_text
from finetune.export.exporter import CONVERTED_TOLERANCE, ExportOptions, Run, Written
from finetune.export.source import ExportSource

FILE = "model.tflite"
QUANTISED_TOLERANCE = 0.5  # a limit against nonsense; what it really is is stated


class LitertExporter:
    """The Exporter of `litert`."""

    kind = "litert"
    options = frozenset({"quantise"})

    def check(self, head_kind: str | None, options: ExportOptions) -> None:
        """Takes any version."""

    def write(self, source: ExportSource, folder: Path, images: Sequence[bytes], options: ExportOptions) -> Written:
        module = tf.Module()
        module.run = constant_function(source)
        with tempfile.TemporaryDirectory() as saved:
            tf.saved_model.save(module, saved, signatures={"serving_default": module.run.get_concrete_function()})
            converter = tf.lite.TFLiteConverter.from_saved_model(saved, signature_keys=["serving_default"])
            if options.quantise:
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
            (folder / FILE).write_bytes(converter.convert())
        image_BHWC = source.preprocessed(images)
        run = Run(
            signature="serving_default",
            inputs={"image": image_BHWC},
            expected=expected(source, image_BHWC),
            tolerance=QUANTISED_TOLERANCE if options.quantise else CONVERTED_TOLERANCE,
        )
        weights = "8-bit integers (dynamic range: activations stay floats)" if options.quantise else "32-bit floats"
        return Written(
            signatures={"serving_default": signature_text(source)},
            runs=(run,),
            notes=(f"Weights are {weights}.", input_note(source), *head_note(source)),
            tools={"tensorflow": tf.__version__, "keras": tool_version("keras")},
        )
