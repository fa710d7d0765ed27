"""A real server in its own process on a store with a tiny backbone; one for the whole folder, since starting costs."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from finetune.client import ZooClient
from finetune.jobs.tables import default_queue_url
from tests.tiny import tiny_backbone_version
from zoo.cache import BlobCache
from zoo.catalog import Catalog
from zoo.store import open_store

MAIN = """
import json, sys
from pathlib import Path
from server.serve import serve
serve(address=sys.argv[1], store_url=sys.argv[2], config=Path(sys.argv[3]))
imported = {name.partition(".")[0] for name in sys.modules}
print(json.dumps(sorted(imported & {"tensorflow", "keras", "torch"})), flush=True)
"""


class RunningServer:
    """`start`, `kill` and start again: the store, the queue and the port stay. `queue`: None for the store's own."""

    def __init__(
        self, root: Path, *, queue: str | None = None, store_url: str | None = None, max_running_jobs: int = 1
    ) -> None:
        self.root = root
        self.store_url = store_url or f"file://{root}/store"
        self.queue_url = queue or default_queue_url(self.store_url)
        self.home = root / "home"
        self.address = "127.0.0.1:0"
        self.ready: dict[str, str] = {}
        self.process: subprocess.Popen[str] | None = None
        self.catalog = Catalog(open_store(self.store_url), BlobCache(root / "cache"))
        (root / "data" / "flickr").mkdir(parents=True)
        config = {"data_roots": {"photos": str(root / "data")}, "queue": queue, "max_running_jobs": max_running_jobs}
        (root / "config.yaml").write_text(yaml.safe_dump(config))

    def start(self) -> None:
        env = os.environ | {"MODELZOO_HOME": str(self.home), "MODELZOO_CACHE": str(self.root / "cache")}
        with (self.root / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", MAIN, self.address, self.store_url, str(self.root / "config.yaml")],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=env,
            )
        self.ready = json.loads(self._line())
        self.address = self.ready["address"]

    def client(self, **options: Any) -> ZooClient:
        return ZooClient(self.address, Path(self.ready["token_file"]).read_text().strip(), **options)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self._ended()

    def stop(self) -> list[str]:
        """SIGTERM; the frameworks that the front process had imported."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        imported: list[str] = json.loads(self._line())
        assert self._ended() == 0
        return imported

    def _line(self) -> str:
        assert self.process is not None
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, (self.root / "server.log").read_text()[-3000:]
        return line

    def _ended(self) -> int:
        assert self.process is not None
        assert self.process.stdout is not None
        self.process.stdout.close()
        code = self.process.wait(timeout=30)
        self.process = None
        return code


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    server = RunningServer(tmp_path_factory.mktemp("server"))
    tiny_backbone_version(server.catalog)
    server.start()
    yield server
    if server.process is not None:
        server.kill()


@pytest.fixture
def client(server: RunningServer) -> Iterator[ZooClient]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="session")
def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (48, 40), (200, 30, 30)).save(out, "PNG")
    return out.getvalue()


JOB = {
    "backbone": "tiny",
    "head": "captioner",
    "data": "scenes:",
    "settings": {"train.steps": "40", "train.evaluate_every": "20", "train.batch_size": "16"},
}
