"""The one interceptor: lets in whoever has the token, and turns the error tree into statuses.

Takes every call. Gives it to its servicer, or a status. Next: `server.servicers`.
"""

from __future__ import annotations

import asyncio
import hmac
import secrets
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc

from finetune.wire import DETAILS_KEY, error_details, shortened
from zoo.errors import Internal, Unauthenticated, ZooError

STATUSES: dict[str, grpc.StatusCode] = {
    "UNKNOWN": grpc.StatusCode.UNKNOWN,
    "INVALID_ARGUMENT": grpc.StatusCode.INVALID_ARGUMENT,
    "NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "ALREADY_EXISTS": grpc.StatusCode.ALREADY_EXISTS,
    "FAILED_PRECONDITION": grpc.StatusCode.FAILED_PRECONDITION,
    "ABORTED": grpc.StatusCode.ABORTED,
    "OUT_OF_RANGE": grpc.StatusCode.OUT_OF_RANGE,
    "PERMISSION_DENIED": grpc.StatusCode.PERMISSION_DENIED,
    "UNAUTHENTICATED": grpc.StatusCode.UNAUTHENTICATED,
    "RESOURCE_EXHAUSTED": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
    "DEADLINE_EXCEEDED": grpc.StatusCode.DEADLINE_EXCEEDED,
    "CANCELLED": grpc.StatusCode.CANCELLED,
    "UNIMPLEMENTED": grpc.StatusCode.UNIMPLEMENTED,
    "DATA_LOSS": grpc.StatusCode.DATA_LOSS,
    "INTERNAL": grpc.StatusCode.INTERNAL,
}
_OPEN_TO_ALL = ("/grpc.health.v1.Health/", "/grpc.reflection.v1alpha.ServerReflection/")


class WrongToken(Unauthenticated):
    """No token came with the call, or another one than the server's."""


class Interceptor(grpc.aio.ServerInterceptor):
    """Args:
    token: what callers must send as `authorization: Bearer <token>`; None lets everybody in.
    """

    def __init__(self, token: str | None) -> None:
        self.token = token

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        handler = await continuation(details)
        if handler is None or details.method.startswith(_OPEN_TO_ALL):
            return handler
        allowed = self.token is None or _has_token(details.invocation_metadata, self.token)
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                _stream(handler.unary_stream, allowed), handler.request_deserializer, handler.response_serializer
            )
        return grpc.unary_unary_rpc_method_handler(
            _unary(handler.unary_unary, allowed), handler.request_deserializer, handler.response_serializer
        )


def _unary(behave: Callable[..., Awaitable[Any]], allowed: bool) -> Callable[..., Awaitable[Any]]:
    async def call(request: Any, context: grpc.aio.ServicerContext) -> Any:
        try:
            _require(allowed)
            return await behave(request, context)
        except Exception as error:  # noqa: BLE001 – the last stop of every error
            await _abort(context, error)

    return call


def _stream(behave: Callable[..., AsyncIterator[Any]], allowed: bool) -> Callable[..., AsyncIterator[Any]]:
    async def call(request: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
        try:
            _require(allowed)
            async for response in behave(request, context):
                yield response
        except Exception as error:  # noqa: BLE001 – the last stop of every error
            await _abort(context, error)

    return call


def _has_token(metadata: Any, token: str) -> bool:
    sent = dict(metadata or ()).get("authorization", "")
    return hmac.compare_digest(str(sent).encode(), f"Bearer {token}".encode())


def _require(allowed: bool) -> None:
    if not allowed:
        raise WrongToken(
            "the call brought no token that this server knows, as metadata 'authorization: Bearer <token>'",
            hint="--token or MODELZOO_TOKEN; a local server names its token file when it starts",
        )


async def _abort(context: grpc.aio.ServicerContext, error: Exception) -> NoReturn:
    if isinstance(error, grpc.aio.AbortError | asyncio.CancelledError):
        raise error
    if not isinstance(error, ZooError):
        number = secrets.token_hex(4)
        print(f"fault {number}", *traceback.format_exception(error), sep="\n", file=sys.stderr, flush=True)
        error = Internal(f"a fault of the server ({type(error).__name__}); its log has it as fault {number}")
    status = STATUSES[error.code]
    await context.abort(status, shortened(error.message), ((DETAILS_KEY, error_details(error, status.value[0])),))
    raise AssertionError("abort raises")
