"""What S3 servers may do wrong, and how S3Store takes it: on a stand-in, since SeaweedFS does none of it on demand."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.zoo.s3_stand_in import Answer, Plan, Request, StandIn, standing_in
from zoo.errors import ZooError
from zoo.store import open_store
from zoo.store.object_store import NoAnswer, ObjectExists, ObjectMissing, StoreBusy
from zoo.store.probe import UnsoundStore, probe, require_sound
from zoo.store.s3 import errors, open_s3
from zoo.store.s3.client import Limits, connect, parse_location
from zoo.store.s3.errors import Place, s3_error
from zoo.store.s3.store import S3Store
from zoo.store.s3.upload import plan_parts

MIB = 1 << 20
Start = Callable[..., StandIn]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    with ExitStack() as stack:

        def started(**settings: Any) -> StandIn:
            server = stack.enter_context(standing_in(**settings))
            for name, value in server.environment().items():
                monkeypatch.setenv(name, value)
            return server

        yield started


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes(bytes(range(256)) * (20 * MIB // 256) + b"end")  # three parts
    return path


def on(method: str, kind: str, answer: Answer, *, times: int = 10**9) -> Plan:
    """Answers the first `times` requests of that kind so."""

    def plan(request: Request) -> Answer | None:
        return answer if (request.method, request.kind) == (method, kind) and request.number < times else None

    return plan


def store() -> S3Store:
    return open_s3("bucket/p")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Answer(status=412, code="PreconditionFailed"), ObjectExists),
        (Answer(status=409, code="ConditionalRequestConflict"), StoreBusy),
        (Answer(status=503, code="SlowDown"), StoreBusy),
        (Answer(status=429), StoreBusy),
        (Answer(status=503, code="ServiceUnavailable"), NoAnswer),
        (Answer(status=503, body=b"<html>proxy</html>"), NoAnswer),
        (Answer(status=500, code="InternalError"), NoAnswer),
        (Answer(status=502), NoAnswer),
        (Answer(status=504), NoAnswer),
        (Answer(close=True), NoAnswer),
        (Answer(close=True, after=True), NoAnswer),
        (Answer(status=400, code="EntityTooLarge"), errors.ObjectTooLarge),
        (Answer(status=507, code="InsufficientStorage"), errors.StoreFull),
        (Answer(status=403, code="QuotaExceeded"), errors.StoreFull),
        (Answer(status=403, code="AccessDenied"), errors.NotAllowed),
        (Answer(status=400, code="XAmzContentSHA256Mismatch"), errors.WrongChecksum),
        (Answer(status=501, code="NotImplemented"), errors.NotSupported),
        (Answer(status=418, code="Teapot"), errors.Refused),
    ],
)
def test_each_end_of_a_write(start: Start, answer: Answer, kind: type[ZooError]) -> None:
    server = start(plan=on("PUT", "object", answer))
    with pytest.raises(ZooError) as caught:
        store().create("k", b"data")
    assert type(caught.value) is kind
    assert "'k'" in caught.value.message
    assert "s3://bucket/p" in caught.value.message
    assert server.count("PUT", "object") == 1  # never sent again down here: who asked must settle it
    assert ("p/k" in server.objects) == answer.after


def error_of(code: str, status: int) -> ClientError:
    answer = {"Error": {"Code": code, "Message": "told"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(answer, "GetObject")


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("PermanentRedirect", 301, errors.WrongRegion),
        ("AuthorizationHeaderMalformed", 400, errors.WrongRegion),
        ("ExpiredToken", 400, errors.WrongKeys),
        ("404", 404, ObjectMissing),
        ("403", 403, errors.NotAllowed),
        ("NoSuchBucket", 404, errors.NoBucket),
        ("Odd", 599, NoAnswer),
    ],
)
def test_the_table(code: str, status: int, kind: type[ZooError]) -> None:
    place = Place(url="s3://b/p", bucket="b", endpoint="http://here")
    found = s3_error(error_of(code, status), "read", place, "k")
    assert type(found) is kind
    assert found.details["endpoint"] == "http://here"


def test_a_server_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        for name, value in (StandIn().environment() | {"AWS_ENDPOINT_URL_S3": address}).items():
            monkeypatch.setenv(name, value)
        hanging = S3Store(connect(parse_location("bucket/p"), Limits(read_seconds=0.3)))
        started = time.monotonic()
        for call in (lambda: hanging.create("k", b""), lambda: hanging.read("k"), lambda: list(hanging.list(""))):
            with pytest.raises(NoAnswer, match="Read timeout"):
                call()
        assert time.monotonic() - started < 10


def test_a_body_that_ends_early(start: Start) -> None:
    data = bytes(range(256)) * (3 * MIB // 256)
    server = start(plan=on("GET", "object", Answer(cut=MIB + MIB // 2), times=1), objects={"p/k": data})
    pieces: list[bytes] = []
    with pytest.raises(NoAnswer):
        pieces.extend(store().stream("k"))
    assert 0 < sum(map(len, pieces)) < len(data)
    assert data.startswith(b"".join(pieces))
    assert max(map(len, pieces)) <= MIB
    server.plan = lambda request: Answer(cut=MIB) if request.method == "GET" and request.number < 4 else None
    assert open_store("s3://bucket/p").read("k") == data  # goes on at its offset
    server.plan = on("GET", "object", Answer(cut=10))
    with pytest.raises(NoAnswer):
        store().read("k", start=5, length=100)


def test_a_download_that_breaks_leaves_no_file(start: Start, tmp_path: Path) -> None:
    start(plan=on("GET", "object", Answer(cut=1000)), objects={"p/k": bytes(5000)})
    with pytest.raises(NoAnswer):
        store().download("k", tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_ignores_ranges_is_found_out(start: Start) -> None:
    start(honours_ranges=False, objects={"p/k": b"0123456789"})
    assert store().read("k", length=3) == b"012"  # no harm done
    with pytest.raises(errors.NotSupported, match="does not honour ranges"):
        store().read("k", start=3, length=3)


def test_a_bucket_without_create_only_writes_is_refused(start: Start, tmp_path: Path) -> None:
    start(honours_conditions=False)
    faults = probe(store()).faults
    assert any("If-None-Match" in fault for fault in faults)
    assert any("in a race" in fault for fault in faults)
    with pytest.raises(UnsoundStore, match="at http:"):
        require_sound(open_store("s3://bucket/p"), tmp_path, None)


def test_a_sound_stand_in_passes_the_probe(start: Start) -> None:
    server = start()
    assert probe(store()).faults == ()
    assert server.objects == {}


def test_garbage_for_an_answer(start: Start) -> None:
    start(plan=on("GET", "list", Answer(body=b"<html>log in first<br></html>")))
    with pytest.raises(NoAnswer):
        list(store().list(""))


class TestParts:
    @pytest.mark.parametrize("size", [8 * MIB + 1, 16 * MIB, 80_000 * MIB, 80_000 * MIB + 1, 5 * MIB * MIB])
    def test_they_cover_the_file_and_are_at_most_ten_thousand(self, size: int) -> None:
        parts = plan_parts(size)
        assert [part.number for part in parts] == list(range(1, len(parts) + 1))
        assert len(parts) <= 10_000
        at = 0
        for part in parts:
            assert part.start == at
            at += part.size
        assert at == size
        assert all(part.size == parts[0].size for part in parts[:-1])
        assert parts[0].size % (8 * MIB) == 0
        assert parts[0].size == 8 * MIB or size > 80_000 * MIB

    def test_chunk_hashes_are_used_only_where_parts_are_chunks(self) -> None:
        assert [part.sha256 for part in plan_parts(20 * MIB, ["a", "b", "c"])] == ["a", "b", "c"]
        assert {part.sha256 for part in plan_parts(20 * MIB, ["a", "b"])} == {None}
        chunks = ["a"] * 20_000
        assert {part.sha256 for part in plan_parts(160_000 * MIB, chunks)} == {None}


class TestUploads:
    @pytest.mark.parametrize(
        "answer", [Answer(status=500, code="InternalError"), Answer(status=503, code="SlowDown"), Answer(close=True)]
    )
    def test_only_the_part_that_failed_is_sent_again(self, start: Start, big: Path, answer: Answer) -> None:
        server = start(plan=on("PUT", "part", answer, times=1))
        store().create_from_file("k", big)
        assert server.objects["p/k"] == big.read_bytes()
        assert server.count("PUT", "part") == 4
        assert server.uploads == {}

    def test_what_is_there_is_not_sent_again(self, start: Start, big: Path) -> None:
        server = start(objects={"p/k": b"whatever"})
        with pytest.raises(ObjectExists):
            store().create_from_file("k", big)
        assert {request.method for request in server.seen} == {"HEAD"}

    @pytest.mark.parametrize("status", [403, 500])
    def test_an_upload_that_fails_is_aborted(self, start: Start, big: Path, status: int) -> None:
        code = {403: "AccessDenied", 500: "InternalError"}[status]
        server = start(plan=lambda r: Answer(status=status, code=code) if r.kind == "part" and r.number > 0 else None)
        with pytest.raises(errors.NotAllowed if status == 403 else NoAnswer):
            store().create_from_file("k", big)
        assert server.count("DELETE", "abort") == 1
        assert (server.uploads, server.objects) == ({}, {})

    def test_an_abort_that_fails_is_noted_and_found_later(self, start: Start, big: Path) -> None:
        def plan(request: Request) -> Answer | None:
            return Answer(status=403, code="AccessDenied") if request.kind in ("part", "abort") else None

        server = start(plan=plan)
        with pytest.raises(errors.NotAllowed) as caught:
            store().create_from_file("k", big)
        assert "could not be removed" in caught.value.__notes__[0]
        server.plan = lambda request: None
        (left,) = store().leftovers("")
        assert left.key == "k"
        store().remove_leftover(left)
        store().remove_leftover(left)
        assert server.uploads == {}

    def test_200_with_an_error_inside_and_no_object(self, start: Start, big: Path) -> None:
        server = start(plan=on("POST", "complete", Answer(status=200, code="InternalError")))
        with pytest.raises(NoAnswer):
            store().create_from_file("k", big)
        assert (server.uploads, server.objects) == ({}, {})

    @pytest.mark.parametrize("answer", [Answer(code="InternalError", after=True), Answer(close=True, after=True)])
    def test_a_completion_whose_answer_says_nothing_is_settled_by_the_object(
        self, start: Start, big: Path, answer: Answer
    ) -> None:
        server = start(plan=on("POST", "complete", answer, times=1))
        store().create_from_file("k", big)
        assert server.objects["p/k"] == big.read_bytes()

    def test_a_completion_that_lies(self, start: Start, big: Path) -> None:
        start(plan=on("POST", "complete", Answer(body=b"<CompleteMultipartUploadResult/>")))
        with pytest.raises(NoAnswer, match="no bytes instead of"):
            store().create_from_file("k", big)

    def test_a_file_that_shrinks(self, start: Start, big: Path) -> None:
        def plan(request: Request) -> Answer | None:
            if request.kind == "open":
                with big.open("r+b") as file:
                    file.truncate(9 * MIB)
            return None

        server = start(plan=plan)
        with pytest.raises(ZooError, match="became shorter") as caught:
            store().create_from_file("k", big)
        assert caught.value.code == "ABORTED"
        assert (server.uploads, server.objects) == ({}, {})
