from __future__ import annotations

import hashlib
import math
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.saved_models import (
    CHANNELS,
    SIZE,
    AmbiguousModule,
    DictionaryModule,
    FeatureModule,
    MapModule,
    rewritten,
    save,
    save_function,
    save_legacy,
)
from tests.zoo.foreign import foreign_tensors
from zoo.architectures.keeping import AnotherSize, NotKept
from zoo.cache import BlobCache
from zoo.catalog import Catalog
from zoo.importer import ImportResult, import_checkpoint
from zoo.input_spec import InputSpec
from zoo.readers import hub
from zoo.readers.checkpoint import (
    DamagedCheckpoint,
    MissingCheckpointFile,
    NotACheckpoint,
    ReadOptions,
)
from zoo.readers.hub import ModuleUnavailable, read
from zoo.readers.hub_graph import LegacyModule
from zoo.restore_report import IncompleteRestore
from zoo.store.local import LocalStore
from zoo.tensors import read_safetensors, write_safetensors


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(LocalStore(tmp_path / "store"), BlobCache(tmp_path / "cache"))


@pytest.fixture
def run(catalog: Catalog) -> Callable[..., ImportResult]:
    return lambda source, **options: import_checkpoint(catalog, kind="hub", source=source, name="m", **options)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(FeatureModule(), tmp_path_factory.mktemp("hub") / "plain")


@pytest.fixture(scope="module")
def slim_v1() -> dict[str, np.ndarray]:
    return foreign_tensors("inception_v1", "slim")


def copied(source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(source, tmp_path / "copy"))


def backbone(catalog: Catalog) -> dict[str, np.ndarray]:
    return read_safetensors(catalog.open_component(catalog.get("m"), "backbone"))


# Kept as it came


def test_a_network_of_its_own_is_kept_whole(plain: Path, run: Callable[..., ImportResult], catalog: Catalog) -> None:
    result = run(plain, license="Apache-2.0")
    manifest = catalog.get("m").manifest
    assert result.layout == "as it came"
    assert manifest.architecture.model_dump() == {
        "name": "hub_module",
        "arguments": {"function": "__call__", "outputs": {"feature_vector": ""}, "feature_dim": CHANNELS},
    }
    assert (manifest.input_spec, manifest.head) == (InputSpec(height=SIZE, width=SIZE), None)
    original = FeatureModule()
    stored = backbone(catalog)
    assert set(stored) == {"kernel", "mean", "layers/0"}
    np.testing.assert_array_equal(stored["kernel"], original.kernel.numpy(), strict=True)
    np.testing.assert_array_equal(stored["layers/0"], original.layers[0].numpy(), strict=True)
    graph = catalog.open_asset(catalog.get("m"), "saved_model.pb").read_bytes()
    assert graph == (plain / "saved_model.pb").read_bytes()
    assert [asset.name for asset in manifest.assets] == ["saved_model.pb"]
    assert result.report.restored == ("backbone/kernel", "backbone/layers/0", "backbone/mean")
    assert result.report.renamed["block/weights"] == "backbone/kernel"
    assert result.report.unused == {"unrelated": "the function that makes features doesn't read it"}
    said = " ".join(result.notes)
    for part in ("no architecture here is its like", "1 × 1", "2 of 3 variables are trainable", "0 to 1"):
        assert part in said
    source = manifest.lineage.source
    assert source is not None
    files = (
        plain / "saved_model.pb",
        *sorted((plain / "variables").iterdir(), key=lambda path: path.suffix != ".index"),
    )
    assert source.digest == "sha256:" + hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def test_the_same_again_is_existing(plain: Path, run: Callable[..., ImportResult]) -> None:
    first = run(plain)
    again = run(plain).published
    assert again is not None
    assert again.existing
    assert run(plain / "saved_model.pb").manifest.components == first.manifest.components


@pytest.mark.parametrize(
    ("module", "outputs"),
    [
        (MapModule, {"feature_map": ""}),
        (DictionaryModule, {"feature_vector": "default", "feature_map": "last_map"}),
    ],
)
def test_outputs_are_told_by_rank_and_name(
    module: type[FeatureModule], outputs: dict[str, str], run: Callable[..., ImportResult], tmp_path: Path
) -> None:
    arguments = run(save(module(), tmp_path / "m")).manifest.architecture.arguments
    assert arguments["outputs"] == outputs
    assert arguments["feature_dim"] == CHANNELS


def test_outputs_that_dont_tell_are_refused(run: Callable[..., ImportResult], tmp_path: Path) -> None:
    with pytest.raises(NotACheckpoint, match=rf"one \[None, {CHANNELS}\], two \[None, {CHANNELS}\]"):
        run(save(AmbiguousModule(), tmp_path / "m"), architecture="hub_module")


def test_a_signature_stands_in_for_a_call(run: Callable[..., ImportResult], tmp_path: Path) -> None:
    weights = tf.Variable(np.eye(3, 5, dtype=np.float32))
    folder = save_function(tmp_path / "m", lambda x: {"v": tf.reduce_mean(x, [1, 2]) @ weights}, weights=weights)
    arguments = run(folder).manifest.architecture.arguments
    assert arguments == {"function": "serving_default", "outputs": {"feature_vector": "v"}, "feature_dim": 5}


def test_a_function_of_something_else_than_images_is_refused(run: Callable[..., ImportResult], tmp_path: Path) -> None:
    module = tf.Module()
    module.v = tf.Variable(1.0)
    module.f = tf.function(lambda words: module.v * tf.cast(tf.strings.length(words), tf.float32))
    words = tf.TensorSpec([None], tf.string)
    tf.saved_model.save(
        module, str(tmp_path / "m"), signatures={"serving_default": module.f.get_concrete_function(words)}
    )
    with pytest.raises(NotACheckpoint, match=r"has no function from images.*it has serving_default"):
        run(tmp_path / "m")


def test_the_input_spec(plain: Path, run: Callable[..., ImportResult], tmp_path: Path) -> None:
    other = InputSpec(height=SIZE, width=SIZE, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert run(plain, input_spec=other).manifest.input_spec == other
    with pytest.raises(AnotherSize, match="16 × 16 pixels, the input spec says 20 × 16"):
        run(plain, input_spec=InputSpec(height=20, width=16))
    anything = save(FeatureModule(), tmp_path / "any", size=None)
    assert run(anything).manifest.input_spec == InputSpec(height=224, width=224)
    assert run(anything, input_spec=InputSpec(height=20, width=24)).manifest.input_spec.width == 24


def test_what_cannot_be_asked_of_a_whole_network(
    plain: Path, run: Callable[..., ImportResult], catalog: Catalog, tmp_path: Path
) -> None:
    with pytest.raises(NotKept, match="--exclude block"):
        run(plain, architecture="hub_module", exclude=["block"])
    with pytest.raises(IncompleteRestore, match="inception_v3"):
        run(save(_slim("InceptionV3", 3), tmp_path / "m"), architecture="inception_v3")
    source = tmp_path / "x.safetensors"
    write_safetensors(source, {"a": np.zeros(3, np.float32)})
    with pytest.raises(NotKept, match="no graph"):
        import_checkpoint(catalog, kind="safetensors", source=source, name="x", architecture="hub_module")


def test_half_precision_and_whole_numbers(run: Callable[..., ImportResult], catalog: Catalog, tmp_path: Path) -> None:
    half = tf.Variable(np.linspace(0, 1, 15).reshape(3, 5).astype(np.float16))
    steps = tf.Variable(np.int64(2**40 + 1), trainable=False)

    def call(images: Any) -> Any:
        return tf.reduce_mean(images, [1, 2]) @ tf.cast(half, tf.float32) + tf.cast(steps % 2, tf.float32)

    report = run(save_function(tmp_path / "m", call, half=half, steps=steps)).report
    stored = backbone(catalog)
    assert report.widened == ("backbone/half",)
    np.testing.assert_array_equal(stored["half"], half.numpy().astype(np.float32), strict=True)
    np.testing.assert_array_equal(stored["steps"], np.int64(2**40 + 1), strict=True)


class _Hyperparameters(FeatureModule):
    """As TensorFlow Hub's own image modules: a traced hyperparameter with a default, a flag for more outputs."""

    @tf.function
    def __call__(self, images: Any, training: bool = False, momentum: Any = 0.9, endpoints: bool = False) -> Any:
        maps_BHWC = tf.nn.conv2d(images, self.kernel, strides=2, padding="SAME") - self.mean
        if training:
            self.mean.assign(momentum * self.mean + (1 - momentum) * tf.reduce_mean(maps_BHWC, [0, 1, 2]))
        vector_BD = tf.reduce_mean(maps_BHWC, [1, 2])
        return {"default": vector_BD, "a/b": maps_BHWC} if endpoints else vector_BD


def test_arguments_with_defaults_may_be_left_out(run: Callable[..., ImportResult], tmp_path: Path) -> None:
    module = _Hyperparameters()
    images = tf.TensorSpec([None, SIZE, SIZE, 3])
    for training in (True, False):
        for endpoints in (True, False):
            module.__call__.get_concrete_function(images, training, tf.TensorSpec([]), endpoints=endpoints)
    tf.saved_model.save(module, str(tmp_path / "m"))
    result = run(tmp_path / "m")
    assert result.manifest.architecture.arguments["outputs"] == {"feature_vector": ""}
    assert set(backbone_names(result)) == {"kernel", "mean"}


def backbone_names(result: ImportResult) -> list[str]:
    return [name.removeprefix("backbone/") for name in result.report.restored]


# Weights of an architecture that is known


class _Named(FeatureModule):
    """Variables of any names, all of them read by the call."""

    def __init__(self, values: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.named = [tf.Variable(value, name=name) for name, value in values.items()]

    def outputs(self, maps_BHWC: Any, training: bool) -> Any:
        total = tf.add_n([tf.reduce_sum(variable) for variable in self.named])
        return tf.reduce_mean(maps_BHWC, [1, 2]) + total * self.unrelated[0]


class _OnlyNamed(tf.Module):
    """The same without anything else."""

    def __init__(self, values: dict[str, np.ndarray]) -> None:
        super().__init__()
        self.named = [tf.Variable(value, name=name) for name, value in values.items()]

    @tf.function
    def __call__(self, images: Any, training: bool = False) -> Any:
        return tf.reduce_mean(images, [1, 2]) + tf.add_n([tf.reduce_sum(variable) for variable in self.named])


def _slim(network: str, count: int) -> tf.Module:
    names = list(foreign_tensors("inception_v3", "slim").items())[:count]
    assert all(name.startswith(network) for name, _ in names)
    return _OnlyNamed(dict(names))


def test_slim_names_below_any_scope_are_plain_weights(
    run: Callable[..., ImportResult], slim_v1: dict[str, np.ndarray], catalog: Catalog, tmp_path: Path
) -> None:
    values = slim_v1
    folder = save(
        _OnlyNamed({f"module/{name}": value for name, value in values.items()}), tmp_path / "m", modes=(False,)
    )
    result = run(folder)
    manifest = result.manifest
    assert (manifest.architecture.name, result.layout, manifest.assets) == ("inception_v1", "slim", ())
    stored = backbone(catalog)
    assert len(stored) == len(values)
    for name, value in values.items():
        unit, _, weight = name.removeprefix("InceptionV1/").rpartition("/")
        ours = f"{unit.removesuffix('/BatchNorm')}/{'kernel' if weight == 'weights' else weight}"
        np.testing.assert_array_equal(stored[ours], value, strict=True)


def test_a_network_with_more_than_the_names_of_an_architecture_is_kept_whole(
    run: Callable[..., ImportResult], slim_v1: dict[str, np.ndarray], tmp_path: Path
) -> None:
    result = run(save(_Named(slim_v1), tmp_path / "m", modes=(False,)))
    assert result.manifest.architecture.name == "hub_module"
    assert any("inception_v1" in note and "left over" in note for note in result.notes)


def test_epsilons_are_read_from_the_graph(tmp_path: Path) -> None:
    scale = tf.Variable(np.ones(3, np.float32))

    def call(images: Any) -> Any:
        fused = tf.raw_ops.FusedBatchNormV3(
            x=images, scale=scale, offset=scale, mean=scale, variance=scale, epsilon=0.25, is_training=False
        )
        plain = tf.nn.batch_normalization(fused.y, scale, scale, None, None, 0.125)
        return tf.reduce_mean(plain, [1, 2])

    folder = save_function(tmp_path / "m", call, scale=scale)
    assert read(str(folder), ReadOptions()).batch_norm_epsilons == {0.25, 0.125}


def _inception(shared: Path, catalog: Catalog) -> keras.Model:
    """Keras' Inception v3 with real weights, in a process that has built other layers before."""
    from finetune.models.inception_v3 import build
    from finetune.models.restore import NORM_SUFFIX

    import_checkpoint(catalog, kind="tfjs", source=shared / "checkpoints/inception_v3_tfjs", name="real")
    values = read_safetensors(catalog.open_component(catalog.get("real"), "backbone"))
    for _ in range(3):
        keras.layers.Conv2D(1, 1)
        keras.layers.BatchNormalization()
    network = keras.applications.InceptionV3(include_top=False, weights=None, pooling="avg", input_shape=(75, 75, 3))
    ours = build(height=75, width=75, pool_counts_padding=False)
    named = keras.Model(ours.image, ours.feature_map)
    for theirs, layer in zip(network.layers, named.layers, strict=False):  # both in Keras' order
        scope = layer.name.removesuffix(NORM_SUFFIX).replace(".", "/")
        for variable in theirs.weights:
            variable.assign(values[f"{scope}/{variable.name}"])
    return network


def _save_by(way: str, network: keras.Model, folder: Path) -> None:
    if way == "export":
        network.export(str(folder), verbose=False)
    else:
        tf.saved_model.save(network, str(folder))


@pytest.mark.parametrize("way", ["save", pytest.param("export", marks=pytest.mark.slow)])
def test_keras_inception_v3_comes_back_bit_equal(
    way: str, shared: Path, run: Callable[..., ImportResult], catalog: Catalog, tmp_path: Path
) -> None:
    network = _inception(shared, catalog)
    _save_by(way, network, tmp_path / "m")
    result = run(tmp_path / "m")
    real = catalog.get("real").manifest
    assert result.manifest.components == real.components[:1]
    assert result.manifest.architecture == real.architecture
    assert result.manifest.input_spec.mean == (0.5, 0.5, 0.5)
    assert any("counted from 0" in note for note in result.notes)


@pytest.mark.slow
def test_keras_mobilenet_v2_with_its_head(run: Callable[..., ImportResult], catalog: Catalog, tmp_path: Path) -> None:
    network = keras.applications.MobileNetV2(weights=None, classes=7, input_shape=(96, 96, 3))
    network.export(str(tmp_path / "m"), verbose=False)
    manifest = run(tmp_path / "m").manifest
    assert manifest.architecture.name == "mobilenet_v2"
    assert manifest.head is not None
    assert manifest.head.arguments["num_classes"] == 7
    stored = backbone(catalog)
    depthwise = network.get_layer("block_3_depthwise").kernel.numpy()
    assert sum(value.shape == depthwise.shape and np.array_equal(value, depthwise) for value in stored.values()) == 1
    assert sum(math.prod(value.shape) for value in stored.values()) == network.count_params() - 1281 * 7


# Modules of TensorFlow 1


def test_a_module_of_tensorflow_1_is_said_to_be_one(run: Callable[..., ImportResult], tmp_path: Path) -> None:
    folder = save_legacy(tmp_path / "m", {"a/weights": np.ones((2, 3), np.float32)})
    with pytest.raises(LegacyModule, match=r"TensorFlow 1 \(graphs tagged train\).*nor fine-tuned"):
        run(folder, architecture="hub_module")
    with pytest.raises(LegacyModule, match="Nor has it the names of an architecture here"):
        run(folder)


def test_slim_names_in_a_module_of_tensorflow_1(
    run: Callable[..., ImportResult], slim_v1: dict[str, np.ndarray], catalog: Catalog, tmp_path: Path
) -> None:
    values = slim_v1
    result = run(save_legacy(tmp_path / "m", values))
    assert (result.manifest.architecture.name, result.layout) == ("inception_v1", "slim")
    assert any("TensorFlow 1" in note for note in result.notes)
    np.testing.assert_array_equal(
        backbone(catalog)["Conv2d_1a_7x7/kernel"], values["InceptionV1/Conv2d_1a_7x7/weights"], strict=True
    )


# Files that aren't what they should be


def test_missing_and_cut_files_are_named(plain: Path, run: Callable[..., ImportResult], tmp_path: Path) -> None:
    shard = "variables/variables.data-00000-of-00001"
    for damage, error, match in [
        (lambda f: (f / shard).unlink(), MissingCheckpointFile, "data-00000-of-00001"),
        (lambda f: (f / "variables/variables.index").unlink(), MissingCheckpointFile, "variables.index"),
        (lambda f: (f / shard).write_bytes((f / shard).read_bytes()[:-50]), DamagedCheckpoint, "cut short"),
        (
            lambda f: (f / "saved_model.pb").write_bytes((f / "saved_model.pb").read_bytes()[:-50]),
            DamagedCheckpoint,
            "saved_model.pb is cut off",
        ),
        (lambda f: (f / "saved_model.pb").write_bytes(b""), NotACheckpoint, "no graph"),
        (lambda f: (f / "saved_model.pb").rename(f / "saved_model.pbtxt"), NotACheckpoint, "saved_model.pbtxt"),
    ]:
        folder = copied(plain, tmp_path)
        damage(folder)
        with pytest.raises(error, match=match):
            run(folder)
        shutil.rmtree(folder)


def test_flipped_values_are_found(plain: Path, run: Callable[..., ImportResult], tmp_path: Path) -> None:
    folder = copied(plain, tmp_path)
    shard = folder / "variables/variables.data-00000-of-00001"
    data = bytearray(shard.read_bytes())
    data[8] ^= 0x40
    shard.write_bytes(data)
    with pytest.raises(DamagedCheckpoint, match="cannot be read"):
        run(folder)


def test_graph_and_values_that_differ(plain: Path, run: Callable[..., ImportResult], tmp_path: Path) -> None:
    folder = copied(plain, tmp_path)

    def widen(model: Any) -> None:
        for node in model.meta_graphs[0].object_graph_def.nodes:
            if node.variable.name == "block/weights":
                node.variable.shape.dim[0].size = 10**9

    rewritten(folder, widen)
    with pytest.raises(DamagedCheckpoint, match=r"kernel \(block/weights\) is \(1000000000, 3, 3, 6\), its value"):
        run(folder)


def test_no_saved_model_there(run: Callable[..., ImportResult], plain: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingCheckpointFile, match="there is no SavedModel"):
        run(tmp_path / "nothing")
    shutil.copytree(plain, tmp_path / "served" / "3")
    with pytest.raises(MissingCheckpointFile, match="it holds 3") as caught:
        run(tmp_path / "served")
    assert caught.value.hint == f"name the folder {tmp_path / 'served' / '3'}"


# Handles


def test_a_handle_comes_from_tensorflow_hubs_cache(
    plain: Path, run: Callable[..., ImportResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = "https://tfhub.dev/nobody/nothing/1"
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "hub"))
    shutil.copytree(plain, tmp_path / "hub" / hashlib.sha1(handle.encode()).hexdigest())
    source = run(handle).manifest.lineage.source
    assert source is not None
    assert source.location == handle


def test_a_handle_that_nobody_answers(
    run: Callable[..., ImportResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "hub"))
    with pytest.raises(ModuleUnavailable, match=r"https://127\.0\.0\.1:9/m/1 could not be fetched") as caught:
        run("https://127.0.0.1:9/m/1")
    assert "TFHUB_CACHE_DIR" in (caught.value.hint or "")
    with pytest.raises(NotACheckpoint, match="begins with https"):
        run("http://tfhub.dev/m/1")


def test_a_handle_whose_host_stays_silent(
    run: Callable[..., ImportResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFHUB_CACHE_DIR", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "ANSWER_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(ModuleUnavailable, match="timed out"):
            run(f"https://127.0.0.1:{port}/m/1")
    assert socket.getdefaulttimeout() is None
