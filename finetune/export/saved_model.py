"""A TensorFlow SavedModel that takes encoded images, laid out as TensorFlow Serving wants it: a folder a version.

Takes an ExportSource. Gives `<version>/saved_model.pb` and its variables. Next: `finetune.export.comparison`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version as tool_version
from pathlib import Path
from typing import Any

import tensorflow as tf

from finetune.export.caption_graph import captions
from finetune.export.exporter import ExportOptions, NotExportable, Run, Written, shape_text
from finetune.export.image_graph import NOTES, preprocessed
from finetune.export.source import ExportSource

Outputs = dict[str, tf.Tensor]


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """What a head's own signature does with what it reads of a backbone."""

    signature: str
    compute: Callable[[ExportSource, tf.Tensor], Outputs]
    outputs: tuple[str, ...]
    note: str


class SavedModelExporter:
    """The Exporter of `saved_model`."""

    kind = "saved_model"
    options: frozenset[str] = frozenset()

    def check(self, head_kind: str | None, options: ExportOptions) -> None:
        if head_kind is not None and head_kind not in _ANSWERS:
            raise NotExportable(
                f"a SavedModel answers for a backbone or one of the heads {', '.join(sorted(_ANSWERS))}; "
                f"this version has a {head_kind} head",
                hint="zoo export REF DIR --as hub keeps its backbone",
            )

    def write(self, source: ExportSource, folder: Path, images: Sequence[bytes], options: ExportOptions) -> Written:
        number = source.version.reference.rpartition("@")[2]
        module, signatures = _module(source)
        tf.saved_model.save(module, str(folder / number), signatures=signatures)
        image_BHWC = source.preprocessed(images)
        answers = source.outputs(image_BHWC)
        names = _ANSWERS[source.head_kind].outputs if source.head_kind else ("feature_vector",)
        served = {name: answers[name] for name in names}
        features = {"feature_vector": answers["feature_vector"]}
        encoded = {"image_bytes": images}
        runs = [
            Run(signature="serving_default", inputs=encoded, expected=served),
            Run(signature="features", inputs=encoded, expected=features),
            Run(signature="features_from_image", inputs={"image": image_BHWC}, expected=features),
        ]
        if source.head_kind:
            runs.append(Run(signature=_ANSWERS[source.head_kind].signature, inputs=encoded, expected=served))
        return Written(
            signatures={name: _described(function) for name, function in signatures.items()},
            runs=tuple(runs),
            notes=(
                f"TensorFlow Serving: --model_base_path=this folder; it finds the version folder {number}/ in it.",
                *NOTES,
                *((_ANSWERS[source.head_kind].note,) if source.head_kind else ()),
            ),
            tools={"tensorflow": tf.__version__, "keras": tool_version("keras")},
        )


def _module(source: ExportSource) -> tuple[tf.Module, dict[str, Any]]:
    """What is saved: the networks' variables, and one function a signature."""
    spec, backbone = source.input_spec, source.backbone.model
    module = tf.Module()
    module.backbone = [variable.value for variable in backbone.variables]
    if source.head is not None:
        module.head = [variable.value for variable in source.head.variables]

    def feature_vector(image_BHWC: tf.Tensor) -> tf.Tensor:
        return backbone(image_BHWC, training=False)["feature_vector"]

    def row(image_BHWC: tf.Tensor) -> tf.Tensor:
        return source.row.join(backbone(image_BHWC, training=False))

    encoded = [tf.TensorSpec([None], tf.string, name="image_bytes")]
    # A function of its own, so that it is traced and stored once for all signatures.
    module.preprocessed = tf.function(lambda image_bytes: preprocessed(image_bytes, spec), input_signature=encoded)

    def of_bytes(answer: Callable[[tf.Tensor], Outputs], read: Callable[[tf.Tensor], tf.Tensor]) -> Any:
        def function(image_bytes: tf.Tensor) -> Outputs:
            return answer(read(module.preprocessed(image_bytes)))

        return tf.function(function, input_signature=encoded)

    def features(feature_BD: tf.Tensor) -> Outputs:
        return {"feature_vector": feature_BD}

    def features_from_image(image: tf.Tensor) -> Outputs:
        return dict(backbone(image, training=False))

    image = tf.TensorSpec([None, spec.height, spec.width, 3], tf.float32, name="image")
    module.features = of_bytes(features, feature_vector)
    module.features_from_image = tf.function(features_from_image, input_signature=[image])
    functions = {"features": module.features, "features_from_image": module.features_from_image}
    if source.head_kind is None:
        functions["serving_default"] = module.features
    else:
        answer = _ANSWERS[source.head_kind]
        module.answer = of_bytes(lambda row_BX: answer.compute(source, row_BX), row)
        functions |= {"serving_default": module.answer, answer.signature: module.answer}
    return module, {name: function.get_concrete_function() for name, function in functions.items()}


def _caption(source: ExportSource, row_BX: tf.Tensor) -> Outputs:
    return captions(source.head, row_BX)


def _classify(source: ExportSource, feature_BD: tf.Tensor) -> Outputs:
    """Scores in the classes' own order, with a name for each in every row, as TensorFlow Serving's clients expect."""
    score_BC = source.head.probabilities(feature_BD)[:, source.version.manifest.class_offset :]
    label_BC = tf.tile(tf.constant([source.labels]), [tf.shape(feature_BD)[0], 1])
    return {"scores": score_BC, "labels": label_BC}


def _label(source: ExportSource, feature_BD: tf.Tensor) -> Outputs:
    rows = [tf.shape(feature_BD)[0], 1]
    return {
        "scores": source.head.probabilities(feature_BD),
        "labels": tf.tile(tf.constant([source.labels]), rows),
        "thresholds": tf.tile(tf.constant([source.head.thresholds], tf.float32), rows),
    }


def _embed(source: ExportSource, feature_BD: tf.Tensor) -> Outputs:
    return {"embedding": source.head.embeddings(feature_BD)}


# By head kind.
_ANSWERS: dict[str, _Answer] = {
    "captioner": _Answer(
        signature="caption",
        compute=_caption,
        outputs=("text", "log_prob"),
        note="A place in the beam without a caption has an empty text and log_prob -inf.",
    ),
    "classifier": _Answer(
        signature="classify",
        compute=_classify,
        outputs=("scores", "labels"),
        note="Scores are probabilities in the order of the classes, each with its label.",
    ),
    "embedding": _Answer(
        signature="embed",
        compute=_embed,
        outputs=("embedding",),
        note="Embeddings have length 1: their dot product is their cosine.",
    ),
    "multilabel": _Answer(
        signature="classify",
        compute=_label,
        outputs=("scores", "labels", "thresholds"),
        note="Each score is a probability by itself; an image shows the labels whose score reaches their threshold.",
    ),
}


def _described(function: Any) -> dict[str, dict[str, str]]:
    inputs = {spec.name: _spec_text(spec) for spec in function.structured_input_signature[0]}
    return {"inputs": inputs, "outputs": {k: _spec_text(v) for k, v in function.structured_outputs.items()}}


def _spec_text(spec: Any) -> str:
    sides = ["B" if place == 0 else ("K" if side is None else side) for place, side in enumerate(spec.shape)]
    return shape_text(spec.dtype.name, *sides)
