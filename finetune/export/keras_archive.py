"""A `.keras` archive of standard layers only: it opens with plain Keras, without a line of the zoo's code.

Takes an ExportSource. Gives `model.keras`. Next: `finetune.export.comparison`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import version as tool_version
from pathlib import Path
from typing import Any

import keras
import numpy as np

from finetune.export.constants import expected, input_note, signature_text
from finetune.export.exporter import ExportOptions, NotExportable, Run, Written
from finetune.export.source import ExportSource

FILE = "model.keras"


class KerasExporter:
    """The Exporter of `keras`."""

    kind = "keras"
    options: frozenset[str] = frozenset()

    def check(self, head_kind: str | None, options: ExportOptions) -> None:
        if head_kind in (None, "classifier"):
            return
        raise NotExportable(
            f"a .keras archive holds standard layers only, so a backbone or a classifier; this version has a "
            f"{head_kind} head, whose decoding is code of its own",
            hint="zoo export REF DIR --as saved_model keeps the captions; for the features alone export its parent",
        )

    def write(self, source: ExportSource, folder: Path, images: Sequence[bytes], options: ExportOptions) -> Written:
        model = _standard_model(source)
        strangers = sorted(set(_custom_classes(model.get_config())))
        if strangers:
            raise NotExportable(
                f"a .keras archive holds standard layers only; {source.version.reference} has {', '.join(strangers)}",
                hint="zoo export REF DIR --as saved_model",
            )
        model.save(folder / FILE)
        image_BHWC = source.preprocessed(images)
        run = Run(signature="call", inputs={"image": image_BHWC}, expected=expected(source, image_BHWC))
        return Written(
            signatures={"call": signature_text(source)},
            runs=(run,),
            notes=(
                input_note(source),
                "Layers are frozen: set `model.trainable = True` to train them.",
            ),
            tools={"keras": tool_version("keras"), "tensorflow": tool_version("tensorflow")},
        )


def _standard_model(source: ExportSource) -> keras.Model:
    """The backbone, its feature map left out, and a classifier's layers as Keras' own."""
    backbone = source.backbone.model
    vector = backbone.output["feature_vector"]
    outputs = {"feature_vector": vector}
    if source.head_kind == "classifier":
        outputs["scores"] = _scores(source, vector)
    return keras.Model(backbone.input, outputs, name=backbone.name)


def _scores(source: ExportSource, x: Any) -> Any:
    head = source.head
    for layer, dropout in zip(head.hidden, head.dropouts, strict=True):
        x = keras.layers.Dropout(dropout.rate, name=dropout.name)(_dense(layer, x))
    # No standard layer divides by a temperature, so the last layer's weights are divided: the same but for rounding.
    x = keras.layers.Softmax(name="softmax")(_dense(head.output_layer, x, scale=1 / head.temperature))
    offset = source.version.manifest.class_offset
    if not offset:
        return x
    # A crop is the one standard layer that drops the scores before the first class.
    x = keras.layers.Reshape((-1, 1), name="scores_as_steps")(x)
    x = keras.layers.Cropping1D((offset, 0), name="without_background")(x)
    return keras.layers.Flatten(name="scores")(x)


def _dense(layer: keras.layers.Dense, x: Any, *, scale: float = 1.0) -> Any:
    copy = keras.layers.Dense.from_config(layer.get_config())
    y = copy(x)
    copy.set_weights([np.asarray(weight) * np.float32(scale) for weight in layer.get_weights()])
    return y


def _custom_classes(config: Any) -> Iterator[str]:
    """Classes in a config that Keras alone can't make again, and Lambda layers, which hold code.

    A class of Keras' own needs no public name (ConvNeXt's LayerScale has none): it is found by its module.
    """
    if isinstance(config, dict):
        name, module = config.get("class_name"), config.get("module")
        if isinstance(name, str) and (name == "Lambda" or not _is_keras(module, config.get("registered_name"))):
            yield f"{module or ''}.{name}".lstrip(".")
        for value in config.values():
            yield from _custom_classes(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _custom_classes(value)


def _is_keras(module: Any, registered: Any) -> bool:
    if module is None:  # a tensor, a slice; or a class that somebody registered
        return registered is None
    return str(module) == "keras" or str(module).startswith("keras.")
