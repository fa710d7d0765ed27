"""The files by which a job's processes talk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune.jobs.folder import (
    AnotherJob,
    AnotherSpec,
    DamagedJobFile,
    JobFolder,
    NotAJobFolder,
    read_json,
    spec_differences,
    write_json,
)
from finetune.spec import DebugConfig, JobSpec
from finetune.training.checkpoints import spec_digest

SPEC = JobSpec.parse(
    {
        "name": "a",
        "backbone": "b",
        "head": {"kind": "captioner"},
        "data": {"location": "scenes:"},
        "train": {"steps": 9},
    }
)


def test_the_request_comes_back(tmp_path: Path) -> None:
    folder = JobFolder.create(tmp_path / "jobs" / "j1", job="j1", spec=SPEC, store_url="file:///s")
    request = JobFolder(folder.root).request()
    assert (request.job, request.spec, request.store_url) == ("j1", SPEC, "file:///s")


def test_the_same_spec_finds_its_folder_again_and_another_is_refused_with_the_difference(tmp_path: Path) -> None:
    JobFolder.create(tmp_path, job="j1", spec=SPEC, store_url="file:///s")
    before = (tmp_path / "spec.json").read_bytes()
    assert JobFolder.create(tmp_path, job="j1", spec=SPEC, store_url="file:///t").request().store_url == "file:///s"
    with pytest.raises(AnotherJob, match="belongs to job j1, and job j2 can't share it"):
        JobFolder.create(tmp_path, job="j2", spec=SPEC, store_url="file:///s")
    other = SPEC.model_copy(update={"train": SPEC.train.model_copy(update={"steps": 10})})
    with pytest.raises(AnotherSpec, match=r"train\.steps: 9 → 10"):
        JobFolder.create(tmp_path, job="j2", spec=other, store_url="file:///s")
    assert (tmp_path / "spec.json").read_bytes() == before


def test_differences_reach_into_arguments_that_only_one_has() -> None:
    changed = SPEC.model_copy(update={"head": SPEC.head.model_copy(update={"arguments": {"units": 7}})})
    assert spec_differences(SPEC, changed) == ["head.arguments.units: (unset) → 7"]
    assert spec_differences(SPEC, SPEC) == []


def test_a_folder_without_a_spec_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotAJobFolder, match=str(tmp_path)):
        JobFolder(tmp_path).request()
    for text in ('{"job": "j1"', "[]", '{"job": "j1"}'):
        (tmp_path / "spec.json").write_text(text)
        with pytest.raises(DamagedJobFile, match=r"spec\.json"):
            JobFolder(tmp_path).request()


def test_json_that_is_written_is_json(tmp_path: Path) -> None:
    """NaN is no JSON: readers in other languages would fail on it."""
    path = tmp_path / "new" / "a.json"
    write_json(path, {"loss": float("nan"), "list": [float("inf"), 1.5], "deep": {"x": float("-inf")}, "text": "é"})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    value = json.loads(path.read_text(), parse_constant=refuse)
    assert value == {"loss": None, "list": [None, 1.5], "deep": {"x": None}, "text": "é"}
    assert [entry.name for entry in path.parent.iterdir()] == ["a.json"]


def test_what_is_not_there_is_none(tmp_path: Path) -> None:
    assert read_json(tmp_path / "nothing.json") is None
    folder = JobFolder(tmp_path)
    assert folder.read_progress() is None
    assert folder.read_error() is None
    assert folder.read_result() is None


def test_other_ways_to_look_are_no_other_job(tmp_path: Path) -> None:
    JobFolder.create(tmp_path, job="j1", spec=SPEC, store_url="file:///s")
    looking = SPEC.model_copy(update={"debug": DebugConfig(print=("logits",), print_every=5)})
    assert JobFolder.create(tmp_path, job="j1", spec=looking, store_url="file:///s").request().spec == looking
    assert spec_differences(SPEC, looking) == []
    assert spec_digest(SPEC) == spec_digest(looking)
