"""Keras' own Inception v3, written by Keras' own writer, comes in through `zoo import keras` with nothing changed."""

from __future__ import annotations

from pathlib import Path

import h5py
import keras
import numpy as np
import pytest

from finetune.models.backbone import Backbone
from finetune.models.task_model import load_head
from zoo.catalog import open_catalog
from zoo.importer import import_checkpoint


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # Keras 3.15's, under NumPy 2
def test_inception_v3_says_what_keras_says(tmp_path: Path) -> None:
    from keras.src.legacy.saving import legacy_h5_format

    keras.utils.set_random_seed(5)
    keras.backend.clear_session()  # the file's names count layers from the first one that the process made
    theirs = keras.applications.InceptionV3(weights=None, classes=10)
    for layer in theirs.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_variance.assign(np.linspace(0.5, 2, layer.moving_variance.shape[0]))
    with h5py.File(tmp_path / "inception.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, theirs)

    catalog = open_catalog()
    imported = import_checkpoint(catalog, kind="keras", source=tmp_path / "inception.h5", name="inception")
    assert imported.published is not None
    assert imported.report.complete
    version = imported.published.version
    assert version.manifest.architecture.name == "inception_v3"

    backbone = Backbone.from_version(catalog, version)
    head = load_head(catalog, version, backbone.feature_dim)
    image_BHWC = np.random.default_rng(1).uniform(-1, 1, (1, 299, 299, 3)).astype(np.float32)
    ours = np.asarray(head.probabilities(np.asarray(backbone.feature_vector(image_BHWC))))
    np.testing.assert_allclose(ours, np.asarray(theirs(image_BHWC, training=False)), atol=1e-6)
