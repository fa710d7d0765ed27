"""A catalogue with a tiny backbone, a captioner, and classifiers with and without a background class."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.finetune.test_predictor import publish_head
from tests.tiny import tiny_backbone_version
from zoo.catalog import Catalog, open_catalog


@pytest.fixture(scope="package")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Catalog:
    folder = tmp_path_factory.mktemp("export")
    catalog = open_catalog(f"file://{folder}/store")
    parent = tiny_backbone_version(catalog)
    publish_head(catalog, parent, "captioner", "cap", folder)
    _, reference = publish_head(catalog, parent, "classifier", "cls", folder)
    manifest = catalog.get(reference).manifest  # the same layers, their first output being no class
    offset = manifest.model_copy(update={"classes": ("cat",), "class_offset": 1, "license": "MIT"})
    catalog.publish("offset", offset, {})
    return catalog


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "exports" / "here"
