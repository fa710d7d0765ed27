"""S3Store: the ObjectStore seam on one bucket; each method is one request, or one for each page or part.

Takes a Bucket. Gives an ObjectStore. Next: `zoo.store.s3.upload` sends what is larger than a chunk.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from zoo.atomic_file import storage_error
from zoo.byte_count import OnBytes, nobody_listens
from zoo.errors import InvalidArgument
from zoo.file_hash import CHUNK_BYTES
from zoo.store.keys import check_folder, check_key, check_prefix
from zoo.store.object_store import (
    InvalidKey,
    Leftover,
    NoAnswer,
    ObjectExists,
    ObjectInfo,
    ObjectMissing,
)
from zoo.store.s3.client import Bucket
from zoo.store.s3.errors import NotSupported, NoUpload, Place, code_of, s3_error, status_of
from zoo.store.s3.ordering import ordered, start_before
from zoo.store.s3.upload import send_file

PIECE = 256 << 10  # bytes; the largest piece of a stream. A larger one's memory is fetched from the kernel each time
MAX_OBJECT_KEY = 1024  # bytes of UTF-8, prefix included: S3's own limit


class S3Store:
    """An ObjectStore below a prefix of a bucket. Safe to share between threads, not across a fork.

    Every method raises the errors of `zoo.store.s3.errors`. Objects of somebody else below the prefix whose names are
    no keys aren't listed, as with every store.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._client = bucket.client
        self._name = bucket.location.bucket
        self._prefix = bucket.location.prefix
        self._bucket_is_there = False  # told by some answer; a HEAD's 404 doesn't tell what is missing

    @property
    def url(self) -> str:
        return self._bucket.location.url

    @property
    def place(self) -> Place:
        return self._bucket.place

    def create(self, key: str, data: bytes) -> None:
        self._put(key, data, IfNoneMatch="*")

    def create_from_file(
        self, key: str, path: Path, *, chunks: Sequence[str] = (), on_bytes: OnBytes = nobody_listens
    ) -> None:
        object_key = self._object_key(key)
        try:
            file = path.open("rb")
        except OSError as error:
            raise storage_error(error, "read", path) from error
        with file:
            try:
                self.stat(key)
            except ObjectMissing:
                pass
            else:
                raise ObjectExists(f"object {key!r} is already in the store {self.url}", key=key, url=self.url)
            try:
                first = file.read(CHUNK_BYTES + 1)
            except OSError as error:
                raise storage_error(error, "read", path) from error
            if len(first) <= CHUNK_BYTES:
                self.create(key, first)
                on_bytes(len(first))
                return
            del first
            send_file(self._bucket, key, object_key, file, path, chunks, on_bytes)

    def put(self, key: str, data: bytes) -> None:
        self._put(key, data)

    def read(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        return b"".join(self.stream(key, start=start, length=length))

    def stream(self, key: str, *, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        if start < 0 or (length is not None and length < 0):
            raise InvalidArgument(f"object {key!r}: a range of start {start} and length {length} cannot be read")
        return self._stream(key, self._object_key(key), start, length)

    def download(self, key: str, path: Path) -> None:
        pieces = self.stream(key)
        try:
            target = path.open("xb")
        except OSError as error:
            raise storage_error(error, "write", path) from error
        try:
            with target:
                for piece in pieces:
                    target.write(piece)
        except OSError as error:
            path.unlink(missing_ok=True)
            raise storage_error(error, "write", path) from error
        except BaseException:
            path.unlink(missing_ok=True)
            raise

    def stat(self, key: str) -> ObjectInfo:
        object_key = self._object_key(key)
        try:
            answer = self._client.head_object(Bucket=self._name, Key=object_key)
        except ClientError as error:
            status = status_of(error)
            if (status == 404 and not self._bucket_is_there) or status in (301, 400, 401, 403):
                self._explain(key, object_key)
            raise self._error(error, "look at", key) from error
        except BotoCoreError as error:
            raise self._error(error, "look at", key) from error
        self._bucket_is_there = True
        return ObjectInfo(key=key, size=answer["ContentLength"], modified=answer["LastModified"].timestamp())

    def list(self, prefix: str, *, start_after: str = "") -> Iterator[ObjectInfo]:
        check_prefix(prefix)
        if start_after > prefix and not start_after.startswith(prefix):
            return iter(())  # it sorts after every key that begins so
        listed = self._as_listed(prefix, start_after if start_after > prefix else "")
        return ordered(listed, prefix, self._goes_before)

    def folders(self, prefix: str) -> Iterator[str]:
        check_folder(prefix)
        names = set()
        for page in self._pages("list_objects_v2", prefix, Delimiter="/"):
            for folder in page.get("CommonPrefixes", ()):
                name = folder["Prefix"].removeprefix(self._prefix + prefix).removesuffix("/")
                if name and _is_key(prefix + name):
                    names.add(name)
        return iter(sorted(names))  # S3 sorts by "name/", which isn't the order of the names

    def delete(self, key: str) -> None:
        self._call("delete", key, "delete_object", Key=self._object_key(key))

    def local_path(self, key: str) -> Path | None:
        check_key(key)
        return None

    def leftovers(self, prefix: str) -> Iterator[Leftover]:
        check_prefix(prefix)
        for page in self._pages("list_multipart_uploads", prefix):
            for upload in page.get("Uploads", ()):
                key = upload["Key"].removeprefix(self._prefix)
                if upload["Key"].startswith(self._prefix + prefix) and _is_key(key):
                    modified = upload["Initiated"].timestamp()
                    yield Leftover(key=key, id=upload["UploadId"], size=None, modified=modified)

    def remove_leftover(self, leftover: Leftover) -> None:
        object_key = self._object_key(leftover.key)
        try:
            self._call("remove the unfinished upload of", leftover.key, "abort_multipart_upload",
                       Key=object_key, UploadId=leftover.id)  # fmt: skip
        except (NoUpload, ObjectMissing):
            return

    def _put(self, key: str, data: bytes, **conditions: str) -> None:
        digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
        object_key = self._object_key(key)
        self._call("write", key, "put_object", Key=object_key, Body=data, ChecksumSHA256=digest, **conditions)

    def _stream(self, key: str, object_key: str, start: int, length: int | None) -> Iterator[bytes]:
        if length == 0:
            self.stat(key)
            return
        ranged = start > 0 or length is not None
        wanted = {"Range": f"bytes={start}-{'' if length is None else start + length - 1}"} if ranged else {}
        try:
            answer = self._client.get_object(Bucket=self._name, Key=object_key, **wanted)
        except ClientError as error:
            if ranged and (status_of(error) == 416 or code_of(error) == "InvalidRange"):
                return  # the range begins past the end
            raise self._error(error, "read", key) from error
        except BotoCoreError as error:
            raise self._error(error, "read", key) from error
        with closing(answer["Body"]) as body:
            self._bucket_is_there = True
            if start > 0 and not str(answer.get("ContentRange", "")).startswith(f"bytes {start}-"):
                raise NotSupported(
                    f"object {key!r} of {self.url}: {self.place.endpoint} does not honour ranges (asked for "
                    f"{wanted['Range']}, given {answer.get('ContentRange', 'the whole')})",
                    hint="use another S3 server",
                )
            size = int(answer["ContentLength"])
            yield from self._pieces(key, body, size if length is None else min(size, length))

    def _pieces(self, key: str, body: Any, size: int) -> Iterator[bytes]:
        left = size
        while left:
            try:
                piece = body.read(min(PIECE, left))
            except BotoCoreError as error:
                raise self._error(error, "read", key) from error
            if not piece:
                raise NoAnswer(
                    f"object {key!r} of {self.url}: the answer ended {left} bytes early, after {size - left}", key=key
                )
            left -= len(piece)
            yield piece

    def _as_listed(self, prefix: str, start_after: str) -> Iterator[ObjectInfo]:
        """In the server's order."""
        start = start_before(start_after)
        after = {"StartAfter": self._prefix + start} if start > prefix else {}
        for page in self._pages("list_objects_v2", prefix, **after):
            for item in page.get("Contents", ()):
                key = item["Key"].removeprefix(self._prefix)
                if key > start_after and _is_key(key):
                    yield ObjectInfo(key=key, size=item["Size"], modified=item["LastModified"].timestamp())

    def _goes_before(self, folder: str) -> bool:
        """Whether there are keys between the folder's name and the folder."""
        full = self._prefix + folder
        try:
            answer = self._client.list_objects_v2(Bucket=self._name, Prefix=full, StartAfter=full, MaxKeys=1)
        except (BotoCoreError, ClientError) as error:
            raise self._error(error, "list", None) from error
        return any(item["Key"] < full + "/" for item in answer.get("Contents", ()))

    def _pages(self, operation: str, prefix: str, **params: str) -> Iterator[dict[str, Any]]:
        full = self._prefix + prefix
        wanted = {"Prefix": full} | params if full else params
        pages = iter(self._client.get_paginator(operation).paginate(Bucket=self._name, **wanted))
        while True:
            try:
                page = next(pages, None)
            except (BotoCoreError, ClientError) as error:
                raise self._error(error, "list", None) from error
            if page is None:
                return
            self._bucket_is_there = True
            yield page

    def _call(self, doing: str, key: str, operation: str, **params: Any) -> Any:
        try:
            answer = getattr(self._client, operation)(Bucket=self._name, **params)
        except (BotoCoreError, ClientError) as error:
            raise self._error(error, doing, key) from error
        self._bucket_is_there = True
        return answer

    def _explain(self, key: str, object_key: str) -> None:
        """Raises what a HEAD, whose answer has no body, could not say: no bucket, or wrong keys, and which fault."""
        try:
            answer = self._client.get_object(Bucket=self._name, Key=object_key, Range="bytes=0-0")
        except ClientError as error:
            self._bucket_is_there = code_of(error) == "NoSuchKey"
            if status_of(error) != 416:  # an empty object has no first byte
                raise self._error(error, "look at", key) from error
        except BotoCoreError as error:
            raise self._error(error, "look at", key) from error
        else:
            answer["Body"].close()

    def _error(self, error: Exception, doing: str, key: str | None) -> Exception:
        return s3_error(error, doing, self.place, key)

    def _object_key(self, key: str) -> str:
        object_key = self._prefix + check_key(key)
        if (size := len(object_key.encode())) > MAX_OBJECT_KEY:
            raise InvalidKey(
                f"object key {key[:300]!r}: {size} bytes with the store's prefix, S3 takes {MAX_OBJECT_KEY}", key=key
            )
        return object_key


def _is_key(text: str) -> bool:
    try:
        check_key(text)
    except InvalidKey:
        return False
    return True
