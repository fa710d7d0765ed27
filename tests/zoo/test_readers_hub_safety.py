"""Graphs that do more than arithmetic on their own variables are refused by name, wherever it hides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf

from tests.saved_models import FeatureModule, rewritten, save, save_function
from zoo.cache import BlobCache
from zoo.catalog import Catalog
from zoo.importer import ImportResult, import_checkpoint
from zoo.readers.checkpoint import UnsafeCheckpoint
from zoo.store.local import LocalStore


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(LocalStore(tmp_path / "store"), BlobCache(tmp_path / "cache"))


@pytest.fixture
def run(catalog: Catalog) -> Callable[..., ImportResult]:
    return lambda source, **options: import_checkpoint(catalog, kind="hub", source=source, name="m", **options)


def _reads(images: Any) -> Any:
    return tf.reduce_mean(images, [1, 2]) + tf.cast(tf.strings.length(tf.io.read_file("/etc/hostname")), tf.float32)


def _writes(images: Any) -> Any:
    with tf.control_dependencies([tf.io.write_file("/tmp/never-written", "x")]):
        return tf.reduce_mean(images, [1, 2])


def _prints(images: Any) -> Any:
    tf.print(images, output_stream="file:///tmp/never-written")
    return tf.reduce_mean(images, [1, 2])


def _calls_python(images: Any) -> Any:
    return tf.ensure_shape(tf.py_function(lambda x: x, [tf.reduce_mean(images, [1, 2])], tf.float32), [None, 3])


def _calls_numpy(images: Any) -> Any:
    return tf.ensure_shape(tf.numpy_function(lambda x: x, [tf.reduce_mean(images, [1, 2])], tf.float32), [None, 3])


def _reads_in_a_branch(images: Any) -> Any:
    return tf.cond(tf.reduce_sum(images) > 1e30, lambda: _reads(images), lambda: tf.reduce_mean(images, [1, 2]))


def _reads_in_a_loop(images: Any) -> Any:
    return tf.while_loop(lambda n, x: n < 3, lambda n, x: (n + 1, _reads(images)), (0, tf.reduce_mean(images, [1, 2])))[
        1
    ]


def _reads_a_data_set(images: Any) -> Any:
    lines = tf.data.TextLineDataset("/etc/hostname").reduce(0.0, lambda total, line: total + 1.0)
    return tf.reduce_mean(images, [1, 2]) + lines


def _reads_in_its_gradient(images: Any) -> Any:
    @tf.custom_gradient
    def through(x: Any) -> Any:
        return x, lambda upstream: upstream + tf.cast(tf.strings.length(tf.io.read_file("/etc/hostname")), tf.float32)

    return through(tf.reduce_mean(images, [1, 2]))


@pytest.mark.parametrize(
    ("call", "operation"),
    [
        (_reads, "ReadFile"),
        (_writes, "WriteFile"),
        (_prints, "PrintV2"),
        (_calls_python, "EagerPyFunc"),
        (_calls_numpy, "PyFunc"),
        (_reads_in_a_branch, "ReadFile"),
        (_reads_in_a_loop, "ReadFile"),
        (_reads_a_data_set, "TextLineDataset"),
        (_reads_in_its_gradient, "ReadFile"),
    ],
)
def test_operations_beyond_arithmetic_are_refused_by_name(
    call: Callable[[Any], Any], operation: str, run: Callable[..., ImportResult], catalog: Catalog, tmp_path: Path
) -> None:
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=True)
    folder = save_function(tmp_path / "m", call, options=options)
    with pytest.raises(UnsafeCheckpoint, match=rf"\b{operation} "):
        run(folder)
    assert not list(catalog.store.list("models/"))


class _TrainsFromFiles(FeatureModule):
    def maps(self, images: Any, training: bool) -> Any:
        found = super().maps(images, training)
        return found + tf.cast(tf.strings.length(tf.io.read_file("/etc/hostname")), tf.float32) if training else found


def test_what_only_training_would_do_is_refused_too(run: Callable[..., ImportResult], tmp_path: Path) -> None:
    with pytest.raises(UnsafeCheckpoint, match="ReadFile"):
        run(save(_TrainsFromFiles(), tmp_path / "m"))


def test_functions_that_nobody_calls_may_do_anything(run: Callable[..., ImportResult], tmp_path: Path) -> None:
    module = FeatureModule()
    module.other = tf.function(_reads, input_signature=[tf.TensorSpec([None, 4, 4, 3])])
    graph = save(module, tmp_path / "m") / "saved_model.pb"
    data = graph.read_bytes()
    assert b"ReadFile" in data
    assert b"RestoreV2" in data  # every SavedModel's own, never called here
    assert run(tmp_path / "m").manifest.architecture.name == "hub_module"


def test_an_operation_that_tensorflow_does_not_know(run: Callable[..., ImportResult], tmp_path: Path) -> None:
    """Also where nobody calls it: TensorFlow couldn't load the module."""
    module = FeatureModule()
    module.other = tf.function(lambda x: tf.math.zeta(x, x), input_signature=[tf.TensorSpec([None])])
    save(module, tmp_path / "m")

    def change(model: Any) -> None:
        for function in model.meta_graphs[0].graph_def.library.function:
            for node in function.node_def:
                node.op = "MyCudaThing" if node.op == "Zeta" else node.op

    rewritten(tmp_path / "m", change)
    with pytest.raises(UnsafeCheckpoint, match="doesn't know: MyCudaThing"):
        run(tmp_path / "m")


def test_tables_and_registered_classes_are_refused(run: Callable[..., ImportResult], tmp_path: Path) -> None:
    initializer = tf.lookup.KeyValueTensorInitializer([0, 1], [0.0, 1.0])
    table = tf.lookup.StaticHashTable(initializer, 0.0)
    folder = save_function(
        tmp_path / "m", lambda x: tf.reduce_mean(x, [1, 2]) + table.lookup(tf.constant(0)), table=table
    )
    with pytest.raises(UnsafeCheckpoint, match="more than variables and functions: resource"):
        run(folder)

    def register(model: Any) -> None:
        model.meta_graphs[0].object_graph_def.nodes[0].registered_name = "Custom.Thing"

    other = save(FeatureModule(), tmp_path / "other")
    rewritten(other, register)
    with pytest.raises(UnsafeCheckpoint, match=r"Custom\.Thing"):
        run(other)
