"""From an export to a version: what is added, what is said of it, and that it happens once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.jobs.folder import JobFolder
from finetune.models.heads.head import Assets
from finetune.spec import JobSpec
from finetune.training.publish import (
    DamagedExport,
    Initial,
    NotExported,
    RunFacts,
    export_child,
    finish,
    publish_export,
    tensor_digests,
)
from tests.tiny import tiny_backbone_version, tiny_tensors
from tests.zoo.samples import FailingStore
from zoo.cache import BlobCache
from zoo.catalog import Catalog, ModelVersion
from zoo.lineage import family
from zoo.manifest import Head
from zoo.search.index import CatalogIndex
from zoo.store.memory import MemoryStore
from zoo.tensors import read_safetensors

WEIGHTS = {
    "output/kernel": np.arange(6, dtype=np.float32).reshape(2, 3),
    "output/bias": np.zeros(3, np.float32),
}
FIRST = {**WEIGHTS, "output/kernel": np.zeros((2, 3), np.float32)}
ASSETS = Assets(files={"vocabulary.json": b'{"words":[]}'}, vocabulary_size=3, tokenizer="words@1")


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(MemoryStore("test"), BlobCache(tmp_path / "cache"))


@pytest.fixture
def parent(catalog: Catalog) -> ModelVersion:
    return tiny_backbone_version(catalog)


def job(root: Path, name: str = "j1") -> JobFolder:
    spec = JobSpec.parse(
        {"name": "child", "backbone": "tiny", "head": {"kind": "captioner"}, "data": {"location": "scenes:"}}
    )
    return JobFolder.create(root, job=name, spec=spec, store_url="memory://test")


def export(
    folder: JobFolder, catalog: Catalog, parent: ModelVersion, *, start: str | None = None, backbone: Any = None
) -> None:
    export_child(
        folder=folder,
        request=folder.request(),
        catalog=catalog,
        parent=parent,
        assets=ASSETS,
        head=Head(kind="captioner", arguments={"units": 2}),
        weights=WEIGHTS,
        backbone_weights=backbone,
        initial=Initial(start=start, digests=tensor_digests(FIRST), report={"restored": ["backbone/x"]}),
        facts=RunFacts(
            steps=60,
            best_step=40,
            stopped_early=True,
            seconds=1.5,
            metrics={"train": {"loss": 1.0}, "validation": {"loss": 2.0, "cider": 0.5}},
            num_examples={"train": 8},
        ),
    )


def test_the_child_adds_its_head_and_json_only(tmp_path: Path, catalog: Catalog, parent: ModelVersion) -> None:
    folder = job(tmp_path / "j1")
    export(folder, catalog, parent)
    result = finish(catalog, folder)
    version = catalog.get("child")
    head = version.manifest.component("head")
    assert head is not None
    assert version.manifest.component("backbone") == parent.manifest.component("backbone")
    assert result["bytes_published"] == head.bytes + len(ASSETS.files["vocabulary.json"])
    stored = read_safetensors(catalog.open_component(version, "head"))
    np.testing.assert_array_equal(stored["output/kernel"], WEIGHTS["output/kernel"])
    assert catalog.open_asset(version, "vocabulary.json").read_bytes() == ASSETS.files["vocabulary.json"]
    assert version.manifest.input_spec == parent.manifest.input_spec


def test_lineage_says_where_every_tensor_comes_from(tmp_path: Path, catalog: Catalog, parent: ModelVersion) -> None:
    folder = job(tmp_path / "j1")
    export(folder, catalog, parent)
    finish(catalog, folder)
    lineage = catalog.get("child").manifest.lineage
    assert (lineage.parent, lineage.parent_digest, lineage.job) == ("tiny@1", parent.digest, "j1")
    expected = {f"backbone/{name}": "frozen" for name in tiny_tensors()}
    assert lineage.tensors == expected | {"head/output/kernel": "trained", "head/output/bias": "fresh"}
    with CatalogIndex.open(catalog) as index:
        assert [node.version.name for node in family(catalog, index, "tiny").descendants] == ["child"]


def test_a_head_tensor_that_stayed_as_it_was_restored_says_so(
    tmp_path: Path, catalog: Catalog, parent: ModelVersion
) -> None:
    folder = job(tmp_path / "j1")
    export(folder, catalog, parent, start="other@2")
    finish(catalog, folder)
    assert catalog.get("child").manifest.lineage.tensors["head/output/bias"] == "restored"


def test_lineage_says_how_far_each_trained_tensor_moved(
    tmp_path: Path, catalog: Catalog, parent: ModelVersion, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the parent's backbone, and from the head that training began with where there was one."""
    export(job(tmp_path / "first"), catalog, parent)
    finish(catalog, JobFolder(tmp_path / "first"))
    assert catalog.get("child").manifest.lineage.moved == {}
    assert "moved" not in catalog.get("child").manifest.model_dump(mode="json")["lineage"]

    before = tiny_tensors()
    trained = {
        "top/kernel": before["top/kernel"] * np.float32(1.25),
        "top/beta": before["top/beta"],  # behind the cut, and not moved by a bit
        "top/moving_mean": before["top/moving_mean"] + np.float32(1.0),
    }
    export(job(tmp_path / "second", "j2"), catalog, parent, start="child@1", backbone=trained)
    finish(catalog, JobFolder(tmp_path / "second"))
    lineage = catalog.get("child").manifest.lineage
    mean = before["top/moving_mean"].astype(np.float64)
    assert lineage.moved == pytest.approx(
        {
            "backbone/top/kernel": 0.25,
            "backbone/top/moving_mean": np.sqrt(mean.size) / np.linalg.norm(mean),
        },
        rel=1e-5,
    )
    assert {name for name, fate in lineage.tensors.items() if fate == "trained"} == {
        *lineage.moved,
        "head/output/kernel",
    }

    export(job(tmp_path / "third", "j3"), catalog, parent, start="gone@1")
    assert "how far the head moved is not known" in capsys.readouterr().err


def test_the_result_is_what_the_command_promises(tmp_path: Path, catalog: Catalog, parent: ModelVersion) -> None:
    folder = job(tmp_path / "j1")
    export(folder, catalog, parent)
    result = finish(catalog, folder)
    version = catalog.get("child")
    promised = {"reference", "digest", "job", "steps", "seconds", "metrics", "restore_report", "bytes_published"}
    assert promised <= set(result)
    assert (result["reference"], result["digest"], result["job"]) == ("child@1", version.digest, "j1")
    assert result["metrics"] == {"train": {"loss": 1.0}, "validation": {"loss": 2.0, "cider": 0.5}}
    assert folder.read_result() == result
    assert version.manifest.vocabulary is not None
    assert version.manifest.vocabulary.size == 3
    assert version.manifest.spec == folder.request().spec.to_json()
    assert {"tensorflow", "keras", "modelzoo"} <= set(version.manifest.tools)


@pytest.mark.parametrize("again", [False, True])
def test_a_job_publishes_at_most_once(tmp_path: Path, catalog: Catalog, parent: ModelVersion, again: bool) -> None:
    """Also when a supervisor died between publishing and writing result.json, and whatever was published since."""
    folder = job(tmp_path / "j1")
    export(folder, catalog, parent)
    first = publish_export(catalog, folder, again=again)
    other = job(tmp_path / "j2", "j2")
    export(other, catalog, parent)
    assert finish(catalog, other)["reference"] == "child@2"
    second = publish_export(catalog, folder, again=again)
    assert (first.existing, second.existing, second.version.reference) == (False, True, "child@1")
    assert finish(catalog, folder)["reference"] == "child@1"
    assert [version.number for version in catalog.versions("child")] == [1, 2]


@pytest.mark.parametrize("again", [False, True])
def test_two_supervisors_of_one_job_publish_it_once(
    tmp_path: Path, catalog: Catalog, parent: ModelVersion, again: bool
) -> None:
    """The second has claimed the job, and publishes between the first one's look and its commit."""
    folder = job(tmp_path / "j1")
    export(folder, catalog, parent)
    results: list[str] = []

    def meanwhile(number: int, name: str, key: str, before: bool) -> None:
        if before and name == "create" and key.startswith("models/child/log/") and not results:
            results.append(publish_export(catalog, folder, again=again).version.reference)
            other = job(tmp_path / "j2", "j2")
            export(other, catalog, parent)
            results.append(publish_export(catalog, other).version.reference)

    stalled = Catalog(FailingStore(catalog.store, meanwhile), BlobCache(tmp_path / "other"))
    assert finish(stalled, folder, again=again)["reference"] == "child@1"
    assert results == ["child@1", "child@2"]
    assert catalog.references("child") == results


def test_nothing_is_published_before_the_export_is_complete(
    tmp_path: Path, catalog: Catalog, parent: ModelVersion
) -> None:
    folder = job(tmp_path / "j1")
    with pytest.raises(NotExported):
        finish(catalog, folder)
    export(folder, catalog, parent)
    manifest = folder.export / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b'"cider":0.5', b'"cider":0.9'))
    with pytest.raises(DamagedExport):
        finish(catalog, folder)
    assert [version.name for version in catalog.list()] == ["tiny"]
    assert not folder.result_path.exists()


def test_publishing_needs_no_tensorflow(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = "import sys, finetune.training.publish; print('tensorflow' in sys.modules or 'keras' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.stdout.strip() == "False", done.stderr


def test_equal_exports_have_equal_bytes(tmp_path: Path, catalog: Catalog, parent: ModelVersion) -> None:
    files: list[dict[str, Any]] = []
    for _ in range(2):
        folder = job(tmp_path / "j1")
        export(folder, catalog, parent)
        files.append({path.name: path.read_bytes() for path in folder.export.iterdir()})
    assert files[0] == files[1]
