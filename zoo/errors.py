"""The one error tree.

The middle names follow the gRPC status codes (https://grpc.github.io/grpc/core/md_doc_statuscodes.html), so that one
table can map any error to a status, an exit code and a public message. Leaves live beside the code that raises them and
inherit from a middle name. A message says what, which, received and allowed; `hint` names the next command to try.
"""

from __future__ import annotations

from typing import Any, ClassVar


class ZooError(Exception):
    """Anything that the product refuses or fails at on purpose.

    Args:
        message: what went wrong, which thing, what was received, what is allowed.
        hint: the next thing for the user to try, or None.
        details: machine-readable facts (strings), for `ErrorInfo.metadata` and `--format json`.
    """

    code: ClassVar[str] = "UNKNOWN"

    def __init__(self, message: str, *, hint: str | None = None, **details: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.details = details

    @property
    def reason(self) -> str:
        """The leaf's name, e.g. `UnknownModel`: stable, for scripts to compare."""
        return type(self).__name__

    def to_dict(self) -> dict[str, Any]:
        """The error as JSON values, to cross a process boundary."""
        return {
            "code": self.code,
            "reason": self.reason,
            "message": self.message,
            "hint": self.hint,
            "details": dict(self.details),
        }


class InvalidArgument(ZooError):
    """The request can never be right, whatever the state of the system."""

    code = "INVALID_ARGUMENT"


class NotFound(ZooError):
    code = "NOT_FOUND"


class AlreadyExists(ZooError):
    code = "ALREADY_EXISTS"


class FailedPrecondition(ZooError):
    """Right in itself, but not in the present state."""

    code = "FAILED_PRECONDITION"


class Aborted(ZooError):
    """Lost a race or a lease; trying again at a higher level may succeed."""

    code = "ABORTED"


class OutOfRange(ZooError):
    code = "OUT_OF_RANGE"


class PermissionDenied(ZooError):
    code = "PERMISSION_DENIED"


class Unauthenticated(ZooError):
    code = "UNAUTHENTICATED"


class ResourceExhausted(ZooError):
    code = "RESOURCE_EXHAUSTED"


class Unavailable(ZooError):
    """Something this call needs does not answer; the same call may go through later."""

    code = "UNAVAILABLE"


class DeadlineExceeded(ZooError):
    code = "DEADLINE_EXCEEDED"


class Cancelled(ZooError):
    code = "CANCELLED"


class Unimplemented(ZooError):
    code = "UNIMPLEMENTED"


class DataLoss(ZooError):
    """Stored bytes are not what they were."""

    code = "DATA_LOSS"


class Internal(ZooError):
    """A fault of ours."""

    code = "INTERNAL"


BY_CODE: dict[str, type[ZooError]] = {
    error.code: error
    for error in (
        InvalidArgument,
        NotFound,
        AlreadyExists,
        FailedPrecondition,
        Aborted,
        OutOfRange,
        PermissionDenied,
        Unauthenticated,
        ResourceExhausted,
        Unavailable,
        DeadlineExceeded,
        Cancelled,
        Unimplemented,
        DataLoss,
        Internal,
    )
}


def from_dict(value: dict[str, Any]) -> ZooError:
    """The error that `ZooError.to_dict` sent across a process boundary.

    It has the sender's code and `reason`; the leaf class itself is made anew, never imported by a name from outside.
    """
    middle = BY_CODE.get(value.get("code", ""), ZooError)
    leaf = type(str(value.get("reason") or middle.__name__), (middle,), {})
    return leaf(value.get("message", "unknown error"), hint=value.get("hint"), **(value.get("details") or {}))
