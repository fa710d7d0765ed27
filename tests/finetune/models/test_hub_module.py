from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from finetune.models.backbone import Backbone
from finetune.models.hub_module import (
    AnotherInputSize,
    HubModule,
    MissingGraph,
    NoConfiguration,
    NothingTrainable,
    UnloadableGraph,
    hub_module,
)
from finetune.models.restore import named_variables, restore
from finetune.models.task_model import stored_assets
from finetune.training.publish import finish
from tests.finetune.training.test_publish import export, job
from tests.saved_models import CHANNELS, SIZE, DictionaryModule, FeatureModule, MapModule, save, save_function
from zoo.architectures.facts import InvalidArguments
from zoo.cache import BlobCache
from zoo.catalog import Catalog, ModelVersion
from zoo.importer import import_checkpoint
from zoo.input_spec import InputSpec
from zoo.manifest import Asset
from zoo.readers.checkpoint import UnsafeCheckpoint
from zoo.store.local import LocalStore
from zoo.tensors import read_safetensors

BIN = Path(sys.executable).parent


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(LocalStore(tmp_path / "store"), BlobCache(tmp_path / "cache"))


@pytest.fixture
def bring(catalog: Catalog, tmp_path: Path) -> Callable[..., ModelVersion]:
    """Saves a module and imports it."""

    def bring_(module: tf.Module, name: str = "m", *, spec: InputSpec | None = None, **options: Any) -> ModelVersion:
        folder = save(module, tmp_path / name, **options)
        import_checkpoint(catalog, kind="hub", source=folder, name=name, input_spec=spec)
        return catalog.get(name)

    return bring_


def layer_of(catalog: Catalog, version: ModelVersion, *, trainable: bool = False) -> HubModule:
    manifest = version.manifest
    assets = {each.name: catalog.open_asset(version, each.name).read_bytes() for each in manifest.assets}
    layer = hub_module(manifest.input_spec, manifest.architecture.arguments, assets, trainable=trainable)
    restore(layer.named_weights(), read_safetensors(catalog.open_component(version, "backbone"))).require_complete("m")
    return layer


def images(count: int = 3, *, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(1).random((count, size, size, 3), np.float32)


def test_a_vector_alone_is_also_a_map_of_one_by_one(bring: Callable[..., ModelVersion], catalog: Catalog) -> None:
    module = FeatureModule()
    backbone = Backbone.from_version(catalog, bring(module))
    image_BHWC = images()
    expected_BD = module(image_BHWC, training=False).numpy()
    np.testing.assert_array_equal(backbone.feature_vector(image_BHWC).numpy(), expected_BD, strict=True)
    assert (backbone.feature_dim, backbone.feature_map_shape) == (CHANNELS, (1, 1, CHANNELS))
    np.testing.assert_array_equal(backbone.feature_map(image_BHWC).numpy()[:, 0, 0], expected_BD, strict=True)
    assert sorted(backbone.report.restored) == ["kernel", "layers/0", "mean"]
    assert not backbone.model.trainable_variables


def test_a_map_alone_has_its_mean_as_vector(bring: Callable[..., ModelVersion], catalog: Catalog) -> None:
    module = MapModule()
    backbone = Backbone.from_version(catalog, bring(module))
    expected_BHWC = module(images(), training=False).numpy()
    np.testing.assert_array_equal(backbone.feature_map(images()).numpy(), expected_BHWC, strict=True)
    np.testing.assert_allclose(backbone.feature_vector(images()).numpy(), expected_BHWC.mean((1, 2)), rtol=1e-6)


def test_vector_and_map_of_their_own(bring: Callable[..., ModelVersion], catalog: Catalog) -> None:
    module = DictionaryModule()
    backbone = Backbone.from_version(catalog, bring(module))
    expected = module(images(), training=False)
    np.testing.assert_array_equal(backbone.feature_vector(images()), expected["default"])
    np.testing.assert_array_equal(backbone.feature_map(images()), expected["last_map"])


def test_a_module_for_images_of_any_size(bring: Callable[..., ModelVersion], catalog: Catalog) -> None:
    module = MapModule()
    spec = InputSpec(height=20, width=20)
    backbone = Backbone.from_version(catalog, bring(module, size=None, spec=spec))
    assert backbone.feature_map_shape == (10, 10, CHANNELS)
    image_BHWC = images(size=20)
    np.testing.assert_array_equal(backbone.feature_map(image_BHWC), module(image_BHWC, training=False))


def test_a_signature_is_called_by_its_own_names(catalog: Catalog, tmp_path: Path) -> None:
    weights = tf.Variable(np.random.default_rng(0).standard_normal((3, 5)).astype(np.float32))
    folder = save_function(tmp_path / "m", lambda x: {"v": tf.reduce_mean(x, [1, 2]) @ weights}, weights=weights)
    import_checkpoint(catalog, kind="hub", source=folder, name="m")
    found = Backbone.from_version(catalog, "m").feature_vector(images())
    expected = tf.saved_model.load(str(folder)).signatures["serving_default"](tf.constant(images()))["v"]
    np.testing.assert_array_equal(found, expected)


def test_a_gradient_step_changes_the_weights(bring: Callable[..., ModelVersion], catalog: Catalog) -> None:
    version = bring(FeatureModule())
    layer = layer_of(catalog, version, trainable=True)
    assert {variable.path.rpartition("/")[2] for variable in layer.trainable_variables} == {"kernel", "layers.0"}
    before = {name: variable.numpy() for name, variable in layer.named_weights().items()}
    frozen_BD = layer(images())["feature_vector"].numpy()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(images())["feature_vector"] ** 2)
    variables = layer.trainable_variables
    gradients = tape.gradient(loss, [variable.value for variable in variables])
    keras.optimizers.SGD(0.01).apply_gradients(zip(gradients, variables, strict=True))
    after = {name: variable.numpy() for name, variable in layer.named_weights().items()}
    assert not np.array_equal(before["kernel"], after["kernel"])
    assert before["layers/0"] != after["layers/0"]
    np.testing.assert_array_equal(before["mean"], after["mean"])
    assert tf.reduce_sum(layer(images())["feature_vector"] ** 2) < loss
    assert not np.array_equal(layer(images())["feature_vector"], frozen_BD)


def test_training_reaches_the_module_only_when_it_is_trainable(
    bring: Callable[..., ModelVersion], catalog: Catalog
) -> None:
    layer = layer_of(catalog, bring(FeatureModule()))
    mean, still_BD = layer.named_weights()["mean"], layer(images())["feature_vector"].numpy()
    np.testing.assert_array_equal(layer(images(), training=True)["feature_vector"], still_BD)
    assert not mean.numpy().any()
    layer.trainable = True
    dropped_BD = layer(images(), training=True)["feature_vector"].numpy()
    assert not np.array_equal(dropped_BD, still_BD)
    assert mean.numpy().any()
    assert layer.trainable_variables
    layer.trainable = False
    assert not layer.trainable_variables


def test_trainable_without_trainable_variables_is_refused(bring: Callable[..., ModelVersion], catalog: Catalog) -> None:
    version = bring(FeatureModule(trainable=False))
    with pytest.raises(NothingTrainable, match=r"no trainable variables \(3 in all\)") as caught:
        layer_of(catalog, version, trainable=True)
    assert caught.value.code == "FAILED_PRECONDITION"
    backbone = Backbone.from_version(catalog, version)
    with pytest.raises(NothingTrainable):
        backbone.model.trainable = True


def test_a_modules_own_list_of_what_may_train_counts(bring: Callable[..., ModelVersion], catalog: Catalog) -> None:
    class Listed(tf.train.Checkpoint):
        def __init__(self, module: FeatureModule) -> None:
            super().__init__(module=module)
            self.trainable_variables = [module.layers[0]]
            self.__call__ = module.__call__

    layer = layer_of(catalog, bring(Listed(FeatureModule())), trainable=True)
    [variable] = layer.trainable_variables
    assert variable.shape == ()


def test_checkpoints_hold_the_modules_variables(
    bring: Callable[..., ModelVersion], catalog: Catalog, tmp_path: Path
) -> None:
    version = bring(FeatureModule())
    model = Backbone.from_version(catalog, version).model
    before = model(images())["feature_vector"].numpy()
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "ck"))
    for variable in named_variables(model).values():
        variable.assign(tf.zeros_like(variable.value))
    assert not np.array_equal(model(images())["feature_vector"], before)
    tf.train.Checkpoint(model=model).read(path).assert_consumed()
    np.testing.assert_array_equal(model(images())["feature_vector"], before)


def test_the_model_can_be_saved_again(bring: Callable[..., ModelVersion], catalog: Catalog, tmp_path: Path) -> None:
    model = Backbone.from_version(catalog, bring(FeatureModule())).model
    model.export(str(tmp_path / "again"), verbose=False)
    loaded = tf.saved_model.load(str(tmp_path / "again"))
    np.testing.assert_array_equal(loaded.serve(images())["feature_vector"], model(images())["feature_vector"])


def test_it_has_no_keras_configuration(bring: Callable[..., ModelVersion], catalog: Catalog, tmp_path: Path) -> None:
    model = Backbone.from_version(catalog, bring(FeatureModule())).model
    with pytest.raises(NoConfiguration, match="SavedModel"):
        model.save(tmp_path / "m.keras")


def test_features_differ_by_graph_too(bring: Callable[..., ModelVersion], catalog: Catalog) -> None:
    one = Backbone.from_version(catalog, bring(FeatureModule(), "one"))
    other = Backbone.from_version(catalog, bring(_Squared(), "other"))
    assert one.component_digest == other.component_digest
    assert one.digest != other.digest


class _Squared(FeatureModule):
    def outputs(self, maps_BHWC: Any, training: bool) -> Any:
        return tf.reduce_mean(maps_BHWC**2, [1, 2])


def _calls_python(images: Any) -> Any:
    return tf.ensure_shape(tf.py_function(lambda x: x, [tf.reduce_mean(images, [1, 2])], tf.float32), [None, 3])


def _with_graph(catalog: Catalog, version: ModelVersion, graph: Path, tmp_path: Path) -> ModelVersion:
    """The version with another file in the place of its graph, as somebody else might publish it."""
    data = graph.read_bytes()
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    asset = Asset(name="saved_model.pb", digest=digest, bytes=len(data))
    manifest = version.manifest.model_copy(update={"assets": (asset,)})
    return catalog.publish("other", manifest, {digest: graph}).version


def test_what_a_store_holds_is_checked_before_it_is_loaded(
    bring: Callable[..., ModelVersion], catalog: Catalog, tmp_path: Path
) -> None:
    version = bring(FeatureModule())
    folder = save_function(tmp_path / "bad", _calls_python)
    arguments = {"function": "serving_default", "outputs": {"feature_vector": "output_0"}, "feature_dim": 3}
    architecture = version.manifest.architecture.model_copy(update={"arguments": arguments})
    bad = dataclasses.replace(version, manifest=version.manifest.model_copy(update={"architecture": architecture}))
    with pytest.raises(UnsafeCheckpoint, match="EagerPyFunc"):
        Backbone.from_version(catalog, _with_graph(catalog, bad, folder / "saved_model.pb", tmp_path))


def test_what_cannot_be_built(bring: Callable[..., ModelVersion], catalog: Catalog) -> None:
    version = bring(FeatureModule())
    manifest = version.manifest
    arguments = manifest.architecture.arguments
    graph = {"saved_model.pb": catalog.open_asset(version, "saved_model.pb").read_bytes()}
    with pytest.raises(MissingGraph, match=r"saved_model\.pb"):
        hub_module(manifest.input_spec, arguments, {})
    with pytest.raises(AnotherInputSize, match="16 × 16 pixels only, got 20 × 16"):
        hub_module(InputSpec(height=20, width=16), arguments, graph)
    with pytest.raises(InvalidArguments, match="gives ''"):
        hub_module(manifest.input_spec, {**arguments, "outputs": {"feature_vector": "nothing"}}, graph)
    with pytest.raises(InvalidArguments, match="gives ''"):
        hub_module(manifest.input_spec, {**arguments, "outputs": {}}, graph)
    with pytest.raises(InvalidArguments, match=f"feature_dim is 7, the graph gives {CHANNELS}"):
        hub_module(manifest.input_spec, {**arguments, "feature_dim": 7}, graph)


def test_a_graph_that_contradicts_itself(bring: Callable[..., ModelVersion], catalog: Catalog) -> None:
    version = bring(FeatureModule())
    model = saved_model_pb2.SavedModel()
    model.ParseFromString(catalog.open_asset(version, "saved_model.pb").read_bytes())
    for function in model.meta_graphs[0].graph_def.library.function:
        for node in function.node_def:
            if node.op == "Conv2D":
                del node.input[1]
    graph = {"saved_model.pb": model.SerializeToString()}
    with pytest.raises(UnloadableGraph, match=r"can't load saved_model\.pb"):
        hub_module(version.manifest.input_spec, version.manifest.architecture.arguments, graph)


def test_a_child_shares_graph_and_weights(bring: Callable[..., ModelVersion], catalog: Catalog, tmp_path: Path) -> None:
    parent = bring(FeatureModule())
    folder = job(tmp_path / "j1")
    export(folder, catalog, parent)
    result = finish(catalog, folder)
    child = catalog.get("child")
    assert [asset.name for asset in child.manifest.assets] == ["saved_model.pb", "vocabulary.json"]
    assert child.manifest.assets[0] == parent.manifest.assets[0]
    own = (child.manifest.components[1].bytes, child.manifest.assets[1].bytes)
    assert result["bytes_published"] == sum(own)
    assert list(stored_assets(catalog, child).files) == ["vocabulary.json"]
    one, other = Backbone.from_version(catalog, parent), Backbone.from_version(catalog, child)
    assert one.digest == other.digest
    np.testing.assert_array_equal(one.feature_vector(images()), other.feature_vector(images()))


# The whole path, in real processes


@dataclasses.dataclass(frozen=True)
class User:
    home: Path

    def call(self, tool: str, *arguments: str) -> Any:
        own = {
            "MODELZOO_STORE": (self.home / "store").as_uri(),
            "MODELZOO_CACHE": str(self.home / "cache"),
            "MODELZOO_HOME": str(self.home / "home"),
        }
        command = [str(BIN / tool), *arguments, "--format", "json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | own)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


def trained(user: User, name: str, data: str, *more: str, steps: int = 30) -> Any:
    sets = (f"train.steps={steps}", f"train.evaluate_every={steps // 2}", "train.batch_size=8")
    each = [part for value in sets for part in ("--set", value)]
    return user.call("finetune", "run", "--data", data, "--name", name, *each, *more)


@pytest.mark.slow
def test_import_train_caption_classify(tmp_path: Path) -> None:
    user = User(tmp_path / "user")
    scenes, small = "scenes:count=40,size=32", ["--set", "head.arguments.units=16"]
    imported = user.call("zoo", "import", "hub", str(save(MapModule(), tmp_path / "module")), "hubby")
    assert imported["reference"] == "hubby@1"
    trained(user, "child", scenes, "--backbone", "hubby", "--head", "captioner", *small)
    again = trained(user, "more", scenes, "--backbone", "child", "--from", "child", "--head", "captioner", *small)
    assert again["reference"] == "more@1"
    parent, child, more = (user.call("zoo", "show", name) for name in ("hubby", "child", "more"))
    assert parent["components"][0] == child["components"][0] == more["components"][0]
    assert child["assets"] == more["assets"]
    assert [asset["name"] for asset in child["assets"]] == ["saved_model.pb", "vocabulary.json"]

    for number, image in enumerate(images(40)):
        path = tmp_path / "photos" / ("dark" if number % 2 else "bright") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        keras.utils.save_img(str(path), image * (60 if number % 2 else 250), scale=False)
    folder = tmp_path / "photos"
    classes = trained(user, "classes", f"folder:{folder}", "--backbone", "more", "--head", "classifier", steps=400)
    assert classes["metrics"]["validation"]["accuracy"] == 1.0
    assert user.call("zoo", "show", "classes")["assets"] == parent["assets"]
    found = user.call("finetune", "classify", "classes", str(folder / "dark" / "1.png"))
    assert found["labels"][0]["label"] == "dark"
    caption = user.call("finetune", "caption", "more", str(folder / "dark" / "1.png"))
    assert caption["captions"][0]["log_prob"] < 0
