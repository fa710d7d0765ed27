"""The trained checkpoints through every format, on real photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finetune.data.preprocess import preprocess
from finetune.export.comparison import compare
from finetune.export.export import export
from finetune.export.exporter import ExportOptions, Run
from finetune.export.source import ExportSource
from zoo.catalog import Catalog, open_catalog
from zoo.importer import import_checkpoint
from zoo.input_spec import InputSpec

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Catalog:
    catalog = open_catalog(f"file://{tmp_path_factory.mktemp('real')}/store")
    lite0, inception = shared / "checkpoints/efficientnet_lite0", shared / "checkpoints/inception_v3_tfjs"
    import_checkpoint(
        catalog,
        kind="safetensors",
        source=lite0 / "efficientnet_lite0.safetensors",
        name="lite0",
        architecture="efficientnet_lite0",
        input_spec=lite0 / "input_spec.json",
    )
    import_checkpoint(
        catalog,
        kind="tfjs",
        source=inception,
        name="inception",
        architecture="inception_v3",
        classes=inception / "classes.json",
        input_spec=inception / "input_spec.json",
    )
    return catalog


@pytest.fixture(scope="module")
def photos(shared: Path) -> list[bytes]:
    paths = sorted((shared / "data/flickr1k").rglob("*.jpg"))[::300]
    return [path.read_bytes() for path in [*paths, *sorted((shared / "data/stamps").rglob("*.png"))[::300]]]


SIGNATURES = {"keras": "call", "onnx": "main", "litert": "serving_default"}


@pytest.mark.parametrize("name", ["lite0", "inception"])
@pytest.mark.parametrize("kind", ["saved_model", "hub", "keras", "onnx", "litert"])
def test_features_and_scores_of_real_photos_are_kept(
    catalog: Catalog, photos: list[bytes], tmp_path: Path, name: str, kind: str
) -> None:
    exported = export(catalog, name, tmp_path / "out", kind=kind)
    assert exported.facts["largest_relative_difference"] <= 1e-5
    source = ExportSource.load(catalog, catalog.get(name))
    found = source.outputs(source.preprocessed(photos))
    names = ("feature_vector", "scores")
    runs = {
        "saved_model": [
            Run(signature="features", inputs={"image_bytes": photos}, expected={names[0]: found[names[0]]}),
            Run(signature="classify", inputs={"image_bytes": photos}, expected={names[1]: found[names[1]]}),
        ],
        "hub": [
            Run(signature="", inputs={"inputs": unit_pixels(source, photos)}, expected={names[0]: found[names[0]]})
        ],
    }
    image = {"image": source.preprocessed(photos)}
    of_images = [Run(signature=SIGNATURES.get(kind, ""), inputs=image, expected={n: found[n] for n in names})]
    comparison = compare(kind, tmp_path / "out", runs.get(kind, of_images))
    worst = comparison.worst("absolute")
    assert worst is not None
    assert worst <= 1e-5 * max(1.0, float(np.abs(found["feature_vector"]).max()))


def unit_pixels(source: ExportSource, photos: list[bytes]) -> np.ndarray:
    """RGB from 0 to 1, as hub modules take it."""
    spec = source.input_spec
    plain = InputSpec.model_validate(spec.model_dump() | {"scale": 1 / 255, "mean": (0, 0, 0), "std": (1, 1, 1)})
    return np.stack([preprocess(data, plain, max_pixels=10**7) for data in photos])


@pytest.mark.parametrize("name", ["lite0", "inception"])
def test_eight_bit_weights_are_coarser_by_an_amount_that_is_stated(catalog: Catalog, tmp_path: Path, name: str) -> None:
    exported = export(catalog, name, tmp_path / "out", kind="litert", options=ExportOptions(quantise=True))
    assert 1e-3 < exported.facts["largest_relative_difference"] < 0.2
    (file,) = [file for file in exported.facts["files"] if file["path"] == "model.tflite"]
    version = catalog.get(name)
    assert file["bytes"] < 0.35 * sum(component.bytes for component in version.manifest.components)
