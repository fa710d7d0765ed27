"""A reusable SavedModel, as TensorFlow Hub defines it (`hub.load`, `hub.KerasLayer`): to build on and to train.

Takes an ExportSource. Gives `saved_model.pb` and its variables. Next: `finetune.export.comparison`.

Interface (tensorflow.org/hub/reusable_saved_models): `__call__(inputs, training=False)`, `variables`,
`trainable_variables`, `regularization_losses`; pixels go in as RGB from 0 to 1 (…/hub/common_signatures/images), so
the scale, mean and deviation of the InputSpec are part of the graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version as tool_version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from finetune.export.exporter import ExportOptions, InvalidOption, Run, Written, shape_text
from finetune.export.source import ExportSource


class HubExporter:
    """The Exporter of `hub`."""

    kind = "hub"
    options = frozenset({"with_head"})

    def check(self, head_kind: str | None, options: ExportOptions) -> None:
        if options.with_head and head_kind != "classifier":
            has = "a backbone only" if head_kind is None else f"a {head_kind} head"
            raise InvalidOption(f"--with-head keeps the layers of a classifier; this version has {has}")

    def write(self, source: ExportSource, folder: Path, images: Sequence[bytes], options: ExportOptions) -> Written:
        with _trainable(source.backbone.model):
            tf.saved_model.save(_module(source, with_head=options.with_head), str(folder))
        spec = source.input_spec
        unit_BHWC = _unit_pixels(source, images)
        found = source.outputs(_as_specified(tf.constant(unit_BHWC), source).numpy())
        output, size = "feature_vector", source.backbone.feature_dim
        if options.with_head:
            output, size = "logits", source.head.num_classes
        dropped = source.head_kind and not options.with_head
        return Written(
            signatures={
                "__call__": {
                    "inputs": {"inputs": shape_text("float32", "B", spec.height, spec.width, 3), "training": "bool"},
                    "outputs": {output: shape_text("float32", "B", size)},
                }
            },
            runs=(Run(signature="__call__", inputs={"inputs": unit_BHWC}, expected={output: found[output]}),),
            notes=(
                "Pixels go in as RGB from 0 to 1; the rest of the normalisation is in the graph.",
                "training=True normalises by the batch's own statistics and moves the averages, as hub modules do.",
                *((f"The {source.head_kind} head is left out; the output is the feature vector.",) if dropped else ()),
            ),
            tools={"tensorflow": tf.__version__, "keras": tool_version("keras")},
        )


@contextmanager
def _trainable(model: keras.Model) -> Iterator[None]:
    """While a module is traced and saved (saving traces again): one that nobody can train would be no use."""
    before = [layer.trainable for layer in model.layers]
    model.trainable = True
    try:
        yield
    finally:
        model.trainable = False
        for layer, was in zip(model.layers, before, strict=True):
            layer.trainable = was


def _module(source: ExportSource, *, with_head: bool) -> _Reusable:
    backbone, spec = source.backbone.model, source.input_spec

    def call(inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        feature_BD = backbone(_as_specified(inputs, source), training=training)["feature_vector"]
        return source.head.logits(feature_BD, training=training) if with_head else feature_BD

    parts = [backbone, source.head] if with_head else [backbone]
    reusable = _Reusable(
        variables=[variable.value for part in parts for variable in part.variables],
        trainable_variables=[variable.value for part in parts for variable in part.trainable_variables],
        call=tf.function(call),
    )
    image = tf.TensorSpec([None, spec.height, spec.width, 3], tf.float32, name="inputs")
    for training in (False, True):
        reusable.__call__.get_concrete_function(image, training=training)
    return reusable


class _Reusable(tf.train.Checkpoint):
    """An object with exactly the attributes of the interface. (tf.Module has properties of those names.)"""

    def __init__(self, *, variables: list[tf.Variable], trainable_variables: list[tf.Variable], call: Any) -> None:
        super().__init__()
        self.variables = variables
        self.trainable_variables = trainable_variables
        self.regularization_losses: list[Any] = []
        self.__call__ = call


def _unit_pixels(source: ExportSource, images: Sequence[bytes]) -> np.ndarray:
    from finetune.data.preprocess import load_pixels
    from finetune.predictor import MAX_PIXELS

    pixels_BHWC = np.stack([load_pixels(data, source.input_spec, max_pixels=MAX_PIXELS) for data in images])
    return (pixels_BHWC / np.float32(255)).astype(np.float32)


def _as_specified(unit_BHWC: tf.Tensor, source: ExportSource) -> tf.Tensor:
    """What the InputSpec wants, of pixels from 0 to 1."""
    spec = source.input_spec
    scaled_BHWC = unit_BHWC * tf.constant(255 * spec.scale, tf.float32)
    return (scaled_BHWC - tf.constant(spec.mean, tf.float32)) / tf.constant(spec.std, tf.float32)
