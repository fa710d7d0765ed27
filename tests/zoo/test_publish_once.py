"""A job publishes at most once, also when two processes do it at the same time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Lock

import pytest

from tests.zoo.samples import FailingStore, new_catalog, version
from zoo.catalog import Catalog, Published
from zoo.manifest import Lineage, Manifest
from zoo.manifests import DamagedManifest, manifest_key
from zoo.store.memory import MemoryStore
from zoo.version_of_job import VersionOfJob


def of_job(folder: Path, job: str | None, *, head: int = 1) -> tuple[Manifest, dict[str, Path]]:
    return version(folder, head=head, lineage=Lineage(job=job))


def rivals(
    tmp_path: Path, at: Callable[[str, str], bool], rival: Callable[[Catalog], Published]
) -> tuple[Catalog, list[Published]]:
    """A catalogue in whose way a rival publishes, just before the first of its calls for which `at` says so.

    Blobs are sent by several threads: the first to come lets the rival publish, and the others wait for it."""
    store, published, one_at_a_time = MemoryStore(), list[Published](), Lock()

    def fail(number: int, name: str, key: str, before: bool) -> None:
        if before and at(name, key):
            with one_at_a_time:
                if not published:
                    published.append(rival(new_catalog(store, tmp_path / "rival")))

    return new_catalog(FailingStore(store, fail), tmp_path), published


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("seq", [1, 2])
def test_two_publishers_of_one_job(tmp_path: Path, again: bool, seq: int) -> None:
    """The second has looked before the first commits, and meets it at its own commit (2), or at the model's (1)."""
    manifest, files = of_job(tmp_path, "j1")
    other, other_files = of_job(tmp_path, "j1", head=2)  # the same job, resumed, came to another head
    catalog, first = rivals(
        tmp_path,
        lambda name, key: name == "create" and key.endswith(f"log/{seq:020}.json"),
        lambda c: c.publish("m", manifest, files, again=again, once_a_job=True),
    )
    second = catalog.publish("m", other, other_files, again=again, once_a_job=True)
    assert [(p.version.reference, p.existing) for p in (*first, second)] == [("m@1", False), ("m@1", True)]
    assert second.version.manifest == manifest
    assert catalog.references("m") == ["m@1"]


def test_one_that_has_gone_on_since_is_found(tmp_path: Path) -> None:
    """The rival publishes the job, and somebody else another version, while this one sends its blobs."""
    manifest, files = of_job(tmp_path, "j1")

    def twice(catalog: Catalog) -> Published:
        catalog.publish("m", *of_job(tmp_path, "j0", head=3), once_a_job=True)
        catalog.publish("m", manifest, files, once_a_job=True)
        return catalog.publish("m", *of_job(tmp_path, "j2", head=2), once_a_job=True)

    catalog, _ = rivals(tmp_path, lambda name, key: name == "create_from_file", twice)
    published = catalog.publish("m", manifest, files, again=True, once_a_job=True)
    assert (published.version.reference, published.existing) == ("m@2", True)
    assert catalog.references("m") == ["m@1", "m@2", "m@3"]
    before = catalog.publish("m", manifest, files, again=True, once_a_job=True)
    assert (before.version.reference, before.existing, before.bytes_sent) == ("m@2", True, 0)


def test_other_jobs_and_none_are_not_held_up(tmp_path: Path) -> None:
    catalog = new_catalog(MemoryStore(), tmp_path)
    for job in ("j1", "j2", None, None):
        catalog.publish("m", *of_job(tmp_path, job), again=True, once_a_job=True)
    catalog.publish("n", *of_job(tmp_path, "j1"), once_a_job=True)  # of another name
    assert catalog.references("m") == ["m@1", "m@2", "m@3", "m@4"]
    assert catalog.references("n") == ["n@1"]


def test_a_user_may_publish_it_again(tmp_path: Path) -> None:
    """`zoo push --again`, or an old version pushed on top of a newer one."""
    catalog = new_catalog(MemoryStore(), tmp_path)
    catalog.publish("m", *of_job(tmp_path, "j1"))
    assert not catalog.publish("m", *of_job(tmp_path, "j1"), again=True).existing
    assert catalog.references("m") == ["m@1", "m@2"]


def test_what_cannot_be_read_may_be_that_version(tmp_path: Path) -> None:
    store = MemoryStore()
    catalog = new_catalog(store, tmp_path)
    first = catalog.publish("m", *of_job(tmp_path, "j1")).version
    store.delete(manifest_key(first.digest))
    with pytest.raises(DamagedManifest):
        new_catalog(store, tmp_path / "other").publish("m", *of_job(tmp_path, "j2", head=2), once_a_job=True)
    assert catalog.references("m") == ["m@1"]


def test_each_manifest_is_read_once(tmp_path: Path) -> None:
    catalog = new_catalog(MemoryStore(), tmp_path)
    seen: list[str] = []

    def read(digest: str, what: str) -> Manifest:
        seen.append(what)
        return catalog.manifest(digest, what)

    found = VersionOfJob(read, "j3")
    for head, job in enumerate(("j1", "j2", "j3", "j4"), start=1):
        catalog.publish("m", *of_job(tmp_path, job, head=head))
        assert found.is_in(catalog.logs.state("m")) is (head >= 3)
    assert seen == ["m@1", "m@2", "m@3"]
    assert found.entry is not None
    assert found.entry.number == 3
