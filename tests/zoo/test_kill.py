"""kill -9 in the midst of a publish: a reader sees the old state or the new one, and a repeat does what is left."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import pytest

from tests.zoo.killed import Killable
from tests.zoo.samples import new_catalog, version
from zoo.atomic_file import TEMPORARY
from zoo.cache import blob_key
from zoo.catalog import Catalog
from zoo.gc import gc
from zoo.lookup import UnknownModel
from zoo.manifest import Manifest
from zoo.manifests import manifest_key
from zoo.store import open_store
from zoo.store.faulty import FaultPlan, FaultyStore
from zoo.verify import verify

Sample = tuple[Manifest, dict[str, Path]]
When = Literal["before", "after"]
TWO_DAYS_LATER = timedelta(days=2)


@pytest.fixture(scope="module")
def killable() -> Iterator[Killable]:
    process = Killable()
    yield process
    process.end()


@pytest.fixture(params=["first", "next"])
def earlier(request: pytest.FixtureRequest, tmp_path: Path) -> list[Sample]:
    """What the model has before the publish that is killed."""
    return [] if request.param == "first" else [version(tmp_path, head=1)]


def digests(catalog: Catalog, name: str) -> list[str]:
    try:
        return [found.digest for found in catalog.versions(name)]
    except UnknownModel:
        return []


def keys_of(manifest: Manifest) -> set[str]:
    parts = (*manifest.components, *manifest.assets)
    return {manifest_key(manifest.digest()), *(blob_key(part.digest) for part in parts)}


def check_after_kill(
    url: str, folder: Path, name: str, earlier: list[Sample], sample: Sample, others: Sequence[Sample] = ()
) -> bool:
    """Whether the killed publish had been committed. `others`: what the store has under other names."""
    manifest, files = sample
    old = [other.digest() for other, _ in earlier]
    new = [*old, manifest.digest()]
    catalog = new_catalog(open_store(url), folder)
    seen = digests(catalog, name)
    assert seen in (old, new)
    assert verify(catalog).problems == ()
    stored = {info.key for info in catalog.store.list("blobs/")}
    parts = (*manifest.components, *manifest.assets)
    missing = sum(part.bytes for part in parts if blob_key(part.digest) not in stored)
    published = catalog.publish(name, manifest, files)
    assert published.bytes_sent == missing
    assert published.existing == (seen == new)
    assert published.version.reference == f"{name}@{len(new)}"
    assert digests(new_catalog(open_store(url), folder / "other"), name) == new
    assert gc(catalog, now=datetime.now(UTC) + TWO_DAYS_LATER).problems == ()
    left = {info.key for prefix in ("blobs/", "manifests/") for info in catalog.store.list(prefix)}
    assert left == set().union(*(keys_of(other) for other, _ in [*earlier, sample, *others]))
    assert list(catalog.store.leftovers("")) == list(catalog.store.list("intents/")) == []
    report = verify(catalog)
    assert (report.problems, report.versions) == ((), len(new) + len(others))
    return seen == new


def prepared(url: str, folder: Path, name: str, earlier: list[Sample]) -> None:
    catalog = new_catalog(open_store(url), folder)
    for manifest, files in earlier:
        catalog.publish(name, manifest, files)


class TestLocal:
    def test_before_each_access_to_a_file(self, killable: Killable, tmp_path: Path, earlier: list[Sample]) -> None:
        sample, ends, unfinished = version(tmp_path, head=2), [], 0
        prepared((tmp_path / "base").as_uri(), tmp_path, "m", earlier)
        while True:
            store = tmp_path / f"store {len(ends)}"
            if earlier:
                shutil.copytree(tmp_path / "base", store)
            if not killable.publish(store.as_uri(), tmp_path, "m", *sample, file_access=len(ends) + 1):
                break
            unfinished += len(list(store.rglob(f"{TEMPORARY}*")))
            committed = killable.log_entries == (1 if earlier else 2)  # a new model's first entry says that it is made
            assert check_after_kill(store.as_uri(), tmp_path, "m", earlier, sample) == committed
            ends.append(committed)
            shutil.rmtree(store, ignore_errors=True)
        print(len(ends), "kills,", unfinished, "unfinished files,", sum(ends), "after the commit")
        assert len(ends) > 30
        assert {True, False} == set(ends)
        assert unfinished > 10

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_at_each_call(self, killable: Killable, tmp_path: Path, earlier: list[Sample], when: When) -> None:
        sample, ends = version(tmp_path, head=2), []
        prepared((tmp_path / "base").as_uri(), tmp_path, "m", earlier)
        while True:
            store = tmp_path / f"store {len(ends)}"
            if earlier:
                shutil.copytree(tmp_path / "base", store)
            if not killable.publish(store.as_uri(), tmp_path, "m", *sample, call=len(ends) + 1, when=when):
                break
            ends.append(check_after_kill(store.as_uri(), tmp_path, "m", earlier, sample))
        print(len(ends), "kills,", sum(ends), "after the commit")
        assert len(ends) > 12
        assert ends == sorted(ends)
        assert True in ends


def kill_on_server(
    killable: Killable, url: str, folder: Path, calls: Iterable[int], when: When, others: Sequence[Sample] = ()
) -> list[bool]:
    """Each in the publish of a model of its own, until one survives; whether each was committed."""
    ends: list[bool] = []
    others = [*others]
    for call in calls:
        name, earlier, sample = f"m{call}", [version(folder, head=2 * call)], version(folder, head=2 * call + 1)
        prepared(url, folder, name, earlier)
        if not killable.publish(url, folder, name, *sample, call=call, when=when):
            break
        ends.append(check_after_kill(url, folder, name, earlier, sample, others))
        others += [*earlier, sample]
    return ends


def test_on_a_server(killable: Killable, s3_url: str, tmp_path: Path) -> None:
    first, second = version(tmp_path, head=1), version(tmp_path, head=2)
    prepared(s3_url, tmp_path, "counted", [first])
    counting = FaultyStore(open_store(s3_url), FaultPlan.none())
    new_catalog(counting, tmp_path).publish("counted", *second)
    calls = sum(counting.calls.values())
    # Before the bytes are there, and around the commit; which call it is depends on what the process has looked up.
    ends = kill_on_server(killable, s3_url, tmp_path, (calls // 2, calls - 1, calls), "after", [first, second])
    assert len(ends) == 3, (calls, counting.calls, ends)
    assert ends == sorted(ends)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_on_a_server_at_each_call(killable: Killable, s3_url: str, tmp_path: Path, when: When) -> None:
    ends = kill_on_server(killable, s3_url, tmp_path, itertools.count(1), when)
    print(ends)
    assert len(ends) > 12
    assert True in ends
