"""Files larger than a chunk: parts from disk, several at once, each with its SHA-256, sent again one by one.

Takes an open file and the hashes of its chunks. Gives an object of that size, or no object and no open upload. Next:
`zoo.store.s3.store`. Nothing rests on a condition at the completion: it is for keys that name their bytes.

Memory: PART_BYTES times `Limits.transfers`, whatever the file's size up to 80 GiB; beyond that the parts grow, since
S3 takes 10,000 of them.
"""

from __future__ import annotations

import base64
import hashlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from botocore.exceptions import BotoCoreError, ClientError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from zoo.atomic_file import storage_error
from zoo.byte_count import ByteCount, OnBytes, nobody_listens
from zoo.errors import Aborted, Cancelled, ZooError
from zoo.file_hash import CHUNK_BYTES
from zoo.store.object_store import NoAnswer, ObjectMissing, StoreBusy
from zoo.store.s3.client import Bucket
from zoo.store.s3.errors import NoUpload, WrongChecksum, s3_error, status_of

PART_BYTES = CHUNK_BYTES  # so that the manifest's chunk hashes are the parts' checksums
MAX_PARTS = 10_000
TRIES = 5  # of each part, with pauses of 0 to 0.2, 0.4, 0.8 … seconds
SETTLE_SECONDS = 5.0  # what parts under way get before an upload is aborted under them


class FileShrank(Aborted):
    """A file became shorter while it was being sent."""


@dataclass(frozen=True, kw_only=True)
class Part:
    number: int  # from 1
    start: int
    size: int
    sha256: str | None  # hex, where it is known


def plan_parts(size: int, chunks: Sequence[str] = ()) -> list[Part]:
    """The parts of a file of `size` bytes, at most 10,000; with `chunks` their checksums when the parts are chunks."""
    multiple = -(-size // (PART_BYTES * MAX_PARTS))
    part_bytes = PART_BYTES * max(multiple, 1)
    starts = range(0, size, part_bytes)
    known: Sequence[str | None] = chunks if len(chunks) == len(starts) and multiple <= 1 else [None] * len(starts)
    return [
        Part(number=number, start=start, size=min(part_bytes, size - start), sha256=known[number - 1])
        for number, start in enumerate(starts, 1)
    ]


def send_file(
    bucket: Bucket,
    key: str,
    object_key: str,
    file: BinaryIO,
    path: Path,
    chunks: Sequence[str] = (),
    on_bytes: OnBytes = nobody_listens,
) -> None:
    """Writes `file` under `object_key` (which is `key` with the store's prefix), whoever else writes it meanwhile.

    Raises FileShrank, WrongChecksum and the store's errors; after any failure, also Ctrl-C, the upload is aborted.
    """
    size = os.fstat(file.fileno()).st_size
    upload = _Upload(bucket, key, object_key, file.fileno(), path, ByteCount(size, on_bytes))
    upload.send(plan_parts(size, chunks), size)


class _Upload:
    def __init__(self, bucket: Bucket, key: str, object_key: str, descriptor: int, path: Path, sent: ByteCount) -> None:
        self._bucket = bucket
        self._client = bucket.client
        self._key = key
        self._names = {"Bucket": bucket.location.bucket, "Key": object_key}
        self._descriptor = descriptor
        self._path = path
        self._sent = sent
        self._stop = threading.Event()
        self._retrying = Retrying(
            retry=retry_if_exception_type((StoreBusy, NoAnswer, WrongChecksum)),
            stop=stop_after_attempt(TRIES),
            wait=wait_random_exponential(multiplier=0.2, max=5),
            reraise=True,
        )

    def send(self, parts: Sequence[Part], size: int) -> None:
        opened = self._retrying(self._call, "create_multipart_upload", ChecksumAlgorithm="SHA256")
        upload = str(opened["UploadId"])
        try:
            sent = self._send_parts(parts, upload)
            self._complete(sent, upload, size)
        except BaseException as error:
            self._abort(upload, error)
            raise

    def _send_parts(self, parts: Sequence[Part], upload: str) -> list[dict[str, Any]]:
        pool = ThreadPoolExecutor(min(self._bucket.limits.transfers, len(parts)), thread_name_prefix="upload")
        futures: list[Future[dict[str, Any]]] = []
        try:
            futures = [pool.submit(self._retrying.copy(), self._send_part, part, upload) for part in parts]
            return [future.result() for future in futures]
        except BaseException:
            self._stop.set()
            for future in futures:
                future.cancel()
            wait(futures, timeout=SETTLE_SECONDS)
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _send_part(self, part: Part, upload: str) -> dict[str, Any]:
        if self._stop.is_set():
            raise Cancelled(f"{self._path}: part {part.number} was not sent, since another failed")
        data = self._read(part)
        checksum = base64.b64encode(bytes.fromhex(part.sha256) if part.sha256 else hashlib.sha256(data).digest())
        answer = self._call(
            "upload_part", UploadId=upload, PartNumber=part.number, Body=data, ChecksumSHA256=checksum.decode()
        )
        self._sent.add(part.size)
        return {"PartNumber": part.number, "ETag": answer["ETag"], "ChecksumSHA256": checksum.decode()}

    def _read(self, part: Part) -> bytes:
        try:
            data = os.pread(self._descriptor, part.size, part.start)
        except OSError as error:
            raise storage_error(error, "read", self._path) from error
        if len(data) != part.size:
            raise FileShrank(
                f"{self._path}: {len(data)} bytes at {part.start}, {part.size} expected: it became shorter while it "
                "was being sent",
                hint="send it again when nobody writes to it",
            )
        return data

    def _complete(self, parts: list[dict[str, Any]], upload: str, size: int) -> None:
        """Some servers answer 200 and then an error, and a lost answer says nothing: so the object's size decides."""
        try:
            self._retrying(self._call, "complete_multipart_upload", UploadId=upload, MultipartUpload={"Parts": parts})
        except (NoAnswer, NoUpload) as error:  # NoUpload: a try whose answer was lost completed it
            if self._size() != size:
                raise error if isinstance(error, NoAnswer) else NoAnswer(error.message, hint=error.hint) from error
            return
        if (found := self._size()) != size:
            raise NoAnswer(
                f"object {self._key!r} of {self._bucket.location.url}: the server says that the upload is complete, "
                f"but the object has {'no' if found is None else found} bytes instead of {size}",
                key=self._key,
            )

    def _size(self) -> int | None:
        """The object's, or None when there is none."""
        try:
            return int(self._retrying(self._call, "head_object")["ContentLength"])
        except ObjectMissing:
            return None

    def _abort(self, upload: str, failure: BaseException) -> None:
        try:
            self._retrying(self._call, "abort_multipart_upload", UploadId=upload)
        except (NoUpload, ObjectMissing):
            return
        except ZooError as error:  # what made the upload fail is what the user must see; gc finds the rest
            failure.add_note(f"the unfinished upload {upload} of {self._key!r} could not be removed: {error.message}")

    def _call(self, operation: str, **params: Any) -> Any:
        try:
            return getattr(self._client, operation)(**self._names, **params)
        except ClientError as error:
            if operation == "complete_multipart_upload" and status_of(error) == 404:
                raise NoUpload(f"the upload of {self._key!r} is not open any more") from error
            raise s3_error(error, "write", self._bucket.place, self._key) from error
        except BotoCoreError as error:
            raise s3_error(error, "write", self._bucket.place, self._key) from error
