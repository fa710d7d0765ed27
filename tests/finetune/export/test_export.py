"""Every format of tiny models: what is written, that it answers like its source, and that a wrong one can't pass."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from finetune.export import EXPORTERS, UnknownFormat
from finetune.export.comparison import ExportDiffers, ExportUnreadable, compare
from finetune.export.export import Exported, export
from finetune.export.exporter import ExportOptions, InvalidOption, NotExportable, Run, Written
from finetune.export.folder import FolderTaken, listed
from finetune.export.keras_archive import KerasExporter
from finetune.export.onnx_graph import OnnxExporter
from finetune.export.probe_images import probe_images
from finetune.export.source import ExportSource
from finetune.predictor import Predictor
from tests.finetune.test_predictor import photo, publish_head
from tests.tiny import TINY_FEATURE_DIM, tiny_backbone_version
from zoo.architectures import ARCHITECTURES, architecture_facts
from zoo.catalog import Catalog, open_catalog
from zoo.errors import NotFound
from zoo.manifest import Architecture

PHOTOS = [photo(seed, (40 + seed, 30)) for seed in range(3)]  # others than the export itself was tried with


def outputs_of(exported: Exported) -> dict[tuple[str, str], dict[str, Any]]:
    return {(row["signature"], row["output"]): row for row in exported.facts["comparison"]["outputs"]}


@pytest.mark.slow
def test_a_saved_model_says_the_same_captions(catalog: Catalog, folder: Path) -> None:
    exported = export(catalog, "cap", folder, kind="saved_model")
    assert (folder / "1" / "saved_model.pb").is_file()  # the version's number, as TensorFlow Serving wants it
    facts = json.loads((folder / "export.json").read_text())
    assert facts == exported.facts
    version = catalog.get("cap")
    assert (facts["reference"], facts["digest"], facts["head"]) == ("cap@1", version.digest, "captioner")
    assert {"serving_default", "caption", "features", "features_from_image"} == facts["signatures"].keys()
    files = [file for file in listed(folder) if file["path"] != "export.json"]
    assert facts["files"] == files
    assert {"LICENSE", "MODEL_CARD.md", "1/saved_model.pb"} < {file["path"] for file in files}
    assert "not stated" in (folder / "LICENSE").read_text()
    assert "cap@1" in (folder / "MODEL_CARD.md").read_text()
    rows = outputs_of(exported)
    assert rows["caption", "text"]["equal"] == rows["caption", "text"]["entries"] == 12
    assert rows["features", "feature_vector"]["relative"] <= 1e-6
    assert exported.facts["largest_absolute_difference"] < 1e-4

    predictor = Predictor.load(catalog, "cap")
    found = tf.saved_model.load(str(folder / "1")).signatures["serving_default"](image_bytes=tf.constant(PHOTOS))
    for row, text_K, log_prob_K in zip(predictor.caption(PHOTOS), found["text"], found["log_prob"], strict=True):
        assert [text.decode() for text in text_K.numpy()][: len(row)] == [caption.text for caption in row]
        np.testing.assert_allclose(log_prob_K[: len(row)], [caption.log_prob for caption in row], rtol=1e-5)


@pytest.mark.slow
def test_a_saved_model_gives_the_same_labels_and_features(catalog: Catalog, folder: Path) -> None:
    export(catalog, "offset", folder, kind="saved_model")
    served = tf.saved_model.load(str(folder / "1"))
    found = served.signatures["classify"](image_bytes=tf.constant(PHOTOS))
    predictor = Predictor.load(catalog, "offset")
    for labels, name_C, score_C in zip(predictor.classify(PHOTOS), found["labels"], found["scores"], strict=True):
        assert [label.label for label in labels] == [name.decode() for name in name_C.numpy()] == ["cat"]
        np.testing.assert_allclose(score_C, [label.score for label in labels], rtol=1e-5)
    features = served.signatures["features"](image_bytes=tf.constant(PHOTOS))["feature_vector"]
    np.testing.assert_allclose(features, predictor.embed(PHOTOS), atol=1e-5)

    backbone = export(catalog, "tiny", folder.parent / "backbone", kind="saved_model")
    assert backbone.facts["signatures"]["serving_default"] == {
        "inputs": {"image_bytes": "string [B]"},
        "outputs": {"feature_vector": f"float32 [B, {TINY_FEATURE_DIM}]"},
    }


_TRAINING = """
import json, sys
import numpy as np, tensorflow as tf, tensorflow_hub as hub, tf_keras
layer = hub.KerasLayer(sys.argv[1], trainable=sys.argv[2] == "trainable", input_shape=(32, 32, 3))
model = tf_keras.Sequential([layer, tf_keras.layers.Dense(2)])
model.compile(tf_keras.optimizers.SGD(0.01), tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True))
images = np.random.default_rng(0).random((8, 32, 32, 3), np.float32)
before = [v.numpy() for v in layer.trainable_weights], [v.numpy() for v in layer.non_trainable_weights]
model.fit(images, np.arange(8) % 2, epochs=2, batch_size=4, verbose=0)
after = [v.numpy() for v in layer.trainable_weights], [v.numpy() for v in layer.non_trainable_weights]
moved = [sum(bool((a != b).any()) for a, b in zip(x, y)) for x, y in zip(before, after)]
print(json.dumps({"trainable": len(before[0]), "other": len(before[1]), "moved": moved,
                  "finite": bool(np.isfinite(model(images).numpy()).all())}))
"""


def trained(folder: Path, how: str) -> Any:
    command = [sys.executable, "-W", "ignore", "-c", _TRAINING, str(folder), how]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_a_hub_module_trains_inside_a_keras_layer(catalog: Catalog, folder: Path) -> None:
    exported = export(catalog, "cap", folder, kind="hub")
    assert "tensorflow-hub" in exported.facts["comparison"]["process"]["tools"]
    assert any("captioner head is left out" in note for note in exported.facts["notes"])
    (row,) = outputs_of(exported).values()
    assert (row["shape"], row["output"]) == ([4, TINY_FEATURE_DIM], "feature_vector")
    names = [variable.name for variable in ExportSource.load(catalog, catalog.get("tiny")).backbone.model.variables]
    moving = sum(name.startswith("moving_") for name in names)
    kernels = len(names) - moving
    found = trained(folder, "trainable")
    assert found == {"trainable": kernels, "other": moving, "moved": [kernels, moving], "finite": True}


@pytest.mark.slow
def test_a_hub_module_that_is_not_trained_stays_as_it_was(catalog: Catalog, folder: Path) -> None:
    exported = export(catalog, "cls", folder, kind="hub", options=ExportOptions(with_head=True))
    (row,) = outputs_of(exported).values()
    assert (row["shape"], row["output"]) == ([4, 2], "logits")
    found = trained(folder, "frozen")
    assert found["trainable"] == 0
    assert found["moved"] == [0, 0]


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")  # inside Keras' saving
def test_a_keras_archive_has_standard_layers_only_and_no_background_class(catalog: Catalog, folder: Path) -> None:
    exported = export(catalog, "offset", folder, kind="keras")
    rows = outputs_of(exported)
    assert rows["call", "scores"]["shape"] == [4, 1]
    assert rows["call", "feature_vector"]["relative"] <= 1e-5
    assert exported.facts["comparison"]["process"]["tools"].keys() == {"keras", "tensorflow"}
    assert exported.facts["license"] == "MIT"
    assert "SPDX-License-Identifier: MIT" in (folder / "LICENSE").read_text()
    config = zipfile.ZipFile(folder / "model.keras").read("config.json").decode()
    assert "finetune" not in config
    assert "Lambda" not in config


def test_a_keras_archive_refuses_what_plain_keras_cannot_open(catalog: Catalog, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NotExportable, match="this version has a captioner head") as caught:
        export(catalog, "cap", folder, kind="keras")
    assert caught.value.hint is not None
    assert "saved_model" in caught.value.hint
    assert not folder.exists()

    class Own(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return x * 2

    source = ExportSource.load(catalog, catalog.get("tiny"))
    registered = keras.saving.register_keras_serializable("ours", "Own")(Own)
    for layer, said in ((registered(), "Own"), (keras.layers.Lambda(lambda x: x), "Lambda")):
        vector = layer(source.backbone.model.output["feature_vector"])
        model = keras.Model(source.backbone.model.input, {"feature_vector": vector})
        stranger = dataclasses.replace(source, backbone=_Wrapped(source.backbone, model))  # type: ignore[arg-type]
        with pytest.raises(NotExportable, match=said):
            KerasExporter().write(stranger, tmp_path, PHOTOS, ExportOptions())


class _Wrapped:
    """A backbone with another network."""

    def __init__(self, backbone: Any, model: keras.Model) -> None:
        self._backbone = backbone
        self.model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)


def test_an_onnx_graph_says_what_it_is(catalog: Catalog, folder: Path) -> None:
    import onnx
    import onnxruntime

    exported = export(catalog, "offset", folder, kind="onnx")
    assert exported.facts["comparison"]["process"]["tools"].keys() == {"onnxruntime"}
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    source = ExportSource.load(catalog, catalog.get("offset"))
    image_BHWC = source.preprocessed(PHOTOS)  # another batch size than it was tried with
    feature_BD, score_BC = session.run(["feature_vector", "scores"], {"image": image_BHWC})
    np.testing.assert_allclose(feature_BD, source.outputs(image_BHWC)["feature_vector"], atol=1e-4)
    np.testing.assert_allclose(score_BC, source.outputs(image_BHWC)["scores"], atol=1e-5)
    facts = {entry.key: entry.value for entry in onnx.load(folder / "model.onnx").metadata_props}
    assert (facts["reference"], json.loads(facts["labels"])) == ("offset@1", ["cat"])
    assert json.loads(facts["input_spec"])["height"] == 32


def test_litert_answers_like_its_source(catalog: Catalog, folder: Path) -> None:
    exported = export(catalog, "offset", folder, kind="litert")
    rows = outputs_of(exported)
    assert rows["serving_default", "feature_vector"]["relative"] <= 1e-5
    assert rows["serving_default", "scores"]["shape"] == [4, 1]
    assert exported.facts["tolerance"] == 1e-4
    assert any("32-bit floats" in note for note in exported.facts["notes"])


@pytest.mark.slow
def test_litert_with_eight_bit_weights_is_coarser_by_an_amount_that_is_stated(catalog: Catalog, folder: Path) -> None:
    exact = export(catalog, "cls", folder, kind="litert")
    small = export(catalog, "cls", folder.parent / "small", kind="litert", options=ExportOptions(quantise=True))
    row = outputs_of(small)["serving_default", "feature_vector"]
    assert 1e-3 < row["relative"] < 0.2
    assert small.facts["options"]["quantise"] is True
    assert any("8-bit" in note for note in small.facts["notes"])
    sizes = [(e.folder / "model.tflite").stat().st_size for e in (exact, small)]
    assert sizes[1] < 0.6 * sizes[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ARCHITECTURES.keys() - {"hub_module"}))
def test_onnx_knows_every_layer_of_every_architecture(tmp_path: Path, name: str) -> None:
    """With random weights; the comparison is the export's own."""
    catalog = open_catalog(f"file://{tmp_path}/store")
    size = max(architecture_facts(name).min_size, 64)
    tiny_backbone_version(catalog, size=size, architecture=Architecture(name=name))
    exported = export(catalog, "tiny", tmp_path / "out", kind="onnx")
    (row,) = outputs_of(exported).values()
    assert 0 < row["largest"] < np.inf


def test_onnx_refuses_a_layer_that_it_does_not_know(catalog: Catalog, tmp_path: Path) -> None:
    source = ExportSource.load(catalog, catalog.get("tiny"))
    for layer, said in (
        (keras.layers.UnitNormalization(name="unit"), "the layer 'unit' is a UnitNormalization"),
        (keras.layers.Activation("mish", name="odd"), "the activation 'mish' of layer 'odd'"),
    ):
        vector = layer(source.backbone.model.output["feature_vector"])
        model = keras.Model(source.backbone.model.input, {"feature_vector": vector})
        stranger = dataclasses.replace(source, backbone=_Wrapped(source.backbone, model))  # type: ignore[arg-type]
        with pytest.raises(NotExportable, match=said):
            OnnxExporter().write(stranger, tmp_path, PHOTOS, ExportOptions())


class Lying(OnnxExporter):
    """Writes one thing and promises another."""

    def write(self, source: ExportSource, folder: Path, images: Sequence[bytes], options: ExportOptions) -> Written:
        written = super().write(source, folder, images, options)
        (run,) = written.runs
        feature_BD = run.expected["feature_vector"].copy()
        feature_BD[0, 0] += 2e-4 * np.abs(feature_BD).max()
        return dataclasses.replace(written, runs=(dataclasses.replace(run, expected={"feature_vector": feature_BD}),))


def test_an_export_that_differs_is_removed(catalog: Catalog, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EXPORTERS, "onnx", Lying)
    with pytest.raises(ExportDiffers, match="feature_vector of main is off by"):
        export(catalog, "tiny", folder, kind="onnx")
    assert list(folder.parent.iterdir()) == []  # nor is its temporary folder left


def test_the_comparison_sees_every_kind_of_difference(catalog: Catalog, tmp_path: Path) -> None:
    source = ExportSource.load(catalog, catalog.get("tiny"))
    written = OnnxExporter().write(source, tmp_path, probe_images(source.input_spec), ExportOptions())
    (run,) = written.runs
    assert len(compare("onnx", tmp_path, [run]).differences) == 1
    good = run.expected["feature_vector"]

    def tried(**outputs: np.ndarray) -> None:
        compare("onnx", tmp_path, [Run(signature="main", inputs=run.inputs, expected=outputs)])

    with pytest.raises(ExportDiffers, match="off by nan"):
        tried(feature_vector=np.where(good == good[0, 0], np.inf, good))
    with pytest.raises(ExportDiffers, match=r"has the shape \[4, 160\]"):
        tried(feature_vector=good[:, :9])
    with pytest.raises(ExportUnreadable, match="no output 'scores'; it has feature_vector"):
        tried(scores=good)
    data = (tmp_path / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(data[: len(data) // 2])
    with pytest.raises(ExportUnreadable, match="couldn't read the onnx export"):
        tried(feature_vector=good)


def test_what_cannot_be_done_is_refused_before_anything_is_built(catalog: Catalog, folder: Path) -> None:
    with pytest.raises(UnknownFormat, match="there are saved_model, hub, keras, onnx, litert"):
        export(catalog, "tiny", folder, kind="pickle")
    with pytest.raises(NotFound):
        export(catalog, "nobody", folder, kind="onnx")
    with pytest.raises(InvalidOption, match="--quantise is no option of onnx, which has none"):
        export(catalog, "tiny", folder, kind="onnx", options=ExportOptions(quantise=True))
    with pytest.raises(InvalidOption, match="this version has a captioner head"):
        export(catalog, "cap", folder, kind="hub", options=ExportOptions(with_head=True))
    folder.mkdir(parents=True)
    (folder / "mine").write_text("x")
    with pytest.raises(FolderTaken, match="mine"):
        export(catalog, "tiny", folder, kind="onnx")
    assert [path.name for path in folder.iterdir()] == ["mine"]


def scores_of(predictor: Predictor) -> np.ndarray:
    return np.array([[label.score for label in labels] for labels in predictor.classify(PHOTOS)])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")  # inside Keras' saving
@pytest.mark.parametrize("kind", ["keras", "onnx", "saved_model"])
def test_scores_are_exported_at_the_temperature_they_are_served_at(catalog: Catalog, folder: Path, kind: str) -> None:
    """Each export is compared with its source in a fresh process; here the source is held to the temperature."""
    manifest = catalog.get("cls").manifest
    assert manifest.head is not None
    head = manifest.head.model_copy(update={"arguments": {**manifest.head.arguments, "temperature": 4.0}})
    catalog.publish("warm", manifest.model_copy(update={"head": head}), {})
    cold, warm = (scores_of(Predictor.load(catalog, name)) for name in ("cls", "warm"))
    flat = cold**0.25
    np.testing.assert_allclose(warm, flat / flat.sum(axis=1, keepdims=True), rtol=1e-4)
    signature = {"keras": "call", "onnx": "main", "saved_model": "classify"}[kind]
    row = outputs_of(export(catalog, "warm", folder, kind=kind))[signature, "scores"]
    assert row["relative"] < 1e-4


@pytest.mark.slow
def test_a_saved_model_of_an_embedding_gives_its_unit_vectors(catalog: Catalog, folder: Path, tmp_path: Path) -> None:
    publish_head(catalog, catalog.get("tiny"), "embedding", "near", tmp_path)
    rows = outputs_of(export(catalog, "near", folder, kind="saved_model"))
    assert rows["embed", "embedding"]["shape"][-1] == 128
    found = tf.saved_model.load(str(folder / "1")).signatures["embed"](image_bytes=tf.constant(PHOTOS))["embedding"]
    np.testing.assert_allclose(found, Predictor.load(catalog, "near").embed(PHOTOS), atol=1e-5)
