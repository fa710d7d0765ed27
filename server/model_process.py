"""One loaded ModelVersion in a process of its own: `python -m server.model_process --store URL --reference REF …`.

Takes Inference calls on a Unix socket. Gives predictions. Next: `finetune.predictor`.
Leaving is what frees a model's memory, and a crash takes down one model, not the service. It leaves when its stdin
ends, which it does when the front process ends, however that ends. Standard output carries one JSON line: ready, or the
error.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from finetune.decoding_wire import decoding_request
from finetune.jobs.worker import die_with_parent
from finetune.predictor import Predictor
from finetune.tensorflow_start import start_tensorflow
from finetune.wire import message_limits
from protos.modelzoo.v1 import inference_pb2, inference_pb2_grpc
from server.interceptor import Interceptor
from zoo.catalog import open_catalog
from zoo.errors import Internal, ResourceExhausted, ZooError

MAX_WAITING = 64  # calls; more are refused, so that nobody waits for an answer that comes too late
_THREADS = 2  # TensorFlow's intra-op pool: the cores are shared with other models and jobs

_Answer = TypeVar("_Answer")


class TooManyWaiting(ResourceExhausted):
    """A model's queue is full."""


class ModelServicer(inference_pb2_grpc.InferenceServicer):
    """Calls the Predictor, one call at a time. A call that is cancelled or expires while it waits is never begun."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="predict")
        self._waiting = 0

    async def Caption(
        self, request: inference_pb2.CaptionRequest, _context: grpc.aio.ServicerContext
    ) -> inference_pb2.CaptionResponse:
        def answer() -> list[inference_pb2.ImageCaptions]:
            captions = self._predictor.caption(request.images, decoding_request(request))
            return [
                inference_pb2.ImageCaptions(
                    captions=[
                        inference_pb2.Caption(text=c.text, log_prob=c.log_prob, finished=c.finished) for c in beams
                    ]
                )
                for beams in captions
            ]

        results, milliseconds = await self._in_turn(answer)
        return inference_pb2.CaptionResponse(
            results=results, milliseconds=milliseconds, reference=self._predictor.version.reference
        )

    async def Classify(
        self, request: inference_pb2.ClassifyRequest, _context: grpc.aio.ServicerContext
    ) -> inference_pb2.ClassifyResponse:
        def answer() -> list[inference_pb2.ImageLabels]:
            return [
                inference_pb2.ImageLabels(
                    labels=[inference_pb2.Label(label=each.label, score=each.score) for each in found.labels],
                    unsure=found.unsure,
                )
                for found in self._predictor.classified(request.images, top=request.top or None)
            ]

        results, milliseconds = await self._in_turn(answer)
        return inference_pb2.ClassifyResponse(
            results=results, milliseconds=milliseconds, reference=self._predictor.version.reference
        )

    async def Embed(
        self, request: inference_pb2.EmbedRequest, _context: grpc.aio.ServicerContext
    ) -> inference_pb2.EmbedResponse:
        def answer() -> list[inference_pb2.Embedding]:
            return [inference_pb2.Embedding(values=row.tolist()) for row in self._predictor.embed(request.images)]

        results, milliseconds = await self._in_turn(answer)
        return inference_pb2.EmbedResponse(
            results=results, milliseconds=milliseconds, reference=self._predictor.version.reference
        )

    async def _in_turn(self, answer: Callable[[], _Answer]) -> tuple[_Answer, float]:
        """The answer and the milliseconds that it took once begun. Cancelling this coroutine takes a call that waits
        out of the worker's queue."""
        if self._waiting >= MAX_WAITING:
            raise TooManyWaiting(
                f"{self._predictor.version.reference} has {self._waiting} calls waiting, allowed are {MAX_WAITING}",
                hint="try again in a second",
            )

        def timed() -> tuple[_Answer, float]:
            begun = time.perf_counter()
            result = answer()
            return result, (time.perf_counter() - begun) * 1000

        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, timed)
        finally:
            self._waiting -= 1


async def _serve(predictor: Predictor, socket: str, limit: int) -> None:
    server = grpc.aio.server(interceptors=[Interceptor(None)], options=message_limits(limit))
    inference_pb2_grpc.add_InferenceServicer_to_server(ModelServicer(predictor), server)
    checks = health.aio.HealthServicer()
    await checks.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    _say({"ready": True})
    await _end_of_input()
    await server.stop(grace=10)


async def _end_of_input() -> None:
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await reader.read()


def _say(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


def _load(store: str, reference: str, max_pixels: int) -> Predictor:
    start_tensorflow()
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(_THREADS)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    predictor = Predictor.load(open_catalog(store), reference, max_pixels=max_pixels, resident=True)
    predictor.warm_up()
    return predictor


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="server.model_process")
    parser.add_argument("--store", required=True)
    parser.add_argument("--reference", required=True)
    parser.add_argument("--socket", required=True)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--max-message-bytes", type=int, required=True)
    parser.add_argument("--max-pixels", type=int, required=True)
    options = parser.parse_args(arguments)
    die_with_parent(options.parent, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the front, which then ends this process
    try:
        predictor = _load(options.store, options.reference, options.max_pixels)
    except ZooError as error:
        _say({"error": error.to_dict()})
        return 1
    except Exception as error:  # whoever waits for the line must get one
        first_line = (str(error).splitlines() or [""])[0][:300]
        fault = Internal(f"{options.reference} cannot be loaded: {type(error).__name__}: {first_line}")
        fault.hint = "the traceback is in the server's log"
        _say({"error": fault.to_dict()})
        raise
    asyncio.run(_serve(predictor, options.socket, options.max_message_bytes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
