from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from finetune.client import InvalidServer, RequestTooLarge, ServerUnreachable, ZooClient
from finetune.token_file import DamagedTokenFile, UnsafeTokenFile, ensure_token, read_token, token_path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def test_a_server_that_does_not_answer_is_named() -> None:
    address = f"127.0.0.1:{free_port()}"
    with ZooClient(address) as client:
        for call in (client.list_models, lambda: list(client.watch_job("x")), lambda: client.caption("m", [b"x"])):
            with pytest.raises(ServerUnreachable, match=address) as caught:
                call()
            assert caught.value.hint is not None
            assert "zoo serve" in caught.value.hint


@pytest.mark.parametrize("address", ["", "localhost", "localhost:", ":80", "host:http"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(InvalidServer, match="HOST:PORT"):
        ZooClient(address)


def test_too_many_bytes_are_refused_before_they_are_sent() -> None:
    with (
        ZooClient(f"127.0.0.1:{free_port()}", max_message_bytes=100_000) as client,
        pytest.raises(RequestTooLarge, match=r"200,000 bytes.*100,000"),
    ):
        client.caption("m", [b"x" * 100_000] * 2)


def test_a_token_file_is_made_once_for_its_user_alone() -> None:
    path = token_path(8470)
    assert read_token(path) is None
    token = ensure_token(path)
    assert len(token) >= 32
    assert ensure_token(path) == token == read_token(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["8470.token"]


def test_a_token_file_that_others_can_read_is_not_trusted(tmp_path: Path) -> None:
    path = tmp_path / "token"
    ensure_token(path)
    os.chmod(path, 0o644)  # noqa: PTH101
    with pytest.raises(UnsafeTokenFile, match="644"):
        read_token(path)
    os.chmod(path, 0o600)  # noqa: PTH101
    path.write_text("\n")
    with pytest.raises(DamagedTokenFile):
        read_token(path)
