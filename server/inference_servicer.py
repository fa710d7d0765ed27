"""The Inference service in the front: checks what can be checked without TensorFlow, then hands on.

Takes encoded images. Gives predictions of a model's own process. Next: `server.model_pool`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any

import grpc

from finetune.data.image_header import UnreadableImage, check_image
from finetune.decoding_wire import decoding_request
from finetune.predictor import CLASSIFYING, check_request, require_head
from finetune.wire import error_from
from protos.modelzoo.v1 import inference_pb2, inference_pb2_grpc
from server.model_pool import ModelPool, ModelProcessDied
from server.threads import in_thread
from zoo.catalog import Catalog, ModelVersion
from zoo.errors import DeadlineExceeded, InvalidArgument, ZooError

MAX_IMAGES = 64


class WrongImageCount(InvalidArgument):
    """No image, or more than a call may bring."""


class CallExpired(DeadlineExceeded):
    """The caller's deadline came before the answer."""


class InferenceServicer(inference_pb2_grpc.InferenceServicer):
    def __init__(self, catalog: Catalog, pool: ModelPool, threads: Executor, *, max_pixels: int) -> None:
        self._catalog = catalog
        self._pool = pool
        self._threads = threads
        self._max_pixels = max_pixels

    async def Caption(
        self, request: inference_pb2.CaptionRequest, context: grpc.aio.ServicerContext
    ) -> inference_pb2.CaptionResponse:
        check_request(decoding_request(request))
        return await self._answer(request, context, ("captioner",), lambda stub: stub.Caption)

    async def Classify(
        self, request: inference_pb2.ClassifyRequest, context: grpc.aio.ServicerContext
    ) -> inference_pb2.ClassifyResponse:
        return await self._answer(request, context, CLASSIFYING, lambda stub: stub.Classify)

    async def Embed(
        self, request: inference_pb2.EmbedRequest, context: grpc.aio.ServicerContext
    ) -> inference_pb2.EmbedResponse:
        return await self._answer(request, context, (), lambda stub: stub.Embed)

    async def _answer(
        self, request: Any, context: grpc.aio.ServicerContext, heads: Sequence[str], method: Callable[[Any], Any]
    ) -> Any:
        begun = time.perf_counter()
        _check_images(request.images, self._max_pixels)
        version = await in_thread(self._threads, self._catalog.get, request.reference)
        if heads:
            require_head(version, *heads)
        response = await self._ask(version, request, context, method)
        response.server_milliseconds = (time.perf_counter() - begun) * 1000
        return response

    async def _ask(
        self, version: ModelVersion, request: Any, context: grpc.aio.ServicerContext, method: Callable[[Any], Any]
    ) -> Any:
        for last in (False, True):  # a process that died is started again once: a prediction changes nothing
            async with self._pool.use(version) as model:
                left = context.time_remaining()
                if left is not None and left <= 0:
                    raise CallExpired(f"the call's deadline passed while {version.reference} was being loaded")
                try:
                    return await method(model.stub)(request, timeout=left)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.UNAVAILABLE:
                        raise _meant(error) from None
                    self._pool.discard(model)
                    if last:
                        raise ModelProcessDied(
                            f"the process of {model.reference} died while it answered, twice",
                            hint="try again; see the server's log",
                        ) from None
        raise AssertionError("unreachable")


def _meant(error: grpc.aio.AioRpcError) -> ZooError:
    """What the model's process said."""
    trailing = error.trailing_metadata() or ()
    return error_from(error.code().name, error.details() or "", [(key, value) for key, value in trailing])


def _check_images(images: Sequence[bytes], max_pixels: int) -> None:
    """Raises WrongImageCount, UnreadableImage naming the image by its place, both before anything is decoded."""
    if not 1 <= len(images) <= MAX_IMAGES:
        raise WrongImageCount(f"the call brings {len(images)} images, allowed are 1 to {MAX_IMAGES}")
    for place, data in enumerate(images):
        try:
            check_image(data, max_pixels)
        except UnreadableImage as error:
            raise UnreadableImage(
                f"image {place + 1}: {error.message}", hint=error.hint, **error.details, image=str(place)
            ) from None
