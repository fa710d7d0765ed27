"""What `zoo` does to keep a catalogue in order, typed as a user would, on a local store and on a real S3 server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.zoo.samples import version
from zoo.cache import BlobCache
from zoo.catalog import Catalog
from zoo.store import open_store


def zoo(*arguments: str, fails: bool = False, **environment: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "zoo.cli.main", *arguments, "--format", "json"],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
    )
    assert (done.returncode != 0) == fails, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads((done.stderr if fails else done.stdout).strip().splitlines()[-1])


@pytest.fixture(params=["local", "s3"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = (tmp_path / "store").as_uri() if request.param == "local" else request.getfixturevalue("s3_url")
    monkeypatch.setenv("MODELZOO_STORE", url)
    return str(url)


def test_a_life_of_a_model(store_url: str, tmp_path: Path) -> None:
    catalog = Catalog(open_store(store_url), BlobCache(tmp_path / "cache"))
    catalog.publish("team/m", *version(tmp_path / "files", head=1))
    catalog.publish("team/m", *version(tmp_path / "files", head=2))

    assert zoo("archive", "team/m@1")["archived"] is True
    assert zoo("archive", "team/m@1", "--undo")["archived"] is False
    found = zoo("diff", "team/m@1", "team/m@2")
    assert not found["same"]
    assert found["components"]["backbone"]["equal"] == 2
    assert len(found["components"]["head"]["changed"]) == 2

    (tmp_path / "card.md").write_text("# My model\n\nFor dogs.\n")
    assert "For dogs." in zoo("card", "team/m", "--edit", str(tmp_path / "card.md"))["text"]
    assert zoo("card", "team/m")["edited"] is True

    zoo("pull", "team/m", str(tmp_path / "pulled"))
    pushed = zoo("push", str(tmp_path / "pulled"), "other")
    assert (pushed["digest"], pushed["bytes_sent"]) == (zoo("show", "team/m")["digest"], 0)
    assert zoo("push", str(tmp_path / "pulled"), "other")["existing"] is True

    assert zoo("delete", "other")["undelete_until"]
    assert zoo("show", "other", fails=True)["error"]["reason"] == "DeletedModel"
    assert zoo("undelete", "other")["versions"] == 1
    assert zoo("verify")["ok"]
    collected = zoo("gc", "--grace", "0")
    assert (collected["bytes"], collected["problems"]) == (0, [])
    assert zoo("show", "other")["digest"] == pushed["digest"]


def test_a_changed_file_is_not_pushed(tmp_path: Path) -> None:
    catalog = Catalog(open_store(os.environ["MODELZOO_STORE"]), BlobCache(tmp_path / "cache"))
    catalog.publish("m", *version(tmp_path / "files"))
    zoo("pull", "m", str(tmp_path / "pulled"))
    file = tmp_path / "pulled" / "head.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    error = zoo("push", str(tmp_path / "pulled"), "n", fails=True)["error"]
    assert error["reason"] == "WrongBytes"
    assert "sha256:" in error["message"]


def test_buckets_that_cannot_be_used(s3_url: str) -> None:
    wrong = zoo("list", "--store", s3_url, fails=True, AWS_SECRET_ACCESS_KEY="wrong")["error"]
    assert (wrong["code"], wrong["reason"]) == ("UNAUTHENTICATED", "WrongKeys")
    missing = zoo("list", "--store", "s3://nothing-here/x", fails=True)["error"]
    assert (missing["code"], missing["reason"]) == ("NOT_FOUND", "NoBucket")
