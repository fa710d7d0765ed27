"""A little S3 server that does what SeaweedFS won't: ignores conditions, cuts bodies, answers 200 with an error inside.

It tests how faults are taken; what S3 servers really do is tested on SeaweedFS.
"""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

STAMP = "2026-01-01T00:00:00.000Z"
HTTP_STAMP = "Thu, 01 Jan 2026 00:00:00 GMT"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What is sent instead of, or (`after`) in place of the answer to, a request that was carried out."""

    status: int = 200
    code: str = ""  # of an <Error> body
    body: bytes = b""
    after: bool = False  # the request is carried out, then this is answered
    close: bool = False  # no answer at all
    cut: int | None = None  # of the true answer's body only so many bytes


Plan = Callable[["Request"], Answer | None]


@dataclass(frozen=True, kw_only=True)
class Request:
    method: str
    kind: str  # object, list, open, part, complete, abort, uploads
    key: str
    number: int  # how many of this method and kind there were before


@dataclass(kw_only=True)
class StandIn:
    """Its memory, and what it is to do wrong."""

    plan: Plan = lambda request: None
    honours_conditions: bool = True
    honours_ranges: bool = True
    objects: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)
    seen: list[Request] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)
    port: int = 0

    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "AK",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def count(self, method: str, kind: str) -> int:
        with self.lock:
            return sum(request.method == method and request.kind == kind for request in self.seen)


@contextmanager
def standing_in(**settings: Any) -> Iterator[StandIn]:
    state = StandIn(**settings)
    handler = type("Handler", (_Handler,), {"state": state})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        state.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: ClassVar[StandIn]

    def log_message(self, *_: Any) -> None:
        """Says nothing."""

    def _any(self) -> None:
        url = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        self.key = unquote(url.path).split("/", 2)[2] if url.path.count("/") > 1 else ""
        self.data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        state = self.state
        with state.lock:
            kind = self._kind()
            request = Request(method=self.command, kind=kind, key=self.key, number=state.count(self.command, kind))
            state.seen.append(request)
        fault = state.plan(request)
        if fault is None or fault.after or fault.cut is not None:
            with state.lock:
                status, headers, body = getattr(self, f"_{kind}")()
            if fault is None or fault.cut is not None:
                self._send(status, headers, body, None if fault is None else fault.cut)
                return
        if fault.close:
            self.close_connection = True
            return
        told = f"<Error><Code>{fault.code}</Code><Message>told so</Message></Error>".encode() if fault.code else b""
        self._send(fault.status, {"Content-Type": "application/xml"}, fault.body or told, None)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _any

    def _kind(self) -> str:
        if "uploads" in self.query:
            return "open" if self.command == "POST" else "uploads"
        if "uploadId" in self.query:
            return {"PUT": "part", "POST": "complete", "DELETE": "abort"}[self.command]
        return "object" if self.key else "list"

    def _send(self, status: int, headers: dict[str, str], body: bytes, cut: int | None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            self.close_connection = True

    def _object(self) -> tuple[int, dict[str, str], bytes]:
        objects = self.state.objects
        if self.command == "PUT":
            if self.state.honours_conditions and self.headers.get("If-None-Match") and self.key in objects:
                return _fault(412, "PreconditionFailed")
            objects[self.key] = self.data
            return 200, {"ETag": '"e"'}, b""
        if self.command == "DELETE":
            objects.pop(self.key, None)
            return 204, {}, b""
        if self.key not in objects:
            return _fault(404, "NoSuchKey")
        data, headers, status = objects[self.key], {"ETag": '"e"', "Last-Modified": HTTP_STAMP}, 200
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and self.state.honours_ranges:
            start = int(wanted[1])
            if start >= len(data):
                return _fault(416, "InvalidRange")
            piece = data[start : int(wanted[2]) + 1 if wanted[2] else None]
            headers["Content-Range"] = f"bytes {start}-{start + len(piece) - 1}/{len(data)}"
            data, status = piece, 206
        return status, headers, data

    def _list(self) -> tuple[int, dict[str, str], bytes]:
        prefix, after = self.query.get("prefix", ""), self.query.get("start-after", "")
        items = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>{STAMP}</LastModified><Size>{len(data)}</Size></Contents>"
            for key, data in sorted(self.state.objects.items())
            if key.startswith(prefix) and key > after
        )
        return _xml(f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>")

    def _uploads(self) -> tuple[int, dict[str, str], bytes]:
        items = "".join(
            f"<Upload><Key>{escape(upload.partition(':')[2])}</Key><UploadId>{escape(upload)}</UploadId>"
            f"<Initiated>{STAMP}</Initiated></Upload>"
            for upload in self.state.uploads
        )
        return _xml(f"<ListMultipartUploadsResult><IsTruncated>false</IsTruncated>{items}</ListMultipartUploadsResult>")

    def _open(self) -> tuple[int, dict[str, str], bytes]:
        upload = f"{len(self.state.seen)}:{self.key}"
        self.state.uploads[upload] = {}
        return _xml(
            f"<InitiateMultipartUploadResult><UploadId>{escape(upload)}</UploadId></InitiateMultipartUploadResult>"
        )

    def _part(self) -> tuple[int, dict[str, str], bytes]:
        base64.b64decode(self.headers["x-amz-checksum-sha256"], validate=True)
        self.state.uploads[self.query["uploadId"]][int(self.query["partNumber"])] = self.data
        return 200, {"ETag": '"p"'}, b""

    def _complete(self) -> tuple[int, dict[str, str], bytes]:
        parts = self.state.uploads.pop(self.query["uploadId"], None)
        if parts is None:
            return _fault(404, "NoSuchUpload")
        self.state.objects[self.key] = b"".join(parts[number] for number in sorted(parts))
        return _xml("<CompleteMultipartUploadResult><ETag>e</ETag></CompleteMultipartUploadResult>")

    def _abort(self) -> tuple[int, dict[str, str], bytes]:
        if self.state.uploads.pop(self.query["uploadId"], None) is None:
            return _fault(404, "NoSuchUpload")
        return 204, {}, b""


def _xml(text: str) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/xml"}, f'<?xml version="1.0"?>{text}'.encode()


def _fault(status: int, code: str) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/xml"}, f"<Error><Code>{code}</Code></Error>".encode()
