"""A backbone (and classifier) as one TensorFlow function whose weights are constants: what a converter starts from.

Takes an ExportSource. Gives a function and its outputs' names. Next: `finetune.export.litert_model`;
`onnx_graph` and `keras_archive` have the same outputs.

Only with constants does the LiteRT converter of TensorFlow 2.21 see the weights: of Keras 3's variables it made files
whose every answer was NaN. Batch normalisation is folded into the convolutions on the way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from finetune.export.exporter import shape_text
from finetune.export.source import ExportSource


def constant_function(source: ExportSource) -> Any:
    """A tf.function of `image` float32 [B, height, width, 3] to `feature_vector` and, for a classifier, `scores`."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    spec = source.input_spec
    signature = [tf.TensorSpec([None, spec.height, spec.width, 3], tf.float32, name="image")]
    names = output_names(source)

    def answer(image: tf.Tensor) -> list[tf.Tensor]:
        feature_BD = source.backbone.model(image, training=False)["feature_vector"]
        found = {"feature_vector": feature_BD}
        if source.head_kind == "classifier":
            found["scores"] = source.head.probabilities(feature_BD)[:, source.version.manifest.class_offset :]
        return [found[name] for name in names]

    traced = tf.function(answer, input_signature=signature).get_concrete_function()
    constant = convert_variables_to_constants_v2(traced)

    def named(image: tf.Tensor) -> dict[str, tf.Tensor]:
        return dict(zip(names, constant(image), strict=True))

    return tf.function(named, input_signature=signature)


def output_names(source: ExportSource) -> tuple[str, ...]:
    return ("feature_vector", "scores") if source.head_kind == "classifier" else ("feature_vector",)


def expected(source: ExportSource, image_BHWC: np.ndarray) -> dict[str, np.ndarray]:
    """What the source answers, of those outputs."""
    found = source.outputs(image_BHWC)
    return {name: found[name] for name in output_names(source)}


def signature_text(source: ExportSource) -> dict[str, dict[str, str]]:
    spec = source.input_spec
    outputs = {"feature_vector": shape_text("float32", "B", source.backbone.feature_dim)}
    if source.head_kind == "classifier":
        outputs["scores"] = shape_text("float32", "B", len(source.labels))
    return {"inputs": {"image": shape_text("float32", "B", spec.height, spec.width, 3)}, "outputs": outputs}


def input_note(source: ExportSource) -> str:
    """How to make an image that the network understands."""
    spec = source.input_spec
    mean, std = list(spec.mean), list(spec.std)
    return (
        f"Images go in preprocessed: RGB, {spec.height} × {spec.width} ({spec.fit}, {spec.interpolation}), "
        f"value = (pixel × {spec.scale:.8g} − {mean}) / {std}; input_spec in export.json has it all."
    )


def head_note(source: ExportSource) -> tuple[str, ...]:
    if source.head_kind in (None, "classifier"):
        return ()
    return (f"The {source.head_kind} head is left out: this format gets the feature vector only.",)
