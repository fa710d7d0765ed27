"""The Catalog service: converts and calls.

Takes requests. Gives ModelVersions. Next: `zoo.catalog`, `zoo.search`.
"""

from __future__ import annotations

from concurrent.futures import Executor

import grpc

from protos.modelzoo.v1 import catalog_pb2, catalog_pb2_grpc
from server import convert
from server.threads import in_thread
from zoo.catalog import Catalog
from zoo.search.index import CatalogIndex


class CatalogServicer(catalog_pb2_grpc.CatalogServicer):
    def __init__(self, catalog: Catalog, index: CatalogIndex, threads: Executor) -> None:
        self._catalog = catalog
        self._index = index
        self._threads = threads

    async def ListModels(
        self, request: catalog_pb2.ListModelsRequest, _context: grpc.aio.ServicerContext
    ) -> catalog_pb2.ListModelsResponse:
        page = await in_thread(
            self._threads,
            self._index.search,
            filter=request.filter,
            order_by=request.order_by,
            page_size=convert.page_size(request.page_size),
            page_token=request.page_token,
            all_versions=request.all_versions,
        )
        return convert.catalog_page(page)

    async def GetVersion(
        self, request: catalog_pb2.GetVersionRequest, _context: grpc.aio.ServicerContext
    ) -> catalog_pb2.ModelVersion:
        return convert.model_version(await in_thread(self._threads, self._catalog.get, request.reference))
