"""The whole path over gRPC, with real processes. The tests share one server and run in this order."""

from __future__ import annotations

import os
import re
import signal
import stat
import struct
import time
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from finetune.client import RequestTooLarge, ServerUnreachable, ZooClient
from finetune.jobs.queue import JobQueue
from finetune.jobs.tables import default_queue_url
from finetune.models.decoding_options import DecodingRequest
from protos.modelzoo.v1 import catalog_pb2, catalog_pb2_grpc
from tests.server.conftest import JOB, RunningServer
from zoo.describe import describe
from zoo.errors import FailedPrecondition, InvalidArgument, NotFound, Unauthenticated, ZooError


def states(events: list[dict[str, Any]]) -> list[str]:
    return [event["state"] for event in events if event["kind"] == "state"]


def refusal(call: Any) -> ZooError:
    with pytest.raises(ZooError) as caught:
        call()
    return caught.value


def test_a_ready_server_says_where_it_is_and_keeps_its_token_to_its_user(server: RunningServer) -> None:
    assert re.fullmatch(r"127\.0\.0\.1:[1-9]\d+", server.ready["address"])
    token_file = Path(server.ready["token_file"])
    assert token_file.is_relative_to(server.home)
    assert stat.S_IMODE(token_file.stat().st_mode) == 0o600


def test_without_the_token_nothing_is_told(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for token in ("wrong", ""):
        with ZooClient(server.address, token) as client:
            for call in (client.list_models, lambda: list(client.watch_job("x")), lambda: client.embed("tiny", [b"x"])):
                assert isinstance(refusal(call), Unauthenticated)
    monkeypatch.setenv("MODELZOO_HOME", str(server.home))  # the client of the same user finds the file by itself
    with ZooClient(server.address) as client:
        assert [model["name"] for model in client.list_models()]


def test_health_and_reflection_are_open(server: RunningServer) -> None:
    with grpc.insecure_channel(server.ready["health_address"]) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "modelzoo.v1.Catalog", "modelzoo.v1.FineTune", "modelzoo.v1.Inference"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = stub.ServerReflectionInfo(iter([request]))
        names = {service.name for service in answer.list_services_response.service}
    assert names >= {"modelzoo.v1.Catalog", "modelzoo.v1.FineTune", "modelzoo.v1.Inference", "grpc.health.v1.Health"}


def test_the_catalogue_tells_the_same_as_locally(server: RunningServer, client: ZooClient) -> None:
    assert client.get_version("tiny@1") == describe(server.catalog.get("tiny"))
    assert [model["reference"] for model in client.list_models()] == ["tiny@1"]
    error = refusal(lambda: client.get_version("tinny"))
    assert isinstance(error, NotFound)
    assert (error.reason, error.details["name"]) == ("UnknownModel", "tinny")
    assert "tiny" in error.message
    assert isinstance(refusal(lambda: client.get_version("no such name")), InvalidArgument)


def test_a_raw_call_carries_a_status_and_error_info(server: RunningServer) -> None:
    from google.rpc import error_details_pb2
    from grpc_status import rpc_status

    token = Path(server.ready["token_file"]).read_text().strip()
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        catalog_pb2_grpc.CatalogStub(channel).GetVersion(
            catalog_pb2.GetVersionRequest(reference="nope"), metadata=[("authorization", f"Bearer {token}")]
        )
    status = rpc_status.from_call(caught.value)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain, info.metadata["hint"]) == ("UnknownModel", "modelzoo", "zoo list")


@pytest.mark.parametrize(
    ("change", "reason", "said"),
    [
        ({"backbone": "unheard"}, "UnknownModel", "unheard"),
        ({"settings": {"train.stepz": "9"}}, "InvalidSpec", "did you mean steps"),
        ({"settings": {"train.steps": "0"}}, "InvalidSpec", "train.steps"),
        ({"name": "no name"}, "InvalidName", "no name"),
        ({"head": "oracle"}, "InvalidSpec", "oracle"),
        ({"recipe": "nope"}, "InvalidSpec", "nope"),
        ({"data": "flickr:/etc"}, "DataNotOnServer", "local path"),
        ({"data": "flickr:photos/../../x"}, "DataNotOnServer", "local path"),
        ({"data": "flickr:absent"}, "UnknownData", "photos"),
        ({"data": "scenes:", "settings": {"data.split": "file:/etc/passwd"}}, "DataNotOnServer", "local path"),
    ],
)
def test_a_request_that_cannot_be_right_is_refused_before_there_is_a_job(
    client: ZooClient, change: dict[str, Any], reason: str, said: str
) -> None:
    error = refusal(lambda: client.create_job(**({"name": "refused"} | JOB | change)))  # type: ignore[arg-type]
    assert error.reason == reason
    assert said in error.message
    assert list(client.list_jobs(name="refused")) == []


def test_a_fine_tune_through_the_server_from_request_to_caption(
    server: RunningServer, client: ZooClient, png: bytes
) -> None:
    job = client.create_job(name="cap", **JOB)  # type: ignore[arg-type]
    assert (job["state"], job["spec"]["train"]["steps"]) == ("QUEUED", 40)
    assert client.create_job(name="cap", **JOB)["id"] == job["id"]  # type: ignore[arg-type]
    other = JOB | {"settings": {"train.steps": "41"}}
    error = refusal(lambda: client.create_job(name="cap", **other))  # type: ignore[arg-type]
    assert isinstance(error, FailedPrecondition)
    assert "train.steps: 40 → 41" in error.message
    events = list(client.watch_job(job["id"]))
    ended = events[-1]["job_ended"]
    assert ended["state"] == "SUCCEEDED", ended["error"]
    assert states(events) == ["QUEUED", "STARTING", "RUNNING", "PUBLISHING", "SUCCEEDED"]
    began = next(event for event in events if event["kind"] == "role")
    assert (began["message"], began["role"]) == ("chief started", "chief")
    assert any(event["progress"] for event in events)
    assert ended == client.get_job(job["id"])
    roles = ended.pop("roles")
    assert [(one["role"], one["state"], one["starts"]) for one in roles] == [
        ("chief", "done", 1),
        ("evaluator", "done", 1),
    ]
    assert ended == client.create_job(name="cap", **JOB)  # type: ignore[arg-type]
    ended["roles"] = roles
    assert ended["result"]["reference"] == "cap@1"
    assert ended["result"]["metrics"]["validation"]["loss"] > 0

    middle = events[len(events) // 2]["cursor"]
    rest = list(client.watch_job(job["id"], after_cursor=middle))
    assert rest == events[len(events) // 2 + 1 :]
    (once_more,) = client.watch_job(job["id"], after_cursor=events[-1]["cursor"])
    assert once_more["job_ended"] == ended

    version = client.get_version("cap")
    assert version == describe(server.catalog.get("cap@1"))
    assert (version["lineage"]["parent"], version["lineage"]["job"]) == ("tiny@1", job["id"])


def test_an_evaluation_through_the_server_says_what_the_run_said(server: RunningServer, client: ZooClient) -> None:
    found = client.evaluate("cap", split="validation")
    run = client.get_version("cap")["metrics"]["validation"]
    assert (found["reference"], found["split"], found["bad_records"]) == ("cap@1", "validation", [])
    assert found["num_examples"] > 0
    for name in ("loss", "bleu_4", "cider"):
        assert found["metrics"][name] == pytest.approx(run[name], abs=1e-5)
    other = client.evaluate("cap", data="scenes:count=40,seed=9", split="all")
    assert other["num_examples"] == 40


@pytest.mark.parametrize(
    ("asked", "reason", "said"),
    [
        ({"reference": "unheard"}, "UnknownModel", "unheard"),
        ({"reference": "tiny", "data": "scenes:"}, "NoHead", "backbone only"),
        ({"split": "half"}, "InvalidArgument", "train, validation, test, all"),
        ({"data": "flickr:/etc"}, "DataNotOnServer", "local path"),
        ({"settings": {"data.location": "flickr:/etc"}}, "InvalidSpec", "data.location"),
        ({"settings": {"data.split": "file:/etc/passwd"}}, "DataNotOnServer", "local path"),
        ({"settings": {"train.steps": "3"}}, "InvalidSpec", "settings of the data only"),
    ],
)
def test_an_evaluation_that_cannot_be_right_is_refused(
    client: ZooClient, asked: dict[str, Any], reason: str, said: str
) -> None:
    error = refusal(lambda: client.evaluate(**({"reference": "cap"} | asked)))  # type: ignore[arg-type]
    assert error.reason == reason
    assert said in error.message


def test_captions(server: RunningServer, client: ZooClient, png: bytes) -> None:
    answer = client.caption("cap", [png, png], beam_size=2)
    longer = client.caption("cap", [png], decoding=DecodingRequest(sample=True, beam_size=3, min_words=2, seed=1))
    assert len(longer.captions[0]) == 3
    assert all(len(caption.text.split()) >= 2 for caption in longer.captions[0])
    assert answer.reference == "cap@1"
    assert len(answer.captions) == 2
    assert answer.captions[0][0].text == answer.captions[1][0].text != ""
    assert answer.captions[0][0].log_prob < 0
    assert 0 < answer.milliseconds <= answer.server_milliseconds
    assert len(client.embed("cap", [png]).embeddings[0]) == 160

    error = refusal(lambda: client.caption("tiny", [png]))
    assert isinstance(error, FailedPrecondition)
    assert "tiny@1 has a backbone only, no captioner head" in error.message
    assert "has a captioner head, no classifier head" in refusal(lambda: client.classify("cap", [png])).message
    assert isinstance(refusal(lambda: client.caption("unheard", [png])), NotFound)
    assert isinstance(refusal(lambda: client.caption("cap", [png], beam_size=99)), InvalidArgument)
    drawn = refusal(lambda: client.caption("cap", [png], decoding=DecodingRequest(top_k=3)))
    assert isinstance(drawn, InvalidArgument)
    assert "words are searched for" in drawn.message
    assert isinstance(refusal(lambda: client.caption("cap", [png] * 65)), InvalidArgument)
    assert isinstance(refusal(lambda: client.caption("cap", [])), InvalidArgument)


def huge_png() -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + b"\0" * 64


@pytest.mark.parametrize(
    ("bad", "said"),
    [(b"", "zero bytes"), (b"just some words", "not an image"), (huge_png(), "10000 × 10000"), (None, "truncated")],
    ids=["empty", "no image", "100 megapixels", "truncated"],
)
def test_a_bad_image_is_named_and_harms_nobody(client: ZooClient, png: bytes, bad: bytes | None, said: str) -> None:
    error = refusal(lambda: client.caption("cap", [png, png[:80] if bad is None else bad]))
    assert isinstance(error, InvalidArgument)
    assert error.message.startswith("image 2: ")
    assert said in error.message.replace(",", "")
    assert error.details["image"] == "1"
    assert client.caption("cap", [png]).captions[0]


def test_a_message_beyond_the_limit_is_refused_with_the_limit(server: RunningServer, client: ZooClient) -> None:
    error = refusal(lambda: client.caption("cap", [b"x" * (64 * 2**20)]))
    assert error.reason == RequestTooLarge.__name__
    assert "67,108,864" in error.message
    with server.client(max_message_bytes=2**31 - 1) as careless:
        error = refusal(lambda: careless.caption("cap", [b"x" * (65 * 2**20)]))
    assert error.code == "RESOURCE_EXHAUSTED"
    assert str(64 * 2**20) in error.message


def test_a_model_process_that_dies_is_started_again(server: RunningServer, client: ZooClient, png: bytes) -> None:
    before = client.caption("cap", [png])
    (process,) = model_processes(server, "cap@1")
    process.kill()
    after = client.caption("cap", [png])
    assert after.captions == before.captions
    (another,) = model_processes(server, "cap@1")
    assert another.pid != process.pid


def test_a_call_whose_deadline_has_passed_says_so(client: ZooClient, png: bytes) -> None:
    assert refusal(lambda: client.caption("cap", [png], timeout=1e-4)).code == "DEADLINE_EXCEEDED"
    assert client.caption("cap", [png]).captions


def test_cancelling_a_running_job(client: ZooClient) -> None:
    long = JOB | {"settings": {"train.steps": "1000000"}}
    job = client.create_job(name="long", **long)  # type: ignore[arg-type]
    events = []
    for event in client.watch_job(job["id"]):
        events.append(event)
        if event["state"] == "RUNNING" and event["kind"] == "state":
            assert client.cancel_job(job["id"])["state"] == "CANCELLING"
    assert states(events)[-2:] == ["CANCELLING", "CANCELLED"]
    assert isinstance(refusal(lambda: client.cancel_job(job["id"])), FailedPrecondition)
    assert isinstance(refusal(lambda: client.get_version("long")), NotFound)
    assert isinstance(refusal(lambda: client.cancel_job("unheard")), NotFound)
    deadline = time.monotonic() + 10
    while job_processes(job["id"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert job_processes(job["id"]) == []


def test_a_job_outlives_the_server_and_is_published_once(server: RunningServer, client: ZooClient, png: bytes) -> None:
    job = client.create_job(name="survivor", **JOB)  # type: ignore[arg-type]
    cursors = []

    def watch() -> None:
        for event in client.watch_job(job["id"]):
            cursors.append(event["cursor"])
            if event["progress"] and event["progress"]["phase"] != "starting":
                server.kill()

    assert isinstance(refusal(watch), ServerUnreachable)
    cursor = cursors[-1]
    assert job_processes(job["id"]), "the job's processes died with the server"
    assert isinstance(refusal(client.list_models), ServerUnreachable)
    assert wait_for(lambda: model_processes(server, "cap@1") == []), "a model's process outlived its server"

    server.start()
    with server.client() as second:
        events = list(second.watch_job(job["id"], after_cursor=cursor))
        ended = events[-1]["job_ended"]
        assert ended["state"] == "SUCCEEDED", ended["error"]
        assert (ended["attempts"], ended["result"]["reference"]) == (1, "survivor@1")
        assert second.caption("survivor", [png]).captions[0]
    assert [version.number for version in server.catalog.versions("survivor")] == [1]
    with closing(JobQueue(default_queue_url(server.store_url))) as queue:
        seen = [event.cursor for event in queue.events(job["id"])]
    assert [event["cursor"] for event in events] == [number for number in seen if number > cursor]


def test_a_job_whose_supervisor_is_killed_is_taken_up_again(server: RunningServer) -> None:
    with server.client() as client:
        job = client.create_job(name="orphan", **JOB)  # type: ignore[arg-type]
        attempts = 0
        for event in client.watch_job(job["id"]):
            if event["kind"] == "state" and event["state"] == "RUNNING":
                attempts += 1
                if attempts == 1:
                    (supervisor,) = [p for p in job_processes(job["id"]) if "finetune.jobs.supervise" in p.cmdline()]
                    os.kill(supervisor.pid, signal.SIGKILL)
        ended = event["job_ended"]
        assert (ended["state"], ended["attempts"], ended["fence"]) == ("SUCCEEDED", 2, 2), ended["error"]
    assert [version.number for version in server.catalog.versions("orphan")] == [1]


def test_the_front_process_never_imports_a_framework(server: RunningServer) -> None:
    """Last: it stops the server that has served all of the above, and the models' processes end with it."""
    assert server.process is not None
    children = psutil.Process(server.process.pid).children(recursive=True)
    assert server.stop() == []
    _gone, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


def job_processes(job_id: str) -> list[psutil.Process]:
    return processes(lambda command: any(job_id in word for word in command))


def model_processes(server: RunningServer, reference: str) -> list[psutil.Process]:
    return processes(
        lambda command: "server.model_process" in command and {server.store_url, reference} <= set(command)
    )


def processes(matches: Any) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if process.info["status"] != psutil.STATUS_ZOMBIE and matches(process.info["cmdline"] or []):
            found.append(process)
    return found


def wait_for(condition: Any, seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
