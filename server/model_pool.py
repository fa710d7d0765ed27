"""The models that are loaded: one process each, started on first use, at most so many, ended when idle or surplus.

Takes a ModelVersion. Gives a stub of its process. Next: `server.model_process`.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from finetune.jobs.launcher import source_environment
from finetune.wire import message_limits
from protos.modelzoo.v1 import inference_pb2_grpc
from server.config import ServerConfig
from zoo.catalog import ModelVersion
from zoo.errors import Unavailable, from_dict

_LOAD_SECONDS = 300.0
_CHECK_EVERY = 5.0
_CHECK_SECONDS = 5.0
_MISSED_CHECKS = 3  # in a row: then it hangs, and is killed


class ModelProcessDied(Unavailable):
    """A model's process ended while it was loading or answering."""


@dataclass(kw_only=True)
class LoadedModel:
    """A running model process."""

    reference: str
    process: asyncio.subprocess.Process
    channel: grpc.aio.Channel
    stub: inference_pb2_grpc.InferenceStub
    health: health_pb2_grpc.HealthStub
    calls: int = 0
    used: float = field(default_factory=time.monotonic)
    missed: int = 0

    @property
    def alive(self) -> bool:
        return self.process.returncode is None

    async def end(self) -> None:
        """Lets it finish the calls that it has, then go."""
        await self.channel.close()
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            await asyncio.wait_for(self.process.wait(), timeout=15)
        except TimeoutError:
            self.process.kill()
            await self.process.wait()


class ModelPool:
    """Used by one event loop. Close it to end every process."""

    def __init__(self, store_url: str, config: ServerConfig) -> None:
        self._store_url = store_url
        self._config = config
        self._folder = Path(tempfile.mkdtemp(prefix="modelzoo-"))  # short: a socket's path has 107 bytes at most
        self._models: dict[str, LoadedModel] = {}  # by reference and digest, least recently used first
        self._loading: dict[str, asyncio.Lock] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._count = 0

    @asynccontextmanager
    async def use(self, version: ModelVersion) -> AsyncIterator[LoadedModel]:
        """The process of a version, loaded if need be; it isn't ended as idle meanwhile.

        Raises ModelProcessDied, and whatever loading raised.
        """
        model = await self._get(version)
        model.calls += 1
        try:
            yield model
        finally:
            model.calls -= 1
            model.used = time.monotonic()

    async def _get(self, version: ModelVersion) -> LoadedModel:
        key = f"{version.reference} {version.digest}"  # a deleted name may be used again for another model
        async with self._loading.setdefault(key, asyncio.Lock()):  # one loads, the others wait for it
            model = self._models.pop(key, None)
            if model is not None and not model.alive:
                self._end_later(model)
                model = None
            if model is None:
                self._make_room()
                model = await self._start(version)
            self._models[key] = model  # now the most recently used
            return model

    def discard(self, model: LoadedModel) -> None:
        """Its connection broke: the next caller gets a new process, even before this one is known to have ended."""
        for key, known in list(self._models.items()):
            if known is model:
                del self._models[key]
                if model.alive:
                    model.process.kill()
                self._end_later(model)

    def _make_room(self) -> None:
        while len(self._models) >= self._config.max_loaded_models:
            idle = [key for key, model in self._models.items() if model.calls == 0]
            key = (idle or list(self._models))[0]
            self._end_later(self._models.pop(key))

    def _end_later(self, model: LoadedModel) -> None:
        task = asyncio.create_task(model.end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _start(self, version: ModelVersion) -> LoadedModel:
        self._count += 1
        socket = self._folder / str(self._count)
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "server.model_process"),
            *("--store", self._store_url, "--reference", version.reference, "--socket", str(socket)),
            *("--parent", str(os.getpid()), "--max-message-bytes", str(self._config.max_message_bytes)),
            *("--max-pixels", str(self._config.max_pixels)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=source_environment(),
        )
        try:
            await _until_ready(process, version.reference)
        except BaseException:
            if process.returncode is None:
                process.kill()
            await process.wait()
            raise
        channel = grpc.aio.insecure_channel(f"unix:{socket}", options=message_limits(self._config.max_message_bytes))
        return LoadedModel(
            reference=version.reference,
            process=process,
            channel=channel,
            stub=inference_pb2_grpc.InferenceStub(channel),
            health=health_pb2_grpc.HealthStub(channel),
        )

    async def watch(self) -> None:
        """Runs until cancelled: ends what is idle or has died, kills what doesn't answer."""
        while True:
            await asyncio.sleep(_CHECK_EVERY)
            for key, model in list(self._models.items()):
                await self._check(model)
                idle = model.calls == 0 and time.monotonic() - model.used > self._config.unload_idle_seconds
                if (idle or not model.alive) and self._models.get(key) is model:
                    del self._models[key]
                    self._end_later(model)

    async def _check(self, model: LoadedModel) -> None:
        try:
            await model.health.Check(health_pb2.HealthCheckRequest(), timeout=_CHECK_SECONDS)
        except grpc.aio.AioRpcError as error:
            model.missed += 1
            if model.missed >= _MISSED_CHECKS and model.alive:
                print(f"{model.reference} doesn't answer ({error.code().name}): killed", file=sys.stderr, flush=True)
                model.process.kill()
        else:
            model.missed = 0

    async def close(self) -> None:
        for model in self._models.values():
            self._end_later(model)
        self._models.clear()
        await asyncio.gather(*self._ending)
        shutil.rmtree(self._folder, ignore_errors=True)


async def _until_ready(process: asyncio.subprocess.Process, reference: str) -> None:
    """Raises ModelProcessDied, or what the process says went wrong."""
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), timeout=_LOAD_SECONDS)
    except TimeoutError:
        raise ModelProcessDied(f"{reference} was not loaded within {_LOAD_SECONDS:.0f} s") from None
    if not line:
        code = await process.wait()
        raise ModelProcessDied(
            f"the process of {reference} ended with {code} while it was loading; see the server's log"
        )
    said = json.loads(line)
    if "error" in said:
        raise from_dict(said["error"])
