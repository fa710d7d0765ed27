"""How plain values cross the wire, both ways: JSON in Structs, times, and the error tree in google.rpc details.

Takes JSON values, times and ZooErrors. Gives protobuf messages, and the same values back. Next: `finetune.client` on
one side, `server.convert` and `server.interceptor` on the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc.error_details_pb2 import ErrorInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from zoo.errors import ZooError, from_dict

DETAILS_KEY = "grpc-status-details-bin"  # where gRPC's richer error model puts its Status
ERROR_DOMAIN = "modelzoo"
_LONGEST = 2000  # characters of a message: gRPC refuses more than 8 KiB of trailing metadata, which hold it twice
_HINT = "hint"
_EXACT = 2**53  # integers beyond it don't survive a double

# Both ends use the same: a client that pings more often than the server allows is thrown out (too_many_pings).
KEEPALIVE_MS = 30_000
CHANNEL_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    # A server that was started again is found within a second, not after the failed tries of an earlier client.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2_000),
)
SERVER_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.http2.min_recv_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
    ("grpc.keepalive_time_ms", 2 * KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", 20_000),
)
MAX_MESSAGE_BYTES = 64 * 2**20


def message_limits(limit: int) -> tuple[tuple[str, int], ...]:
    """The channel or server options for a largest message of `limit` bytes each way."""
    return (("grpc.max_receive_message_length", limit), ("grpc.max_send_message_length", limit))


def to_struct(value: Mapping[str, Any]) -> Struct:
    """A JSON object as a Struct."""
    struct = Struct()
    struct.update(json.loads(json.dumps(value, allow_nan=False)))
    return struct


def from_struct(struct: Struct) -> dict[str, Any]:
    """The JSON object again. A Struct knows only doubles; whole numbers come back as integers, as they read in JSON."""
    return {key: _from_value(value) for key, value in struct.fields.items()}


def _from_value(value: Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return from_struct(value.struct_value)
    if kind == "list_value":
        return [_from_value(entry) for entry in value.list_value.values]
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() and abs(number) < _EXACT else number
    return None if kind in (None, "null_value") else getattr(value, kind)


def to_timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def from_timestamp(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)


def shortened(message: str) -> str:
    """A message that fits into a call's trailing metadata."""
    return message if len(message) <= _LONGEST else message[: _LONGEST - 1] + "…"


def error_details(error: ZooError, status: int) -> bytes:
    """The trailing metadata of a failed call: google.rpc.Status with one ErrorInfo (reason, domain, details, hint)."""
    metadata = {key: str(value)[:200] for key, value in error.details.items()}
    if error.hint:
        metadata[_HINT] = shortened(error.hint)
    rich = Status(code=status, message=shortened(error.message))
    rich.details.add().Pack(ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=metadata))
    return rich.SerializeToString()


def error_from(code: str, message: str, trailing: Iterable[tuple[str, str | bytes]]) -> ZooError:
    """The error of the tree that a failed call came from.

    Args:
        code: the status' name, e.g. `NOT_FOUND`.
        trailing: the call's trailing metadata.
    """
    found: dict[str, Any] = {"code": code, "message": message}
    for key, value in trailing:
        info = _error_info(value) if key == DETAILS_KEY and isinstance(value, bytes) else None
        if info is not None:
            details = dict(info.metadata)
            found |= {"hint": details.pop(_HINT, None), "reason": info.reason, "details": details}
    return from_dict(found)


def _error_info(data: bytes) -> ErrorInfo | None:
    info = ErrorInfo()
    try:
        packed = Status.FromString(data).details
        return next((info for entry in packed if entry.Unpack(info)), None)
    except DecodeError:  # details of some proxy; the status and the message are there all the same
        return None
