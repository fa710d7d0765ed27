"""An ONNX graph of the network: features, and class scores where there is a classifier.

Takes an ExportSource. Gives `model.onnx`. Next: `finetune.export.comparison`, with ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version as tool_version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune.export.constants import expected, head_note, input_note, output_names, signature_text
from finetune.export.exporter import CONVERTED_TOLERANCE, ExportOptions, MissingTool, Run, Written
from finetune.export.source import ExportSource
from zoo.manifest import canonical_json

if TYPE_CHECKING:
    from finetune.export.onnx_nodes import NodeList

FILE = "model.onnx"
OPSET = 18
_IR_VERSION = 8  # of the file format; what ONNX 1.13, which brought opset 18, writes: older runtimes read it
_TOOLS = ("onnx", "onnxruntime")


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
        (folder / FILE).write_bytes(_model(source).SerializeToString())
        image_BHWC = source.preprocessed(images)
        run = Run(
            signature="main",
            inputs={"image": image_BHWC},
            expected=expected(source, image_BHWC),
            tolerance=CONVERTED_TOLERANCE,
        )
        return Written(
            signatures={"main": signature_text(source)},
            runs=(run,),
            notes=(f"ONNX opset {OPSET}.", input_note(source), *head_note(source)),
            tools={"keras": tool_version("keras"), "onnx": tool_version("onnx")},
        )


def _model(source: ExportSource) -> Any:
    """The checked ModelProto. Raises NotExportable."""
    from onnx import TensorProto, checker, helper

    from finetune.export.onnx_nodes import NodeList, add_model

    spec, to = source.input_spec, NodeList()
    image = to.add("Transpose", "image", perm=[0, 3, 1, 2])
    vector = add_model(to, source.backbone.model, image)["feature_vector"]
    to.add("Identity", vector, name="feature_vector")
    if source.head_kind == "classifier":
        _add_scores(to, source, vector)
    sides = {"feature_vector": source.backbone.feature_dim}
    if source.head_kind == "classifier":
        sides["scores"] = len(source.labels)
    graph = helper.make_graph(
        to.nodes,
        source.version.name,
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", spec.height, spec.width, 3])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", sides[n]]) for n in output_names(source)],
        to.weights,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION, producer_name="modelzoo"
    )
    _describe(model, source)
    checker.check_model(model)
    return model


def _add_scores(to: NodeList, source: ExportSource, x: str) -> None:
    from finetune.export.onnx_nodes import add_activation

    for layer in (*source.head.hidden, source.head.output_layer):
        x = to.add("Gemm", x, to.weight(layer.kernel), to.weight(layer.bias))
        x = add_activation(to, x, layer.activation, layer.name)
    if source.head.temperature != 1.0:
        x = to.add("Div", x, to.weight(np.float32(source.head.temperature)))
    x = to.add("Softmax", x, axis=-1)
    offset = source.version.manifest.class_offset
    bounds = [to.weight([value], np.int64) for value in (offset, source.head.num_classes, 1)]
    to.add("Slice", x, *bounds, name="scores")


def _describe(model: Any, source: ExportSource) -> None:
    """Metadata, so that the file can say what it is when it is found alone."""
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
