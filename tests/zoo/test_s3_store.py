"""S3Store on a real server: the contract, and what goes wrong with keys, buckets, clocks, networks and crashes."""

from __future__ import annotations

import datetime
import hashlib
import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import botocore.auth
import pytest

from tests.seaweed import Seaweed, running_seaweed
from tests.zoo.store_contract import MakeStore, StoreContract
from zoo.errors import ZooError
from zoo.file_hash import hash_file
from zoo.store import open_store
from zoo.store.object_store import InvalidKey, Leftover, ObjectExists, ObjectMissing, ObjectStore
from zoo.store.probe import ReadOnlyStore, require_sound
from zoo.store.s3 import open_s3
from zoo.store.s3.client import Limits, connect, parse_location
from zoo.store.s3.errors import (
    BadSettings,
    ClockSkew,
    NoBucket,
    NoConnection,
    NoKeys,
    NotAllowed,
    WrongChecksum,
    WrongKeys,
)
from zoo.store.s3.store import S3Store

MIB = 1 << 20


class TestS3Store(StoreContract):
    race_writers, race_rounds = 4, 6  # of three or more writers the server lets the losers wait, often a second

    @pytest.fixture
    def make_store(self, s3_url: str) -> MakeStore:
        store = open_at(s3_url)
        return lambda: store


def open_at(url: str) -> S3Store:
    return open_s3(url.removeprefix("s3://"))


def calls(store: ObjectStore, file: Path) -> dict[str, Callable[[], Any]]:
    """One call of each method."""
    return {
        "stat": lambda: store.stat("k"),
        "read": lambda: store.read("k"),
        "stream": lambda: list(store.stream("k", start=1)),
        "list": lambda: list(store.list("")),
        "folders": lambda: list(store.folders("")),
        "leftovers": lambda: list(store.leftovers("")),
        "create": lambda: store.create("k2", b""),
        "put": lambda: store.put("k2", b""),
        "create_from_file": lambda: store.create_from_file("k3", file),
        "delete": lambda: store.delete("k2"),
        "remove_leftover": lambda: store.remove_leftover(Leftover(key="k", id="x", size=None, modified=0)),
    }


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes(os.urandom(MIB) * 20 + b"end")  # three parts
    return path


def every_call_raises(kind: type[ZooError], url: str, file: Path, match: str = "") -> None:
    for name, call in calls(open_at(url), file).items():
        with pytest.raises(kind, match=match) as caught:
            call()
        assert caught.value.hint, name


class TestWhatIsRefused:
    def test_wrong_keys(self, s3_url: str, big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKNOBODY")
        every_call_raises(WrongKeys, s3_url, big, "InvalidAccessKeyId")

    def test_wrong_secret(self, s3_url: str, big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        every_call_raises(WrongKeys, s3_url, big, "SignatureDoesNotMatch")

    def test_no_keys(self, s3_url: str, big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        every_call_raises(NoKeys, s3_url, big, "no access keys")

    @pytest.mark.usefixtures("s3_url")
    def test_no_bucket(self, big: Path) -> None:
        every_call_raises(NoBucket, "s3://nobodys-bucket/x", big, "no bucket 'nobodys-bucket' at http://")

    def test_no_network(self, s3_url: str, big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with socket.socket() as taken:  # bound, not listening: nobody else gets the port meanwhile
            taken.bind(("127.0.0.1", 0))
            address = f"http://127.0.0.1:{taken.getsockname()[1]}"
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
            every_call_raises(NoConnection, s3_url, big, address)

    def test_clock_skew(self, s3_url: str, big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        now = botocore.auth.get_current_datetime
        late = datetime.timedelta(hours=2)
        monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *a, **k: now(*a, **k) + late)
        every_call_raises(ClockSkew, s3_url, big, "this machine says .* GMT, the server .* GMT")

    @pytest.mark.parametrize("address", ["nonsense", "ftp://here", "http://"])
    def test_an_endpoint_that_is_none(self, s3_url: str, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", address)
        with pytest.raises(BadSettings):
            open_at(s3_url)

    def test_a_profile_that_is_none(self, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_PROFILE", "nobody")
        with pytest.raises(BadSettings, match="nobody"):
            open_at(s3_url)

    def test_a_read_only_bucket(
        self, seaweed: Seaweed, s3_url: str, big: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        open_at(s3_url).create("k", b"data")
        for name, value in seaweed.reader_environment().items():
            monkeypatch.setenv(name, value)
        refused = set()
        for name, call in calls(open_at(s3_url), big).items():
            try:
                call()
            except NotAllowed:
                refused.add(name)
        assert refused == {"create", "put", "create_from_file", "delete", "remove_leftover"}
        assert open_at(s3_url).read("k") == b"data"
        with pytest.raises(ReadOnlyStore, match="may not write"):
            require_sound(open_store(s3_url), tmp_path / "cache", None)

    def test_a_key_longer_than_a_bucket_takes(self, s3_url: str) -> None:
        key = "/".join(["日" * 80] * 5)  # 404 characters, 1,204 bytes
        with pytest.raises(InvalidKey, match="S3 takes 1024"):
            open_at(s3_url).create(key, b"")


class TestProfileFile:
    def test_endpoint_keys_and_region_from_files(
        self, seaweed: Seaweed, s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in seaweed.environment():
            monkeypatch.delenv(name)
        config, credentials = tmp_path / "config", tmp_path / "credentials"
        config.write_text(f"[profile lab]\nregion = eu-central-1\nendpoint_url = {seaweed.endpoint}\n")
        credentials.write_text(
            f"[lab]\naws_access_key_id = {seaweed.access_key}\naws_secret_access_key = {seaweed.secret_key}\n"
        )
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
        monkeypatch.setenv("AWS_PROFILE", "lab")
        store = open_at(s3_url)
        store.create("k", b"1")
        assert store.read("k") == b"1"
        assert store.place.endpoint == seaweed.endpoint


class TestUploads:
    def test_parts_are_the_chunks(self, s3_url: str, big: Path) -> None:
        hashed = hash_file(big)
        assert len(hashed.chunks) == 3
        store = open_at(s3_url)
        store.create_from_file("with", big, chunks=hashed.chunks)
        store.create_from_file("without", big)
        for key in ("with", "without"):
            assert "sha256:" + hashlib.sha256(store.read(key)).hexdigest() == hashed.digest
        assert list(store.leftovers("")) == []

    def test_a_part_that_is_not_what_its_checksum_says_is_refused_by_the_server(self, s3_url: str, big: Path) -> None:
        chunks = list(hash_file(big).chunks)
        chunks[1] = hashlib.sha256(b"other").hexdigest()
        store = open_at(s3_url)
        with pytest.raises(WrongChecksum):
            store.create_from_file("k", big, chunks=chunks)
        assert list(store.leftovers("")) == []
        with pytest.raises(ObjectMissing):
            store.stat("k")

    @pytest.mark.parametrize(("number", "open_uploads"), [(signal.SIGKILL, 1), (signal.SIGINT, 0)])
    def test_a_process_that_ends_half_way(
        self, s3_url: str, tmp_path: Path, number: signal.Signals, open_uploads: int
    ) -> None:
        path = tmp_path / "large"
        path.write_bytes(os.urandom(MIB) * 64)
        code = f"""
import os, pathlib, sys, time
from zoo.store.s3 import open_s3
store = open_s3({s3_url.removeprefix("s3://")!r})
def slowly(**_):
    os.write(1, b"part\\n")  # in one go: several threads are at it
    time.sleep(0.3)
store._client.meta.events.register("after-call.s3.UploadPart", slowly)
store.create_from_file("team/large", pathlib.Path({str(path)!r}))
print("done", flush=True)
"""
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"part\n"
            process.send_signal(number)
            rest, said = process.communicate(timeout=60)
        assert b"done" not in rest
        assert (b"KeyboardInterrupt" in said) == (number == signal.SIGINT)
        store = open_at(s3_url)
        found = list(store.leftovers(""))
        assert [(left.key, left.size) for left in found] == [("team/large", None)] * open_uploads
        assert all(abs(left.modified - datetime.datetime.now(datetime.UTC).timestamp()) < 300 for left in found)
        assert list(store.leftovers("team/l")) == found
        assert list(store.leftovers("other/")) == []
        assert list(store.list("")) == []
        for left in found:
            store.remove_leftover(left)
            store.remove_leftover(left)
        assert list(store.leftovers("")) == []
        store.create_from_file("team/large", path)
        assert store.stat("team/large").size == path.stat().st_size


class TestForeignObjects:
    def test_names_that_are_no_keys_are_not_listed(self, s3_url: str) -> None:
        store = open_at(s3_url)
        store.create("a/b", b"1")
        prefix = s3_url.removeprefix("s3://zoo/")
        for name in ("folder/", "tab\tname", ".tmp-x", "e\u0301", "a/.tmp-y/z"):
            store._client.put_object(Bucket="zoo", Key=f"{prefix}/{name}", Body=b"")
        store._client.put_object(Bucket="zoo", Key=f"{prefix}-other/k", Body=b"")
        assert [info.key for info in store.list("")] == ["a/b"]
        assert "a" in list(store.folders(""))
        assert not any(name.startswith((".tmp-", "e\u0301")) for name in store.folders(""))

    def test_a_page_is_not_all(self, s3_url: str) -> None:
        store = S3Store(connect(parse_location(s3_url.removeprefix("s3://")), Limits(connections=4)))
        keys = sorted(f"m/{number % 7}-x/{number:04}" for number in range(1100))
        for key in keys:
            store.create(key, b"")
        assert [info.key for info in store.list("")] == keys
        assert [info.key for info in store.list("m/", start_after=keys[500])] == keys[501:]
        assert list(store.folders("m/")) == [f"{number}-x" for number in range(7)]


class TestCrashes:
    @pytest.fixture
    def own_server(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seaweed: Seaweed) -> Iterator[Seaweed]:
        assert seaweed  # so that a platform without the server skips here too
        with running_seaweed(tmp_path / "server") as server:
            for name, value in server.environment().items():
                monkeypatch.setenv(name, value)
            yield server

    def test_what_was_acknowledged_survives_kill_9_of_the_server(self, own_server: Seaweed, big: Path) -> None:
        url = f"s3://zoo/{secrets.token_hex(4)}"
        store = open_at(url)
        written = {}
        for number in range(20):
            key, data = f"log/{number:03}", secrets.token_bytes(100 + number * 1000)
            store.create(key, data)
            written[key] = data
        store.create_from_file("blob", big)
        own_server.kill()
        with pytest.raises(NoConnection):
            store.read("log/000")
        own_server.restart()
        again = open_store(url)
        assert [info.key for info in again.list("log/")] == sorted(written)
        for key, data in written.items():
            assert again.read(key) == data
            with pytest.raises(ObjectExists):
                again.create(key, b"other")
        assert again.read("blob") == big.read_bytes()


def test_opening_a_local_store_does_not_import_boto3() -> None:
    code = "import sys, zoo.store.s3, zoo.store.s3.errors, zoo.store.probe; from zoo.store import open_store\n"
    code += "open_store('memory://x'); print([name for name in sys.modules if name.startswith(('boto', 'urllib3'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
