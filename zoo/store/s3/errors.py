"""What S3 servers and botocore say, in our tree. This is the one table.

Takes botocore's exceptions. Gives ZooErrors that name the bucket, the endpoint and the key. Next: `zoo.store.s3.store`
raises them. The kinds can be imported without botocore.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from zoo.errors import (
    Aborted,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    ZooError,
)
from zoo.store.object_store import NoAnswer, ObjectExists, ObjectMissing, StoreBusy


class NoConnection(NoAnswer):
    """The endpoint could not be reached, so that nothing was written. It may be there again in a moment."""


class NoKeys(Unauthenticated):
    """There are no access keys, or they could not be read."""


class WrongKeys(Unauthenticated):
    """The server doesn't take the access keys."""


class NotAllowed(PermissionDenied):
    """The access keys are right, but what was asked isn't allowed with them."""


class ClockSkew(FailedPrecondition):
    """This machine's clock and the server's differ by more than the server allows."""


class NoBucket(NotFound):
    """There is no bucket of that name."""


class WrongRegion(FailedPrecondition):
    """The bucket is in another region, or at another address."""


class ObjectTooLarge(InvalidArgument):
    """The server doesn't take objects (or requests) of that size."""


class StoreFull(ResourceExhausted):
    """The bucket's quota is used up, or the server's disk is full."""


class WrongChecksum(Aborted):
    """The bytes that arrived aren't those whose checksum was sent: a file written to meanwhile, or damage under way."""


class NoUpload(NotFound):
    """A multipart upload isn't open (any more)."""


class NotSupported(FailedPrecondition):
    """The server doesn't know a request that the store needs."""


class BadSettings(InvalidArgument):
    """What the environment or the profile says about S3 can't be used."""


class Refused(FailedPrecondition):
    """The server refused for a reason that isn't in our table."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which bucket at which endpoint, for messages."""

    url: str
    bucket: str
    endpoint: str


@dataclass(frozen=True, kw_only=True)
class Meaning:
    kind: type[ZooError]
    text: str
    hint: str | None = None


_KEYS_HINT = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE)"
_BUSY = Meaning(kind=StoreBusy, text="the server says: try again later")
_CONFLICT = Meaning(kind=StoreBusy, text="another request for the same key is under way")
_WRONG_KEYS = Meaning(kind=WrongKeys, text="the server does not take the access keys", hint=_KEYS_HINT)
_EXPIRED = Meaning(kind=WrongKeys, text="the session's keys have expired", hint="get new ones and try again")
_DENIED = Meaning(
    kind=NotAllowed, text="access denied: these keys may not do that", hint="ask the bucket's owner for the right"
)
_NO_BUCKET = Meaning(kind=NoBucket, text="there is no such bucket", hint="create the bucket, or check --store's name")
_FULL = Meaning(kind=StoreFull, text="no space left in the bucket or on its server", hint="free some space there")
_REGION = Meaning(
    kind=WrongRegion, text="the bucket is in another region or at another address", hint="set AWS_DEFAULT_REGION"
)
_CHECKSUM = Meaning(
    kind=WrongChecksum, text="the bytes that arrived are not those that were meant", hint="try again; check the file"
)
_TOO_LARGE = Meaning(kind=ObjectTooLarge, text="larger than the server takes")
_UNSUPPORTED = Meaning(kind=NotSupported, text="the server does not know that request", hint="use another S3 server")
_FAULT = Meaning(kind=NoAnswer, text="the server failed")
_SKEW = Meaning(
    kind=ClockSkew, text="the clocks differ too much", hint="set this machine's clock (NTP), then try again"
)

_BY_CODE: dict[str, Meaning] = {
    "PreconditionFailed": Meaning(kind=ObjectExists, text="it is already there"),
    "ConditionalRequestConflict": _CONFLICT,
    "OperationAborted": _CONFLICT,
    "SlowDown": _BUSY,
    "RequestLimitExceeded": _BUSY,
    "TooManyRequests": _BUSY,
    "Throttling": _BUSY,
    "ThrottlingException": _BUSY,
    "NoSuchKey": Meaning(kind=ObjectMissing, text="no such object"),
    "NoSuchBucket": _NO_BUCKET,
    "NoSuchUpload": Meaning(kind=NoUpload, text="no such upload is open"),
    "AccessDenied": _DENIED,
    "AllAccessDisabled": _DENIED,
    "AccountProblem": _DENIED,
    "MethodNotAllowed": _DENIED,
    "SignatureDoesNotMatch": _WRONG_KEYS,
    "InvalidAccessKeyId": _WRONG_KEYS,
    "InvalidSecurity": _WRONG_KEYS,
    "InvalidToken": _WRONG_KEYS,
    "MissingAuthenticationToken": _WRONG_KEYS,
    "ExpiredToken": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "RequestTimeTooSkewed": _SKEW,
    "RequestExpired": _SKEW,
    "PermanentRedirect": _REGION,
    "TemporaryRedirect": _REGION,
    "Redirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "EntityTooLarge": _TOO_LARGE,
    "MaxMessageLengthExceeded": _TOO_LARGE,
    "QuotaExceeded": _FULL,
    "InsufficientStorage": _FULL,
    "XMinioStorageFull": _FULL,
    "BadDigest": _CHECKSUM,
    "InvalidDigest": _CHECKSUM,
    "XAmzContentSHA256Mismatch": _CHECKSUM,
    "XAmzContentChecksumMismatch": _CHECKSUM,
    "NotImplemented": _UNSUPPORTED,
    "IncompleteBody": _FAULT,
    "RequestTimeout": _FAULT,
    "InternalError": _FAULT,
    "ServiceUnavailable": _FAULT,
}
# For answers without a body (HEAD), and codes that no table knows.
_BY_STATUS: dict[int, Meaning] = {
    301: _REGION,
    307: _REGION,
    401: _WRONG_KEYS,
    403: _DENIED,
    404: _BY_CODE["NoSuchKey"],
    405: _UNSUPPORTED,
    409: _CONFLICT,
    412: _BY_CODE["PreconditionFailed"],
    413: _TOO_LARGE,
    429: _BUSY,
    501: _UNSUPPORTED,
    507: _FULL,
}
_OTHER = Meaning(kind=Refused, text="the server refused it")


def status_of(error: Any) -> int:
    """The HTTP status of a botocore ClientError; 0 when it says none."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def code_of(error: Any) -> str:
    """The S3 error code of a botocore ClientError; of an answer without a body it is the status."""
    return str(error.response.get("Error", {}).get("Code", ""))


def s3_error(error: Exception, doing: str, place: Place, key: str | None = None) -> ZooError:
    """Our error for one of botocore's. `doing`: "write", "read", "list", …; `key`: without the store's prefix."""
    from botocore.exceptions import ClientError

    what = f"object {key!r} of {place.url}" if key is not None else place.url
    if isinstance(error, ClientError):
        meaning = _meaning(code_of(error), status_of(error))
        said = _said(error)
        if meaning.kind is ClockSkew:
            said = _clocks(error) + said
    else:
        meaning, said = _local_meaning(error, place), f" ({str(error)[:300]})"
    details = {"url": place.url, "endpoint": place.endpoint} | ({"key": key} if key is not None else {})
    if meaning.kind is ObjectExists:
        return ObjectExists(f"object {key!r} is already in the store {place.url}", **details)
    if meaning.kind is ObjectMissing:
        return ObjectMissing(f"no object {key!r} in the store {place.url}", **details)
    if meaning.kind is NoBucket:
        return NoBucket(f"there is no bucket {place.bucket!r} at {place.endpoint}", hint=meaning.hint, **details)
    message = f"cannot {doing} {what} at {place.endpoint}: {meaning.text}{said}"
    return meaning.kind(message, hint=meaning.hint, **details)


def _meaning(code: str, status: int) -> Meaning:
    if (found := _BY_CODE.get(code) or _BY_STATUS.get(status)) is not None:
        return found
    return _FAULT if status >= 500 or status == 200 else _OTHER


def _said(error: Any) -> str:
    """The server's own words."""
    told = error.response.get("Error", {})
    words = " ".join(str(told[name]) for name in ("Code", "Message") if told.get(name))
    return f" (HTTP {status_of(error)}: {words[:300]})"


def _clocks(error: Any) -> str:
    told = error.response.get("Error", {})
    server = told.get("ServerTime") or error.response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    ours = told.get("RequestTime") or datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    return f": this machine says {ours}, the server {server or 'does not say its time'}"


def _local_meaning(error: Exception, place: Place) -> Meaning:
    """For what botocore raises without an answer of the server; the first kind that fits."""
    for kinds, meaning in _local_table(place):
        if isinstance(error, kinds):
            return meaning
    return Meaning(kind=NoAnswer, text="no usable answer")


def _local_table(place: Place) -> list[tuple[tuple[type[Exception], ...], Meaning]]:
    from botocore import exceptions as said

    no_connection = Meaning(
        kind=NoConnection,
        text="no connection",
        hint=f"check that {place.endpoint} is the right address and can be reached (AWS_ENDPOINT_URL_S3)",
    )
    no_keys = Meaning(kind=NoKeys, text="there are no access keys", hint=_KEYS_HINT)
    settings = Meaning(kind=BadSettings, text="the S3 settings cannot be used", hint="check the AWS_… variables")
    return [
        ((said.EndpointConnectionError, said.ConnectTimeoutError, said.ProxyConnectionError), no_connection),
        ((said.SSLError,), no_connection),
        ((said.NoCredentialsError, said.PartialCredentialsError, said.CredentialRetrievalError), no_keys),
        ((said.NoAuthTokenError, said.TokenRetrievalError, said.SSOError), no_keys),
        (
            (
                said.ProfileNotFound,
                said.ConfigParseError,
                said.ConfigNotFound,
                said.InvalidConfigError,
                said.NoRegionError,
                said.InvalidRegionError,
                said.ParamValidationError,
                said.UnknownEndpointError,
            ),
            settings,
        ),
    ]
