"""The boto3 client, with settings that hold for AWS and for every other S3 server.

Takes a bucket and a prefix. Gives a Bucket: client, names and limits. Next: `zoo.store.s3.store`.

Which settings, and why:
- Checksums "when_required": since early 2025 boto3 adds a CRC32 trailer to every upload, which many servers other than
  AWS's refuse. We send a SHA-256 of every body ourselves, so AWS misses nothing.
- Addressing "path" at an endpoint of one's own (a bucket isn't a host name there), "auto" at AWS; a profile's own
  `addressing_style` goes before both.
- One attempt: what may be repeated, and after which pause, is up to `zoo.store.retrying` and `zoo.store.s3.upload`.
  botocore would repeat a create-only write whose answer was lost, and then report that the key was taken.
- A pool as wide as the transfers, else urllib3 drops connections ("pool is full") and connects anew.
- No `Expect: 100-continue`: it costs each part a round trip, and a second where the server doesn't know it.
- Over plain http SigV4 signs the body's SHA-256, and botocore would make it once more. It is in the checksum header
  already, so that is what is signed (`_KnownHashAuth`); SeaweedFS refuses a body which isn't what was signed.
- `preferred_transfer_client="classic"` where a transfer configuration is used: the CRT client ignores `endpoint_url`.
"""

from __future__ import annotations

import base64
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.auth
import botocore.loaders
import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from zoo.store import InvalidStoreUrl
from zoo.store.keys import check_key
from zoo.store.object_store import InvalidKey
from zoo.store.s3.errors import BadSettings, Place, s3_error

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_SIGNER = "s3v4-zoo-known-hash"
_WRITES = ("PutObject", "UploadPart")


@dataclass(frozen=True, kw_only=True)
class Location:
    bucket: str
    prefix: str  # empty, or ends in `/`

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".removesuffix("/")


@dataclass(frozen=True, kw_only=True)
class Limits:
    connect_seconds: float = 5.0
    read_seconds: float = 60.0  # without one byte; the losers of a race wait seconds on some servers
    transfers: int = 4  # parts sent at once; 2 to 4 were best on 2 cores that the server shares, 8 took 6 % longer
    connections: int = 40  # transfers, a cache's ranges, and calls besides


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """A client and what it is for. Safe to share between threads."""

    client: Any
    location: Location
    limits: Limits
    place: Place


def parse_location(location: str) -> Location:
    """From what stands behind `s3://`. Raises InvalidStoreUrl."""
    bucket, _, prefix = location.partition("/")
    prefix = prefix.removesuffix("/")
    if not _BUCKET.fullmatch(bucket):
        raise InvalidStoreUrl(
            f"store 's3://{location[:300]}': {bucket[:300]!r} is no bucket's name (3 to 255 letters, digits, '-', '.')",
            hint="--store s3://BUCKET/PREFIX",
            url=f"s3://{location[:300]}",
        )
    try:
        if prefix:
            check_key(prefix)
    except InvalidKey as error:
        raise InvalidStoreUrl(
            f"store 's3://{location[:300]}': {error.message}", hint="--store s3://BUCKET/PREFIX"
        ) from None
    return Location(bucket=bucket, prefix=f"{prefix}/" if prefix else "")


def connect(location: Location, limits: Limits | None = None) -> Bucket:
    """Makes the client; no request is sent. Raises BadSettings."""
    limits = limits or Limits()
    place = Place(url=location.url, bucket=location.bucket, endpoint="the S3 endpoint")
    try:
        settings = botocore.session.get_session()
        settings.register_component("data_loader", _loader(settings.get_config_variable("data_path")))
        session = boto3.Session(botocore_session=settings)
        chosen = settings.get_scoped_config().get("s3")
        chosen = chosen if isinstance(chosen, dict) else {}
        client = _client(session, limits, chosen.get("addressing_style", "auto"))
        if urlsplit(client.meta.endpoint_url).scheme not in ("http", "https"):
            raise ValueError(f"the endpoint {client.meta.endpoint_url} is no http or https address")
        if "addressing_style" not in chosen and not _is_aws(client.meta.endpoint_url):
            client = _client(session, limits, "path")
    except BotoCoreError as error:
        raise s3_error(error, "open", place) from error
    except ValueError as error:  # botocore's for an endpoint that is no URL
        raise BadSettings(
            f"cannot open {location.url}: {error}", hint="check AWS_ENDPOINT_URL_S3", url=location.url
        ) from error
    place = Place(url=location.url, bucket=location.bucket, endpoint=client.meta.endpoint_url)
    return Bucket(client=client, location=location, limits=limits, place=place)


@lru_cache(maxsize=4)
def _loader(data_path: str | None) -> Any:
    """Shared between clients: each one's own takes 70 ms to read what S3's requests look like."""
    return botocore.loaders.create_loader(data_path)


def _client(session: boto3.Session, limits: Limits, addressing: str) -> Any:
    client = session.client(
        "s3",
        region_name=session.region_name or os.environ.get("AWS_REGION") or "us-east-1",
        config=Config(
            signature_version="s3v4",
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            connect_timeout=limits.connect_seconds,
            read_timeout=limits.read_seconds,
            max_pool_connections=limits.connections,
            tcp_keepalive=True,
            retries={"total_max_attempts": 1, "mode": "standard"},
            s3={"addressing_style": addressing},
        ),
    )
    client.meta.events.register_last("before-call.s3", _no_expect)
    for operation in _WRITES:
        client.meta.events.register(f"choose-signer.s3.{operation}", _choose_signer)
    return client


def _is_aws(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn", ".api.aws"))


def _no_expect(params: dict[str, Any], **_: Any) -> None:
    params["headers"].pop("Expect", None)


def _choose_signer(signature_version: Any, **_: Any) -> str | None:
    return _SIGNER if signature_version in ("s3v4", "v4") else None


class _KnownHashAuth(botocore.auth.S3SigV4Auth):
    """Signs the SHA-256 that the request carries as its checksum, rather than reading the body for it again."""

    def payload(self, request: Any) -> str:
        known = request.headers.get("x-amz-checksum-sha256")
        if known is not None and self._should_sha256_sign_payload(request):
            return base64.b64decode(known).hex()
        return str(super().payload(request))


botocore.auth.AUTH_TYPE_MAPS[_SIGNER] = _KnownHashAuth  # botocore's own table of signers, under a name of ours
