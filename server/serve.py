"""`zoo serve`: the front process. grpc.aio, one event loop, never TensorFlow.

Takes an address, a store and a configuration. Gives the services Catalog, FineTune and Inference, health and
reflection. Next: the servicers.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from finetune.jobs.queue import JobQueue
from finetune.token_file import ensure_token, token_path
from finetune.wire import SERVER_OPTIONS, message_limits
from protos.modelzoo.v1 import (
    catalog_pb2,
    catalog_pb2_grpc,
    finetune_pb2,
    finetune_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
)
from server.catalog_servicer import CatalogServicer
from server.config import ServerConfig
from server.evaluations import Evaluations
from server.finetune_servicer import FineTuneServicer
from server.inference_servicer import InferenceServicer
from server.interceptor import Interceptor
from server.model_pool import ModelPool
from server.scheduler import Scheduler
from zoo.catalog import open_catalog
from zoo.errors import InvalidArgument, Unavailable
from zoo.search.index import CatalogIndex
from zoo.store.object_store import ObjectStore

SERVICES = tuple(
    file.DESCRIPTOR.services_by_name[name].full_name
    for file, name in ((catalog_pb2, "Catalog"), (finetune_pb2, "FineTune"), (inference_pb2, "Inference"))
)
_THREADS = 16  # for blocking calls to disk and database
_STOP_GRACE = 10.0


class InvalidAddress(InvalidArgument):
    """Not HOST:PORT."""


class AddressTaken(Unavailable):
    """The address cannot be listened on."""


def serve(*, address: str, store_url: str, config: Path | None = None) -> None:
    """Serves until SIGTERM or SIGINT; jobs that run go on without it.

    When ready it prints one JSON line on stdout: address, health_address, token_file. Port 0 picks a free one.
    Raises InvalidConfig, InvalidAddress, AddressTaken, InvalidStoreUrl, QueueUnavailable, and what a store says that
    doesn't let us in.
    """
    settings = ServerConfig.read(config)
    host, port = _host_and_port(address)
    _require_answer(open_catalog(store_url).store)
    asyncio.run(_serve(host, port, store_url, settings))


def _require_answer(store: ObjectStore) -> None:
    """A store elsewhere is asked once: wrong keys are said when the server starts, not by every call."""
    if store.local_path("models") is None:
        next(store.list("models/"), None)


async def _serve(host: str, port: int, store_url: str, config: ServerConfig) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with _running(host, port, store_url, config) as ready:
        print(json.dumps(ready), flush=True)
        await stop.wait()


@asynccontextmanager
async def _running(host: str, port: int, store_url: str, config: ServerConfig) -> AsyncIterator[dict[str, str]]:
    """The server, its scheduler and its models; gives what the ready line says."""
    catalog = open_catalog(store_url)
    index = CatalogIndex.open(catalog)
    index.keep_listing()
    queue = JobQueue.of_store(store_url, url=config.queue)
    threads = ThreadPoolExecutor(max_workers=_THREADS, thread_name_prefix="blocking")
    pool = ModelPool(store_url, config)
    # The token is known only with the port, and no call can come before `start`.
    interceptor = Interceptor(None)
    options = (*SERVER_OPTIONS, *message_limits(config.max_message_bytes), ("grpc.so_reuseport", 0))
    server = grpc.aio.server(interceptors=[interceptor], options=options)
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise AddressTaken(f"cannot listen on {host}:{port}: {error}", hint="choose another --address") from None
    token_file = config.token_file or token_path(bound)
    interceptor.token = ensure_token(token_file)
    catalog_pb2_grpc.add_CatalogServicer_to_server(CatalogServicer(catalog, index, threads), server)
    stopping = asyncio.Event()
    finetune_pb2_grpc.add_FineTuneServicer_to_server(
        FineTuneServicer(catalog, queue, config.data_roots, threads, stopping, Evaluations(store_url)), server
    )
    inference_pb2_grpc.add_InferenceServicer_to_server(
        InferenceServicer(catalog, pool, threads, max_pixels=config.max_pixels), server
    )
    checks = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    await server.start()
    for service in ("", *SERVICES):
        await checks.set(service, health_pb2.HealthCheckResponse.SERVING)
    scheduler = Scheduler(
        queue, catalog, store_url, at_most=config.max_running_jobs, roots=config.data_roots, threads=threads
    )
    tasks = [asyncio.create_task(scheduler.run()), asyncio.create_task(pool.watch())]
    for task in tasks:
        task.add_done_callback(_tell_of_fault)
    try:
        shown = f"{host}:{bound}"
        yield {"address": shown, "health_address": shown, "token_file": str(token_file)}
    finally:
        stopping.set()  # watchers would keep the server for as long as their jobs run
        await checks.enter_graceful_shutdown()
        await server.stop(_STOP_GRACE)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await pool.close()
        threads.shutdown(wait=True, cancel_futures=True)
        index.close()
        queue.close()


def _tell_of_fault(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        print(f"a background task of the server ended: {task.exception()!r}", file=sys.stderr, flush=True)


def _host_and_port(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not (colon and host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise InvalidAddress(f"address {address!r} is not HOST:PORT, e.g. 127.0.0.1:8470, or 127.0.0.1:0 for any port")
    return host, int(port)
