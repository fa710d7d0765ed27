"""Small SavedModels, written by TensorFlow itself: what tests of the hub door and of the layer behind it read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

SIZE = 16
CHANNELS = 6


class FeatureModule(tf.Module):
    """A reusable SavedModel as TensorFlow Hub has them: `module(images, training=False)` → [B, 6] in about 0..1.

    A convolution, statistics that move in training, dropout in training.
    """

    def __init__(self, *, trainable: bool = True, seed: int = 0) -> None:
        super().__init__(name="module")
        random = np.random.default_rng(seed)
        kernel = random.standard_normal((3, 3, 3, CHANNELS)).astype(np.float32) / 5
        self.kernel = tf.Variable(kernel, trainable=trainable, name="block/weights")
        self.mean = tf.Variable(np.zeros(CHANNELS, np.float32), trainable=False, name="block/moving_mean")
        self.layers = [tf.Variable(np.float32(2.0), trainable=trainable, name="scale")]
        self.unrelated = tf.Variable(np.ones(3, np.float32), name="unrelated")

    @tf.function
    def __call__(self, images: Any, training: bool = False) -> Any:
        return self.outputs(self.maps(images, training), training)

    def maps(self, images: Any, training: bool) -> Any:
        maps_BHWC = tf.nn.conv2d(images, self.kernel, strides=2, padding="SAME")
        if training:
            self.mean.assign(0.9 * self.mean + 0.1 * tf.reduce_mean(maps_BHWC, [0, 1, 2]))
            maps_BHWC = tf.nn.dropout(maps_BHWC, 0.5)
        return tf.nn.relu((maps_BHWC - self.mean) * self.layers[0])

    def outputs(self, maps_BHWC: Any, training: bool) -> Any:
        return tf.reduce_mean(maps_BHWC, [1, 2])


class MapModule(FeatureModule):
    """Gives the map only, as modules without their pooling do."""

    def outputs(self, maps_BHWC: Any, training: bool) -> Any:
        return maps_BHWC


class DictionaryModule(FeatureModule):
    """Gives a vector that isn't the map's mean, the map, and scores of several heads."""

    def outputs(self, maps_BHWC: Any, training: bool) -> Any:
        vector_BD = tf.reduce_max(maps_BHWC, [1, 2])
        return {"default": vector_BD, "last_map": maps_BHWC, "scores": vector_BD[:, :2], "count": tf.shape(maps_BHWC)}


class AmbiguousModule(FeatureModule):
    """Gives two vectors, neither of which is called as the feature vector is."""

    def outputs(self, maps_BHWC: Any, training: bool) -> Any:
        return {"one": tf.reduce_mean(maps_BHWC, [1, 2]), "two": tf.reduce_max(maps_BHWC, [1, 2])}


def save(module: tf.Module, folder: Path, *, size: int | None = SIZE, modes: tuple[bool, ...] = (False, True)) -> Path:
    """Traced for images of one size, or of any (None), in the modes that it shall have."""
    images = tf.TensorSpec([None, size, size, 3], tf.float32, name="images")
    for training in modes:
        module.__call__.get_concrete_function(images, training=training)
    tf.saved_model.save(module, str(folder))
    return folder


def save_function(
    folder: Path, call: Callable[[Any], Any], *, options: tf.saved_model.SaveOptions | None = None, **tracked: Any
) -> Path:
    """A module whose `__call__` is `call`, from images to anything; `tracked` are its attributes."""
    module = tf.Module(name="function")
    for name, value in tracked.items():
        setattr(module, name, value)
    images = tf.TensorSpec([None, SIZE, SIZE, 3], tf.float32, name="images")
    function = tf.function(call, input_signature=[images])
    module.call = function
    tf.saved_model.save(module, str(folder), signatures={"serving_default": function}, options=options)
    return folder


def rewritten(folder: Path, change: Callable[[Any], None]) -> None:
    """Changes the message SavedModel of a folder in place."""
    model = saved_model_pb2.SavedModel()
    model.ParseFromString((folder / "saved_model.pb").read_bytes())
    change(model)
    (folder / "saved_model.pb").write_bytes(model.SerializeToString())


def save_legacy(folder: Path, values: Mapping[str, np.ndarray]) -> Path:
    """A SavedModel of TensorFlow 1: a graph and named variables, without objects or functions."""
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        images = tf.compat.v1.placeholder(tf.float32, [None, SIZE, SIZE, 3])
        variables = [
            tf.compat.v1.get_variable(name, initializer=value, use_resource=False) for name, value in values.items()
        ]
        total = tf.add_n([tf.reduce_sum(tf.cast(variable, tf.float32)) for variable in variables])
        features = tf.reduce_mean(images, [1, 2]) + total
        session.run(tf.compat.v1.global_variables_initializer())
        signature = tf.compat.v1.saved_model.predict_signature_def({"images": images}, {"default": features})
        builder = tf.compat.v1.saved_model.Builder(str(folder))
        builder.add_meta_graph_and_variables(session, ["train"], {"default": signature})
        builder.save()
    return folder
