"""The first BatchNorm remembers what range of values its images had."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finetune.data.preprocess import load_pixels, normalise
from finetune.data.sources import open_source
from finetune.models.backbone import Backbone
from finetune.models.input_range import input_range
from tests.tiny import tiny_backbone_version
from zoo.cache import BlobCache
from zoo.catalog import Catalog
from zoo.importer import import_checkpoint, read_input_spec
from zoo.input_spec import InputSpec
from zoo.store import open_store

PLUS_MINUS = InputSpec(height=32, width=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def pixels() -> np.ndarray:
    """Noise with a coarse structure, as pictures have, over all of 0 to 255."""
    chance = np.random.default_rng(0)
    coarse = chance.integers(0, 256, (16, 4, 4, 3)).repeat(8, axis=1).repeat(8, axis=2)
    return np.clip(coarse + chance.integers(-20, 20, coarse.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """Its first BatchNorm remembers pictures with values from −1 to 1."""
    root = tmp_path_factory.mktemp("zoo")
    catalog = Catalog(open_store(root.as_uri()), BlobCache(root / "cache"))
    found = Backbone.from_version(catalog, tiny_backbone_version(catalog))
    import keras

    norm = next(layer for layer in found.model.layers if isinstance(layer, keras.layers.BatchNormalization))
    x = np.asarray(keras.Model(found.model.input, norm.input)(normalise(pixels(), PLUS_MINUS)))
    norm.moving_mean.assign(x.mean(axis=(0, 1, 2)))
    norm.moving_variance.assign(x.var(axis=(0, 1, 2)))
    return found


@pytest.mark.parametrize(
    ("scale", "mean", "std", "fits"),
    [
        (1 / 255, 0.5, 0.5, True),
        (1 / 255, 0.0, 1.0, False),
        (1.0, 0.0, 1.0, False),
        (1 / 255 / 255, 0.0, 1.0, False),  # divided twice
    ],
)
def test_another_range_is_told_with_the_one_that_fits(
    backbone: Backbone, scale: float, mean: float, std: float, fits: bool
) -> None:
    spec = backbone.input_spec.model_copy(update={"scale": scale, "mean": (mean,) * 3, "std": (std,) * 3})
    backbone.input_spec = spec
    found = input_range(backbone, pixels())
    assert found is not None
    warning = found.warning(spec)
    if fits:
        assert warning is None
        assert found.deviation == pytest.approx(1, rel=0.01)
    else:
        assert found.better[0] == "-1 to 1"
        assert warning is not None
        assert "--input-spec" in warning
        assert "mean [0.5, 0.5, 0.5]" in warning


@pytest.mark.slow
@pytest.mark.parametrize("data", ["flickr:{}/data/flickr1k", "folder:{}/data/stamps"])
def test_of_real_weights_and_photos_only_another_range_is_told(shared: Path, tmp_path: Path, data: str) -> None:
    """Inception v3 of the shared checkpoint learnt from 0 to 1."""
    folder = shared / "checkpoints/inception_v3_tfjs"
    catalog = Catalog(open_store(tmp_path.as_uri()), BlobCache(tmp_path / "cache"))
    import_checkpoint(
        catalog, kind="tfjs", source=folder, name="real", input_spec=read_input_spec(folder / "input_spec.json")
    )
    real = Backbone.from_version(catalog, "real")
    source = open_source(data.format(shared))
    places = np.linspace(0, len(source.examples) - 1, 32).astype(int).tolist()
    seen = np.stack([load_pixels(source.read(place), real.input_spec, max_pixels=50_000_000) for place in places])
    right = input_range(real, seen)
    assert right is not None
    assert not right.far
    real.input_spec = real.input_spec.model_copy(update={"mean": (0.5,) * 3, "std": (0.5,) * 3})
    wrong = input_range(real, seen)
    assert wrong is not None
    assert "0 to 1" in wrong.better
