"""Features shared through a store: no machine computes what another has, and none depends on the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune.data.feature_shards import ShardFolder
from finetune.data.feature_store import FeatureStore, shared_features
from finetune.data.features import FeatureArray, FeatureCache
from tests.finetune.data.test_features import DIM, LIMIT, SCENES, MeanBackbone
from zoo.feature_sets import feature_sets
from zoo.store import open_store
from zoo.store.faulty import FaultPlan, FaultyStore
from zoo.store.memory import MemoryStore
from zoo.store.object_store import ObjectStore


def fill(root: Path, store: ObjectStore, backbone: Any, indices: Any = range(11), **more: Any) -> FeatureArray:
    cache = FeatureCache(root, shared=FeatureStore(store))
    options = {"indices": indices, "max_pixels": LIMIT, "batch_size": 4} | more
    return cache.open_or_fill(backbone=backbone, source=SCENES, **options)


def objects(store: ObjectStore) -> list[str]:
    return [info.key for info in store.list("features/")]


def test_a_second_machine_with_an_empty_cache_computes_nothing(tmp_path: Path) -> None:
    store = MemoryStore()
    first = fill(tmp_path / "a", store, MeanBackbone(), views=2)
    assert (first.computed, first.fetched) == (22, 0)
    second_backbone = MeanBackbone()
    second = fill(tmp_path / "b", store, second_backbone, views=2)
    assert second_backbone.passes == []
    assert (second.computed, second.fetched) == (0, 22)
    assert second.features.tobytes() == first.features.tobytes()
    assert [entry.vectors for entry in FeatureCache(tmp_path / "b").list()] == [11, 11]
    assert [entry.key for entry in FeatureCache(tmp_path / "b").list()] == [
        entry.key for entry in FeatureCache(tmp_path / "a").list()
    ]


def test_only_what_is_lacking_is_computed_and_told_to_the_others(tmp_path: Path) -> None:
    store = MemoryStore()
    fill(tmp_path / "a", store, MeanBackbone(), indices=range(8))
    second = fill(tmp_path / "b", store, MeanBackbone())
    assert (second.computed, second.fetched) == (3, 8)
    third = fill(tmp_path / "c", store, MeanBackbone())
    assert (third.computed, third.fetched) == (0, 11)


def test_equal_bytes_are_one_object_and_a_full_cache_asks_nothing(tmp_path: Path) -> None:
    store = MemoryStore()
    fill(tmp_path / "a", store, MeanBackbone())
    before = objects(store)
    fill(tmp_path / "b", MemoryStore(), MeanBackbone())
    [folder] = (tmp_path / "b").glob("[!.]*")
    FeatureStore(store).send(ShardFolder(folder, dim=DIM, key={}))
    assert objects(store) == before
    counting = FaultyStore(store, FaultPlan())
    made = fill(tmp_path / "b", counting, MeanBackbone())
    assert (made.computed, made.fetched, dict(counting.calls)) == (0, 0, {})


def test_shards_of_earlier_versions_are_shared_under_the_name_of_their_bytes(tmp_path: Path) -> None:
    store = MemoryStore()
    fill(tmp_path / "a", MemoryStore(), MeanBackbone(), indices=range(8))
    [shard] = (tmp_path / "a").glob("*/*.npy")
    shard.rename(shard.with_name("0123456789abcdef.npy"))
    fill(tmp_path / "a", store, MeanBackbone())
    assert f"{shard.parent.name}/{shard.name}" in "\n".join(objects(store))
    assert len(list((tmp_path / "a").glob("*/*.npy"))) == 2
    assert fill(tmp_path / "b", store, MeanBackbone()).computed == 0


def test_who_fetches_says_so_once_a_day(tmp_path: Path) -> None:
    store = MemoryStore()
    fill(tmp_path / "a", store, MeanBackbone())
    [one] = feature_sets(store)
    fill(tmp_path / "b", store, MeanBackbone())
    assert f"features/{one.name}/used.json" not in objects(store)  # its vectors came today
    for info in one.objects:
        store._objects[info.key] = (store._objects[info.key][0], info.modified - 3 * 24 * 3600)
    fill(tmp_path / "c", store, MeanBackbone())
    assert f"features/{one.name}/used.json" in objects(store)
    [used] = feature_sets(store)
    assert used.last_use > one.last_use
    assert fill(tmp_path / "d", store, MeanBackbone()).computed == 0
    before = store.stat(f"features/{one.name}/used.json").modified
    fill(tmp_path / "e", store, MeanBackbone())
    assert store.stat(f"features/{one.name}/used.json").modified == before


def test_who_may_not_write_still_fetches(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    inner = MemoryStore()
    fill(tmp_path / "a", inner, MeanBackbone())
    for info in list(inner.list("features/")):
        inner._objects[info.key] = (inner._objects[info.key][0], info.modified - 3 * 24 * 3600)
    store = FaultyStore(inner, FaultPlan(unavailable=1, methods=frozenset({"put"})))
    assert fill(tmp_path / "b", store, MeanBackbone()).computed == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("method", ["list", "download", "create_from_file"])
def test_a_store_that_does_not_answer_costs_only_the_passes(
    tmp_path: Path, method: str, capfd: pytest.CaptureFixture[str]
) -> None:
    inner = MemoryStore()
    fill(tmp_path / "a", inner, MeanBackbone(), indices=range(4))
    store = FaultyStore(inner, FaultPlan(unavailable=1, methods=frozenset({method})))
    made = fill(tmp_path / "b", store, MeanBackbone())
    assert made.computed == (7 if method == "create_from_file" else 11)
    assert made.valid.all()
    said = capfd.readouterr().err
    assert said.count("features are not shared") == 1
    assert "cannot be reached" in said


def test_damaged_objects_are_left_alone_and_told_of(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    store = MemoryStore()
    fill(tmp_path / "a", store, MeanBackbone())
    [key] = [key for key in objects(store) if key.endswith(".npy")]
    data = bytearray(store.read(key))
    data[-1] ^= 1
    store.put(key, bytes(data))
    store.put(key.replace(".npy", ".txt"), b"a stranger's")
    made = fill(tmp_path / "b", store, MeanBackbone())
    assert (made.computed, made.fetched) == (11, 0)
    assert "isn't what it was" in capfd.readouterr().err


def test_who_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shared_features(open_store(f"file://{tmp_path}")) is None
    assert shared_features(MemoryStore()) is not None
    monkeypatch.setenv("MODELZOO_SHARE_FEATURES", "off")
    assert shared_features(MemoryStore()) is None
