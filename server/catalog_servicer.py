"""The Catalog service: converts and calls.

Takes requests. Gives ModelVersions. Next: `zoo.catalog`.
"""

from __future__ import annotations

from concurrent.futures import Executor

import grpc

from protos.modelzoo.v1 import catalog_pb2, catalog_pb2_grpc
from server import convert
from server.threads import in_thread
from zoo.catalog import Catalog


class CatalogServicer(catalog_pb2_grpc.CatalogServicer):
    def __init__(self, catalog: Catalog, threads: Executor) -> None:
        self._catalog = catalog
        self._threads = threads

    async def ListModels(
        self, request: catalog_pb2.ListModelsRequest, _context: grpc.aio.ServicerContext
    ) -> catalog_pb2.ListModelsResponse:
        size = convert.page_size(request.page_size)
        place = convert.page_place(request.page_token, 1)
        versions = await in_thread(self._threads, self._catalog.list)
        rest = [version for version in versions if place is None or version.name > place[0]]
        page = rest[:size]
        return catalog_pb2.ListModelsResponse(
            models=[convert.model_version(version) for version in page],
            next_page_token=convert.page_token(page[-1].name) if len(rest) > size else "",
        )

    async def GetVersion(
        self, request: catalog_pb2.GetVersionRequest, _context: grpc.aio.ServicerContext
    ) -> catalog_pb2.ModelVersion:
        return convert.model_version(await in_thread(self._threads, self._catalog.get, request.reference))
