"""Whole imports of TF-Slim checkpoints: what is published, and what is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.zoo.foreign import foreign_tensors
from tests.zoo.seeded import write_slim
from zoo.architectures.choosing import NothingExcluded, UnknownSource
from zoo.architectures.matching import SeveralScopes
from zoo.cache import BlobCache
from zoo.catalog import Catalog
from zoo.class_names import InvalidClassNames
from zoo.importer import ImportResult, NotFinite, import_checkpoint
from zoo.restore_report import IncompleteRestore
from zoo.store.memory import MemoryStore


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(MemoryStore(f"slim-{tmp_path.name}"), BlobCache(tmp_path / "cache"))


@pytest.fixture(scope="module")
def inception() -> dict[str, np.ndarray]:
    """Inception v1 as TF-Slim names it, with an output layer of 1001 classes."""
    rng = np.random.default_rng(5)
    return foreign_tensors("inception_v1", "slim") | {
        "InceptionV1/Logits/Conv2d_0c_1x1/weights": rng.normal(0, 0.05, (1, 1, 1024, 1001)).astype(np.float32),
        "InceptionV1/Logits/Conv2d_0c_1x1/biases": rng.normal(0, 0.05, 1001).astype(np.float32),
    }


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, inception: dict[str, np.ndarray]) -> Path:
    return write_slim(tmp_path_factory.mktemp("slim") / "inception_v1.ckpt", inception)


def importing(catalog: Catalog, source: Path, **options: Any) -> ImportResult:
    return import_checkpoint(catalog, kind="slim", source=source, name="m", dry_run=True, **options)


def test_an_import_publishes_tensors_and_says_where_they_came_from(catalog: Catalog, written: Path) -> None:
    result = import_checkpoint(catalog, kind="slim", source=written, name="m")
    manifest = result.manifest
    assert result.layout == "slim"
    assert manifest.architecture.name == "inception_v1"
    assert manifest.head is not None
    assert manifest.head.arguments["num_classes"] == 1001
    source = manifest.lineage.source
    assert source is not None
    files = [written.with_name(written.name + end) for end in (".index", ".data-00000-of-00001")]
    assert source.digest == "sha256:" + hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()
    again = import_checkpoint(catalog, kind="slim", source=written, name="m")
    assert again.published is not None
    assert again.published.existing


@pytest.mark.parametrize(("lines", "offset"), [(None, 1), (1000, 1), (1001, 0)])
def test_1001_outputs_have_the_background_first(
    catalog: Catalog, written: Path, tmp_path: Path, lines: int | None, offset: int
) -> None:
    classes = None
    if lines is not None:
        classes = tmp_path / "labels.txt"
        classes.write_text("".join(f"class {number}\n" for number in range(lines)))
    result = importing(catalog, written, classes=classes)
    assert result.manifest.class_offset == offset
    assert any("the first is the background" in note for note in result.notes) == (lines is None)


@pytest.mark.parametrize("lines", [999, 1002])
def test_other_numbers_of_class_names_are_refused(catalog: Catalog, written: Path, tmp_path: Path, lines: int) -> None:
    classes = tmp_path / "labels.txt"
    classes.write_text("".join(f"class {number}\n" for number in range(lines)))
    with pytest.raises(InvalidClassNames, match=rf"names {lines} classes, the classifier has 1001 outputs.*1000 where"):
        importing(catalog, written, classes=classes)


def test_other_numbers_of_outputs_have_no_offset(
    catalog: Catalog, inception: dict[str, np.ndarray], tmp_path: Path
) -> None:
    few = {name: value[..., :5] if "Logits" in name else value for name, value in inception.items()}
    assert importing(catalog, write_slim(tmp_path / "m", few)).manifest.class_offset == 0


def test_what_is_left_aside_is_in_the_report_and_the_recipe_in_the_manifest(
    catalog: Catalog, inception: dict[str, np.ndarray], tmp_path: Path
) -> None:
    weights = "InceptionV1/Conv2d_1a_7x7/weights"
    more = {
        f"{weights}/ExponentialMovingAverage": inception[weights] + 1,
        f"{weights}/RMSProp": inception[weights],
        f"{weights}/RMSProp_1": inception[weights],
        "global_step": np.int64(5),
    }
    path = write_slim(tmp_path / "m", {**inception, **more})
    result = importing(catalog, path)
    assert set(result.report.unused) == {weights, f"{weights}/RMSProp", f"{weights}/RMSProp_1", "global_step"}
    assert result.manifest.lineage.source is not None
    assert result.manifest.lineage.source.recipe == {"ema": True}
    raw = importing(catalog, path, raw_weights=True)
    assert raw.manifest.components[0].digest != result.manifest.components[0].digest
    assert (
        raw.manifest.components[0].digest
        == importing(catalog, write_slim(tmp_path / "r", inception)).manifest.components[0].digest
    )


def test_a_network_below_a_scope_of_its_own_is_found(
    catalog: Catalog, inception: dict[str, np.ndarray], written: Path, tmp_path: Path
) -> None:
    tower = {f"tower_0/{name}": value for name, value in inception.items()}
    result = importing(catalog, write_slim(tmp_path / "one", tower))
    plain = importing(catalog, written)
    assert [part.digest for part in result.manifest.components] == [part.digest for part in plain.manifest.components]
    assert result.report.renamed["tower_0/InceptionV1/Conv2d_1a_7x7/weights"] == "backbone/Conv2d_1a_7x7/kernel"

    both = tower | {f"tower_1/{name}": value for name, value in inception.items()}
    path = write_slim(tmp_path / "two", both)
    with pytest.raises(SeveralScopes, match="below 2 scopes: tower_0/, tower_1/") as caught:
        importing(catalog, path)
    assert caught.value.hint == "keep one: --exclude tower_1"
    kept = importing(catalog, path, exclude=["tower_1"])
    assert [part.digest for part in kept.manifest.components] == [part.digest for part in plain.manifest.components]
    assert len(kept.report.unused) == len(inception)


def test_another_architecture_than_the_files_is_refused_with_the_right_one(catalog: Catalog, written: Path) -> None:
    with pytest.raises(UnknownSource, match=r"has the names of no architecture here: inception_v3 .* 0%") as caught:
        importing(catalog, written, architecture="inception_v3")
    assert caught.value.hint == "these are the names of inception_v1 (slim names): --architecture inception_v1"
    with pytest.raises(NothingExcluded, match="did you mean InceptionV1/Logits") as missed:
        importing(catalog, written, exclude=["InceptionV1/Logit"])
    assert "matches none of" in missed.value.message


def test_nan_and_missing_variables_are_refused(
    catalog: Catalog, inception: dict[str, np.ndarray], tmp_path: Path
) -> None:
    name = "InceptionV1/Mixed_3b/Branch_0/Conv2d_0a_1x1/weights"
    spoilt = inception[name].copy()
    spoilt[0, 0, 3, 4] = np.nan
    path = write_slim(tmp_path / "nan", {**inception, name: spoilt})
    with pytest.raises(NotFinite, match=r"Mixed_3b/Branch_0/Conv2d_0a_1x1/kernel \(1 of"):
        importing(catalog, path)
    assert importing(catalog, path, allow_nan=True).report.complete
    rest = {stored: value for stored, value in inception.items() if stored != name}
    with pytest.raises(IncompleteRestore, match=rf"1 missing: .*stored as {name}"):
        importing(catalog, write_slim(tmp_path / "less", rest))
