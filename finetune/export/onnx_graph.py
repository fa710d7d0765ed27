"""An ONNX graph, made by tf2onnx from the network with constant weights.

Takes an ExportSource. Gives `model.onnx`. Next: `finetune.export.comparison`, with ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version as tool_version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tensorflow as tf

from finetune.export.constants import constant_function, expected, head_note, input_note, signature_text
from finetune.export.exporter import ExportOptions, MissingTool, Run, Written
from finetune.export.source import ExportSource
from zoo.manifest import canonical_json

FILE = "model.onnx"
OPSET = 18
_TOOLS = ("onnx", "onnxruntime", "tf2onnx")


class OnnxExporter:
    """The Exporter of `onnx`."""

    kind = "onnx"
    options: frozenset[str] = frozenset()

    def check(self, head_kind: str | None, options: ExportOptions) -> None:
        missing = [name for name in _TOOLS if find_spec(name) is None]
        if missing:
            raise MissingTool(
                f"ONNX needs {', '.join(missing)}, not installed here", hint="pip install 'modelzoo[onnx]'"
            )

    def write(self, source: ExportSource, folder: Path, images: Sequence[bytes], options: ExportOptions) -> Written:
        import tf2onnx

        spec = source.input_spec
        signature = [tf.TensorSpec([None, spec.height, spec.width, 3], tf.float32, name="image")]
        model, _ = tf2onnx.convert.from_function(constant_function(source), input_signature=signature, opset=OPSET)
        _describe(model, source)
        (folder / FILE).write_bytes(model.SerializeToString())
        image_BHWC = source.preprocessed(images)
        run = Run(signature="main", inputs={"image": image_BHWC}, expected=expected(source, image_BHWC))
        return Written(
            signatures={"main": signature_text(source)},
            runs=(run,),
            notes=(f"ONNX opset {OPSET}.", input_note(source), *head_note(source)),
            tools={"tensorflow": tf.__version__, **{name: tool_version(name) for name in _TOOLS}},
        )


def _describe(model: Any, source: ExportSource) -> None:
    """Name and metadata, so that the file can say what it is when it is found alone."""
    from onnx import helper

    facts = {
        "reference": source.version.reference,
        "digest": source.version.digest,
        "license": source.version.manifest.license or "",
        "input_spec": canonical_json(source.input_spec.model_dump(mode="json")).decode(),
    }
    if source.head_kind == "classifier":
        facts["labels"] = canonical_json(list(source.labels)).decode()
    helper.set_model_props(model, facts)
