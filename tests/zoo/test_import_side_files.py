"""Class names and input specs that come with a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.zoo.foreign import foreign_tensors, with_torch_head
from zoo.cache import BlobCache
from zoo.catalog import Catalog
from zoo.class_names import InvalidClassNames, MissingClassNames
from zoo.importer import (
    ImportResult,
    InvalidInputSpec,
    MissingInputSpec,
    import_checkpoint,
)
from zoo.input_spec import InputSpec
from zoo.store.memory import MemoryStore
from zoo.tensors import write_safetensors


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(MemoryStore(f"importer-{tmp_path.name}"), BlobCache(tmp_path / "cache"))


@pytest.fixture(scope="module")
def lite() -> dict[str, np.ndarray]:
    """EfficientNet-Lite0 under efficientnet_lite_pytorch's names, with an output layer of 6 classes."""
    return with_torch_head(foreign_tensors("efficientnet_lite0", "torch"), classes=6)


@pytest.fixture
def run(catalog: Catalog, tmp_path: Path) -> Callable[..., ImportResult]:
    """Writes a safetensors file and imports it."""

    def import_(tensors: dict[str, np.ndarray], **options: Any) -> ImportResult:
        path = tmp_path / "model.safetensors"
        write_safetensors(path, tensors)
        return import_checkpoint(catalog, kind="safetensors", source=path, name="m", **options)

    return import_


CLASSES = ["cat", "dog", "a\u2028b", "owl", "fox", "elk"]


@pytest.mark.parametrize("text", [json.dumps(CLASSES), "\n".join(CLASSES), "\r\n".join(CLASSES) + "\r\n"])
@pytest.mark.parametrize(("skipped", "offset"), [(0, 0), (1, 1)])
def test_class_names_and_the_background_class(
    text: str, skipped: int, offset: int, run: Callable[..., ImportResult], lite: dict[str, np.ndarray], tmp_path: Path
) -> None:
    names = tmp_path / "names.txt"
    names.write_bytes(_without_last(text) if skipped else text.encode())
    manifest = run(lite, classes=names).manifest
    assert manifest.classes == tuple(CLASSES[: 6 - skipped])
    assert manifest.class_offset == offset


def _without_last(text: str) -> bytes:
    if text.startswith("["):
        return json.dumps(CLASSES[:5]).encode()
    separator = "\r\n" if "\r\n" in text else "\n"
    return separator.join(CLASSES[:5]).encode()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"a\nb\nc\nd\n", "names 4 classes, the classifier has 6 outputs"),
        (b"a\nb\nc\nd\ne\nf\ng", "names 7 classes, the classifier has 6 outputs"),
        (b"a\nb\nc\nb\ne\nf\n", "'b' is named twice, in entries 2 and 4"),
        (b"a\nb\n\nd\ne\nf\n", "entry 3 of 6 is blank"),
        (b"", "names no classes"),
        (b'{"0": "a"}', "list of strings"),
        (b"[1, 2]", "list of strings"),
        (b'["a", ', "isn't"),
        (b"\xff\xfe\x00", "UTF-8"),
    ],
)
def test_class_files_that_do_not_fit(
    content: bytes, match: str, run: Callable[..., ImportResult], lite: dict[str, np.ndarray], tmp_path: Path
) -> None:
    names = tmp_path / "names.txt"
    names.write_bytes(content)
    with pytest.raises(InvalidClassNames, match=match):
        run(lite, classes=names)


def test_class_names_without_a_head_or_a_file(run: Callable[..., ImportResult], tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    with pytest.raises(MissingClassNames):
        run(foreign_tensors("efficientnet_lite0", "torch"), classes=names)
    names.write_text("a\nb\n")
    with pytest.raises(InvalidClassNames, match="no classifier"):
        run(foreign_tensors("efficientnet_lite0", "torch"), classes=names)


def test_the_input_spec_is_the_file_s_or_the_usual_one(
    run: Callable[..., ImportResult], lite: dict[str, np.ndarray], tmp_path: Path
) -> None:
    usual = run(lite).manifest.input_spec
    assert (usual.height, usual.width, usual.mean) == (224, 224, (0.485, 0.456, 0.406))
    other = tmp_path / "spec.json"
    other.write_text(InputSpec(height=100, width=120).model_dump_json())
    assert run(lite, input_spec=other).manifest.input_spec == InputSpec(height=100, width=120)


def test_a_spec_beside_the_checkpoint_is_not_used_but_noted(
    run: Callable[..., ImportResult], lite: dict[str, np.ndarray], tmp_path: Path
) -> None:
    beside = tmp_path / "input_spec.json"
    beside.write_text(InputSpec(height=100, width=120).model_dump_json())
    (tmp_path / "classes.json").write_text("[]")
    result = run(lite)
    assert result.manifest.input_spec.height == 224
    assert result.manifest.classes is None
    notes = " ".join(result.notes)
    assert "height 100 there, 224 used" in notes
    assert "--input-spec" in notes
    assert "--classes" in notes
    beside.write_text(result.manifest.input_spec.model_dump_json())
    assert not any("input_spec" in note for note in run(lite).notes)


def test_input_spec_files_that_are_none(
    run: Callable[..., ImportResult], lite: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "spec.json"
    with pytest.raises(MissingInputSpec):
        run(lite, input_spec=path)
    path.write_text('{"height": 10, "widht": 10}')
    with pytest.raises(InvalidInputSpec, match=r"width: .*widht: "):
        run(lite, input_spec=path)
