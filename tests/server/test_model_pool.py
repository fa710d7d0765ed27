from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from protos.modelzoo.v1 import inference_pb2
from server import model_pool
from server.config import ServerConfig
from server.model_pool import ModelPool
from tests.tiny import tiny_backbone_version
from zoo.catalog import open_catalog
from zoo.errors import DataLoss


def test_models_are_loaded_once_and_make_room_for_each_other(
    tmp_path: Path, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pool through its life: two callers share a load, a second model takes the room, an idle one goes."""
    monkeypatch.setattr(model_pool, "_CHECK_EVERY", 0.1)
    store_url = f"file://{tmp_path}/store"
    catalog = open_catalog(store_url)
    first, second = (tiny_backbone_version(catalog, name, seed=seed) for seed, name in enumerate(("first", "second")))
    config = ServerConfig(max_loaded_models=1, unload_idle_seconds=1.0)

    async def embedding(pool: ModelPool, version: object) -> tuple[list[float], int]:
        async with pool.use(version) as model:  # type: ignore[arg-type]
            answer = await model.stub.Embed(inference_pb2.EmbedRequest(images=[png]))
            return list(answer.results[0].values), model.process.pid

    async def life() -> None:
        pool = ModelPool(store_url, config)
        (one, one_pid), (same, same_pid) = await asyncio.gather(embedding(pool, first), embedding(pool, first))
        assert (one, one_pid) == (same, same_pid)
        two, two_pid = await embedding(pool, second)
        assert (two != one, two_pid != one_pid) == (True, True)
        await gone(one_pid)
        watcher = asyncio.create_task(pool.watch())
        await gone(two_pid)  # idle for a second
        watcher.cancel()
        await pool.close()

    asyncio.run(life())


def test_a_model_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    store_url = f"file://{tmp_path}/store"
    catalog = open_catalog(store_url)
    version = tiny_backbone_version(catalog)
    blob = catalog.open_component(version, "backbone")
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes()[:-1])

    async def load() -> None:
        pool = ModelPool(store_url, ServerConfig())
        try:
            async with pool.use(version):
                pass
        finally:
            await pool.close()

    with pytest.raises(DataLoss, match="tiny"):
        asyncio.run(load())


async def gone(pid: int) -> None:
    async with asyncio.timeout(30):
        while psutil.pid_exists(pid):
            await asyncio.sleep(0.05)
